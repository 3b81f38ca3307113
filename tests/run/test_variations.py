"""Variations of a run in one run: what is shared, what is added, and what it builds on."""

from __future__ import annotations

import dataclasses

import pytest

from pit_jax.errors import UserError
from pit_jax.method.curriculum import Round
from pit_jax.run import variations
from pit_jax.run.config import RunConfig
from tests import tiny_runs

BASE = tiny_runs.config("unused")
TABLE = {stage.name: stage for stage in BASE.stages}
NAMES = {name: name for name in TABLE}


def varied(name: str, **changes) -> RunConfig:
    return tiny_runs.with_stages(BASE, dataclasses.replace(TABLE[name], **changes))


def added(merged: variations.Merged) -> dict:
    return {s.name: s for s in merged.config.stages[len(TABLE) :]}


def test_only_what_differs_is_added():
    order = varied("rl_pit", rounds=(Round("policy", 3), Round("data", 1)))
    merged = variations.merge(BASE, {"reversed": order})
    assert merged.config.stages[: len(TABLE)] == BASE.stages
    (stage,) = added(merged).values()
    rounds = (Round("policy", 3), Round("data", 1))
    expected = dataclasses.replace(TABLE["rl_pit"], name="rl_pit_reversed", rounds=rounds)
    assert stage == expected
    assert merged.names["reversed"] == NAMES | {"rl_pit": "rl_pit_reversed"}
    assert merged.users("rl_pit") == ["base"]
    assert merged.users("sft_pit") == ["base", "reversed"]
    assert merged.users("rl_pit_reversed") == ["reversed"]


def test_what_builds_on_a_stage_that_differs_is_added_too():
    """A policy is the start of nothing but the source of PIT's second round."""
    merged = variations.merge(BASE, {"long": varied("rl_policy", rounds=(Round("none", 5),))})
    assert list(added(merged)) == ["rl_policy_long", "rl_pit_long"]
    pit = added(merged)["rl_pit_long"]
    assert [round_.policy for round_ in pit.rounds] == ["rl_policy_long"] * 2
    assert (pit.initial, pit.reward_model) == ("sft_pit", "rm_gap")
    merged = variations.merge(BASE, {"a": varied("pretrain", steps=5)})
    assert list(added(merged)) == [f"{name}_a" for name in TABLE]
    assert added(merged)["rl_pit_a"].reference == "sft_pit_a"
    assert added(merged)["rm_policy_a"].initial == "pretrain_a"


def test_two_variations_share_what_they_have_in_common():
    gap = varied("rm_gap", steps=3)
    both = tiny_runs.with_stages(gap, dataclasses.replace(TABLE["rl_pit"], batch_size=16))
    merged = variations.merge(BASE, {"gap": gap, "both": both})
    assert list(added(merged)) == ["rm_gap_gap", "rl_pit_gap", "rl_pit_both"]
    assert added(merged)["rl_pit_both"].reward_model == "rm_gap_gap"
    assert merged.users("rm_gap_gap") == ["gap", "both"]


def test_a_stage_of_a_variation_alone_keeps_its_name():
    other = dataclasses.replace(TABLE["rl_pit"], name="rl_pit_first", rounds=(Round("data", 4),))
    merged = variations.merge(BASE, {"first": tiny_runs.with_stages(BASE, other)})
    assert added(merged) == {"rl_pit_first": other}


def test_the_path_of_another_runs_stage_stays():
    merged = variations.merge(BASE, {"b": varied("sft_pit", initial="other/pretrain")})
    assert added(merged)["sft_pit_b"].initial == "other/pretrain"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BASE, "--vary: v changes no stage"),
        (dataclasses.replace(BASE, stages=BASE.stages[:-1]), "--vary: v changes no stage"),
        (dataclasses.replace(BASE, seed=1), r"--vary: v changes RunConfig\.seed, expected"),
        (dataclasses.replace(BASE, vocabulary="bytes"), r"RunConfig\.vocabulary"),
    ],
)
def test_what_is_no_variation_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        variations.merge(BASE, {"v": config})


def test_a_name_that_is_taken_is_refused():
    taken = dataclasses.replace(TABLE["rl_pit"], name="rl_pit_v", batch_size=16)
    base = tiny_runs.with_stages(BASE, taken)
    with pytest.raises(UserError, match="--vary: v: the run has another stage 'rl_pit_v'"):
        variations.merge(base, {"v": varied("rl_pit", batch_size=32)})
