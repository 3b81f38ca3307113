"""Which stages of a run are compared with its main ones, and what is said of them."""

from __future__ import annotations

import dataclasses
import types

import pytest

from pit_jax.evaluation import variants
from pit_jax.method.curriculum import Round
from pit_jax.run import stages
from tests import tiny_runs

DATA, POLICY = Round("data", 40), Round("policy", 60)
STAGES = (
    tiny_runs.supervised("sft_pit", initial="pretrain"),
    tiny_runs.reward("rm_policy"),
    tiny_runs.reward("rm_gap"),
    tiny_runs.reward(
        "pair",
        9,
        task="rm_gap",
        initial="",
        reward=dataclasses.replace(tiny_runs.REWARD, gap_loss="two_term"),
    ),
    tiny_runs.rl("rl_policy", (Round("none", 7),)),
    tiny_runs.rl("rl_pit", (DATA, POLICY)),
    tiny_runs.rl("first", (DATA,), task="rl_pit"),
    tiny_runs.rl("unfinished", (DATA,), task="rl_pit"),
    tiny_runs.rl("second", (Round("data", 0), POLICY), task="rl_pit"),
    tiny_runs.rl("of_pair", (DATA,), task="rl_pit", reward_model="pair"),
    tiny_runs.rl(
        "long",
        (DATA, Round("checkpoint", 5, policy_step=30), POLICY, Round("pit", 3)),
        task="rl_pit",
    ),
)


def run_of(*more, unfinished=("unfinished",)):
    table = {stage.name: stage for stage in (*STAGES, *more)}
    return types.SimpleNamespace(
        config=types.SimpleNamespace(stages=tuple(table.values())),
        stage=table.__getitem__,
        is_complete=lambda name: name not in unfinished,
    )


def test_complete_stages_of_a_task_follow_those_that_are_named():
    """Each once; a named one needn't be of the task, and the main one isn't listed."""
    named = (("Label", "second"), ("SFT", "sft_pit"))
    assert variants.others(run_of(), ("rl_pit",), "rl_pit", named) == (
        ("Label", "second"),
        ("SFT", "sft_pit"),
        ("first", "first"),
        ("of_pair", "of_pair"),
        ("long", "long"),
    )
    assert variants.others(run_of(), ("rm_gap",), "rm_gap") == (("pair", "pair"),)
    assert variants.others(run_of(), ("rm_policy",), "rm_policy") == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("first", "first_only"),
        ("second", "second_only"),
        ("long", "ablation"),
        ("of_pair", "ablation"),  # the paper's learned from the reward of its PIT
        ("sft_pit", "ablation"),
        ("elsewhere/first", "ablation"),
    ],
)
def test_kinds_are_the_papers_where_rounds_and_reward_are(name, kind):
    assert variants.kind(run_of(), name, "rl_pit") == kind


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("sft_pit", "sft_pit, 2 steps from pretrain"),
        ("rm_policy", "pairwise loss, 2 steps from pretrain"),
        ("rm_gap", "gap loss eq2, 2 steps from pretrain"),
        ("pair", "gap loss two_term, 9 steps"),
        ("rl_policy", "from sft_policy: 7 steps; reward: rm_policy"),
        (
            "rl_pit",
            "from sft_pit: 40 steps on references from the data, then 60 steps on references from "
            "rl_policy; reward: rm_gap (gap loss eq2)",
        ),
        (
            "of_pair",
            "from sft_pit: 40 steps on references from the data; reward: pair (gap loss two_term)",
        ),
        (
            "long",
            "from sft_pit: 40 steps on references from the data, then 5 steps on references of "
            "rl_policy at step 30, then 60 steps on references from rl_policy, then 3 steps on its "
            "own improvements of rl_policy; reward: rm_gap (gap loss eq2)",
        ),
        ("elsewhere/first", ""),
    ],
)
def test_a_stage_in_words(name, what):
    assert variants.describe(run_of(), name) == what


def test_a_gap_of_differences_in_words():
    stage = tiny_runs.rl("apart", (DATA,), task="rl_pit", reward_model="rm_policy")
    said = variants.describe(run_of(stage), "apart")
    assert said.endswith("; reward: difference of rm_policy’s scores")


def test_supervised_pit_models_have_figure_5s_labels(monkeypatch):
    tasks = ("sft_pit", "sft_pit_reflection", "sft_pit_unlikely_lw")
    monkeypatch.setattr(stages, "PIT_SUPERVISED", tasks)
    monkeypatch.setattr(stages, "SUPERVISED_TASKS", (*stages.SUPERVISED_TASKS, *tasks))
    more = [
        tiny_runs.supervised("reflects", task="sft_pit_reflection"),
        tiny_runs.supervised("unlikely", task="sft_pit_unlikely_lw"),
        tiny_runs.supervised("again", task="sft_pit"),
        tiny_runs.supervised("late", task="sft_pit"),
    ]
    assert variants.supervised(run_of(*more, unfinished=("late",))) == (
        ("PIT (SFT)", "sft_pit"),
        ("PIT (SFT, CoT)", "reflects"),
        ("PIT (SFT, unlikely lw)", "unlikely"),
        ("PIT (SFT) again", "again"),
    )
