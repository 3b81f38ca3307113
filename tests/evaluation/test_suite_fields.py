"""Each field of an EvaluationConfig, by what an evaluation asks of models that are stand-ins."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable

import jax
import numpy as np
import pytest

from pit_jax.evaluation.suite import EvaluationConfig, Suite
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Response
from tests import tiny_runs

CONFIG = EvaluationConfig(
    split="dev",
    num_prompts=4,
    temperatures=(1.0,),
    sweep=(1.0,),
    iterations=2,
    controls=(("SFT again", "sft_policy"),),
    ablations=(("PIT's SFT", "sft_pit"),),
)


@pytest.fixture(scope="module")
def run():
    made = tiny_runs.on_one_device(tiny_runs.config("unused"))
    made.anchor = lambda stage: 0.0  # of a stage that isn't there
    return made


@dataclasses.dataclass(frozen=True)
class Improving:
    """Stands for an Improver."""

    improve: Callable
    anchor: float = 1.0
    better_above: float = 0.0

    def __call__(self, *given):
        return self.improve(*given)


class Recorded(Suite):
    """A Suite that keeps what it asks of models, and gets the same response from all of them."""

    def __init__(self, run, **fields):
        super().__init__(run, dataclasses.replace(CONFIG, **fields))
        self.asked = []
        layout = run.role("policy").layout
        sampler = types.SimpleNamespace(score=lambda *_: np.arange(4.0), respond=self._respond)
        role = Role(run.config.network, layout, run.config.lengths, sampler)
        self.responses._run = types.SimpleNamespace(
            config=run.config,
            role=lambda name: role,
            key=run.key,
            pooling=lambda name: self.asked.append(("pooling", name)) or "sum",
            reflects=lambda name: False,
            improver=lambda *models, reflects, role: Improving(
                functools.partial(self._improve, models)
            ),
        )
        self.responses.model = lambda name: name
        self._same = Response(layout.vocabulary.encode("from 4"), True, text="from 4")

    def _respond(self, model, prompts, width, rows, key, sampling):
        key = tuple(jax.random.key_data(key).tolist())
        self.asked.append(("respond", model, tuple(rows), key, sampling))
        return [self._same for _ in prompts]

    def _improve(self, models, prompts, responses, rows, key, config):
        key = tuple(jax.random.key_data(key).tolist())
        self.asked.append(("improve", models, tuple(rows), key, config))
        steps = config.iterations + 1
        return [Trace([self._same] * steps, [0.0] * config.iterations) for _ in prompts]

    def models(self):
        """Every stage that was asked for something."""
        return {asked[1] for asked in self.asked if asked[0] != "improve"} | {
            name for asked in self.asked if asked[0] == "improve" for name in asked[1]
        }


@pytest.fixture
def recorded(run):
    def tables(**fields):
        made = Recorded(run, **fields)
        for temperature in made._config.temperatures:
            made.rows = made._comparisons(temperature) + made._scores(temperature)
            made._iterations(temperature)
        made.figure = made._sweep()
        made.pairs.policy_row("R_P", made._config.reward_model)
        return made

    return tables


@pytest.mark.parametrize(
    ("field", "stage"),
    [
        ("sft", "sft_policy"),
        ("policy", "rl_policy"),
        ("pit", "rl_pit"),
        ("reward_model", "rm_policy"),
        ("gap_model", "rm_gap"),
    ],
)
def test_each_stage_that_is_named_is_the_one_that_is_asked(recorded, field, stage):
    plain = recorded(controls=(), ablations=()).models()
    assert plain == {"sft_policy", "rl_policy", "rl_pit", "rm_policy", "rm_gap"}
    named = recorded(controls=(), ablations=(), **{field: "another"}).models()
    assert named == plain - {stage} | {"another"}


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({"controls": (("Longer", "longer"),)}, {"Longer vs Original", "PIT vs Longer", "Longer"}),
        ({"ablations": (("One", "one"),)}, {"One vs Original", "PIT vs One", "One"}),
        ({"self_refine": True}, {"Self-Refine vs Original", "PIT vs Self-Refine"}),
        (
            {"ablations": (("One", "one"),), "self_refine": True},
            {"One vs Original", "One vs Self-Refine", "PIT vs One", "One"}
            | {"Self-Refine vs Original", "PIT vs Self-Refine"},
        ),
    ],
)
def test_each_further_model_has_its_own_rows(recorded, fields, more):
    without = {"controls": (), "ablations": (), "self_refine": False}
    plain = {row["name"] for row in recorded(**without).rows}
    assert {row["name"] for row in recorded(**without | fields).rows} - plain == more


def test_temperatures_of_tables_and_of_the_sweep(recorded):
    """The sweep's original is at 1, as the policy that PPO sampled."""
    made = recorded(temperatures=(0.7,), sweep=(0.2, 0.5), self_refine=False)
    by_pit = [asked[4].sampling.temperature for asked in made.asked if asked[0] == "improve"]
    assert by_pit[-2:] == [0.2, 0.5] and set(by_pit[:-2]) == {0.7}
    drawn = [asked[4].temperature for asked in made.asked if asked[0] == "respond"]
    assert drawn[-3:] == [1.0, 0.2, 0.5] and set(drawn[:-3]) == {0.7}
    assert made.figure["temperatures"] == [0.2, 0.5]
    assert all(len(series) == 2 for series in made.figure["series"].values())


