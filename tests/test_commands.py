"""What `improve` asks of the models, with stand-ins for them; test_cli runs the commands."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import pytest

from pit_jax import commands
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.sampler import Response
from pit_jax.plan import chips
from pit_jax.run.run import key_for
from tests import tiny_runs

WORDS = load("words:drafts")
IMPROVE = ImproveConfig(
    sampling=SamplingConfig(temperature=0.3), policy_sampling=SamplingConfig(top_p=0.7)
)


@pytest.fixture
def improve(tmp_path):
    """Runs the command; returns the lines that it wrote, and what was asked of the models."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n{"prompt": "y", "response": "3"}\n')

    def run(config=IMPROVE, seed=0, **stages):
        asked = []

        def respond(model, built, width, rows, key, sampling):
            key = tuple(jax.random.key_data(key).tolist())
            asked.append((model, list(rows), key, sampling))
            return [Response(WORDS.encode("1"), True) for _ in built]

        def improver(*models):
            def improve(prompts, responses, rows, key, config):
                key = tuple(jax.random.key_data(key).tolist())
                asked.append((models, list(rows), key, config))
                more = [Response(WORDS.encode(word), True) for word in ("2", "4")]
                return [Trace([y, *more], [0.5, -1.0], last=2, best=1) for y in responses]

            return improve

        stand_in = types.SimpleNamespace(
            config=tiny_runs.config("unused", improve=config),
            layout=Layout(WORDS),
            vocabulary=WORDS,
            sampler=types.SimpleNamespace(respond=respond),
            load_frozen=lambda name: name,
            improver=improver,
            key=lambda *purposes: key_for(seed, *purposes),
        )
        options = types.SimpleNamespace(
            input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.jsonl")
        )
        commands.improve(stand_in, EvaluationConfig(**stages), options)
        return [*map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())], asked

    return run


def test_each_role_samples_as_the_configuration_says(improve):
    lines, (draft, improved) = improve()
    assert draft[0] == "rl_policy" and draft[3] == SamplingConfig(top_p=0.7)
    assert improved[0] == ("rl_pit", "rm_gap", "rm_gap") and improved[3] == IMPROVE
    assert draft[1] == improved[1] == [0, 1]
    assert [line["responses"][0] for line in lines] == ["1", "3"]
    _, (draft, improved) = improve(policy="a", pit="b", gap_model="c")
    assert (draft[0], improved[0]) == ("a", ("b", "c", "c"))


def test_prompts_may_be_turns(improve, tmp_path):
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "1"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": [*turns, turns[0]]}))
    ((line,), _) = improve()
    assert line["prompt"] == [*turns, turns[0]] and line["responses"] == ["1", "2", "4"]
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": turns}))
    with pytest.raises(UserError, match="in.jsonl:1: got turns under 'prompt' that end with role"):
        improve()


def test_self_refine_improves_by_the_policy_itself(improve):
    _, (_, improved) = improve(dataclasses.replace(IMPROVE, method="self_refine"))
    assert improved[0] == ("rl_policy", "rm_gap", "rm_gap")


@pytest.mark.parametrize(("keep", "response"), [("best", "2"), ("last", "4")])
def test_keep_says_which_response_is_the_result(improve, capsys, keep, response):
    lines, _ = improve(dataclasses.replace(IMPROVE, keep=keep))
    assert [line["response"] for line in lines] == [response] * 2
    what = {"best": "the best response by gap", "last": "the last response"}[keep]
    assert f"2 prompts, each with {what}: 2 changed" in capsys.readouterr().out


def test_seed_stage_and_purpose_each_move_the_draws(improve):
    refine = dataclasses.replace(IMPROVE, method="self_refine")
    calls = (({}, {}), ({"seed": 1}, {}), ({"config": refine}, {}), ({}, {"policy": "a"}), ({}, {}))
    keys = [[asked[2] for asked in improve(**given, **stages)[1]] for given, stages in calls]
    drafts, improved = zip(*keys)
    assert drafts[0] == drafts[2] == drafts[4] and len({drafts[0], drafts[1], drafts[3]}) == 3
    assert improved[0] == improved[3] == improved[4] and len(set(improved[:3])) == 3
    assert not set(drafts) & set(improved)


def test_a_plan_is_explained_or_json(monkeypatch):
    monkeypatch.setattr(chips, "devices", lambda slice_: [])
    options = types.SimpleNamespace(topology="v4-8", save=None, json=True, explain="rm_gap")
    with pytest.raises(UserError, match="the JSON has it all, expected one of --json and --explai"):
        commands.plan(None, options)


def test_a_judge_that_was_optimised_is_named_before_training_and_in_the_report(monkeypatch):
    """Not where an exact checker judges, nor where another reward model does."""
    monkeypatch.setattr("pit_jax.data.advice.warnings", lambda data, split, n: [f"{split} {n}"])
    config = tiny_runs.config("unused")
    evaluation = EvaluationConfig(num_prompts=7)
    exact = types.SimpleNamespace(config=config, data=None)
    assert commands._warnings(exact, evaluation) == ["test 7"]
    dataset = types.SimpleNamespace(kind="preferences")
    own = types.SimpleNamespace(config=dataclasses.replace(config, dataset=dataset), data=None)
    (_, text) = commands._warnings(own, evaluation)
    assert text.startswith("the judge is rm_policy, a reward model that training optimised")
    assert len(commands._warnings(own, dataclasses.replace(evaluation, reward_model="other"))) == 1