def test_iterations_of_pit_and_self_refine(recorded):
    """As often as Self-Refine; other models are compared after one."""
    made = recorded(iterations=3)
    improved = [asked for asked in made.asked if asked[0] == "improve" and len(asked[1]) > 1]
    depth = {asked[1][0]: asked[4].iterations for asked in improved}
    # Self-Refine is the policy's own.
    assert depth == {"rl_pit": 3, "sft_pit": 1, "rl_policy": 3}


def test_what_is_asked_of_improve_is_its_own_sampling(recorded, run):
    """Temperatures are the evaluation's; all else of how a role samples is the run's."""
    improve = ImproveConfig(
        sampling=SamplingConfig(top_k=3), policy_sampling=SamplingConfig(top_p=0.8)
    )
    config = run.config
    try:
        run.config = dataclasses.replace(config, improve=improve)
        made = recorded(temperatures=(0.7,), sweep=())
        swept = recorded(temperatures=(0.7,), sweep=(0.2,))
    finally:
        run.config = config
    drawn = {asked[4] for asked in made.asked if asked[0] == "respond"}
    assert drawn == {SamplingConfig(temperature=0.7, top_p=0.8)}
    last = [asked for asked in swept.asked if asked[0] == "improve"][-1]
    assert last[4].sampling == SamplingConfig(temperature=0.2, top_k=3)
    improved = {asked[4].sampling for asked in made.asked if asked[0] == "improve"}
    assert improved == {SamplingConfig(temperature=0.7, top_k=3)}


def test_stage_draw_and_purpose_each_move_the_key(recorded):
    made = recorded(controls=(("Longer", "longer"),), sweep=(0.5,), temperatures=(1.0,))
    keys = {}
    for kind, model, rows, key, _ in (a for a in made.asked if a[0] != "pooling"):
        assert rows == tuple(made.responses.rows)
        keys.setdefault(key, set()).add((kind, str(model)))
    # Of the original and again, SFT twice over, a control; PIT, its SFT, Self-Refine, two sweeps.
    assert len(keys) == 2 + 1 + 1 + 5
    assert all(len(users) == 1 for users in keys.values())
    again = recorded(controls=(("Longer", "longer"),), sweep=(0.5,), temperatures=(1.0,))
    assert [asked[3] for asked in again.asked if asked[0] != "pooling"] == [
        asked[3] for asked in made.asked if asked[0] != "pooling"
    ]


def test_the_split_is_the_one_that_is_asked_for_and_0_takes_all_of_it(run):
    for split in ("dev", "test"):
        expected = [e.prompt for e in run.data.examples(split)]
        config = dataclasses.replace(CONFIG, split=split, num_prompts=0)
        assert Suite(run, config).responses.prompts == expected
        few = Suite(run, dataclasses.replace(config, num_prompts=3)).responses
        assert few.prompts == expected[:3] and few.rows == [0, 1, 2]


def test_so_many_samples_are_shown(run):
    for count in (0, 2, 9):
        made = Recorded(run, num_samples=count)
        traces = [Trace([made._same], [])] * 4
        made.improved = lambda *_, traces=traces: traces
        assert len(made._samples()) == min(count, 4)
