"""The paper's variations from the command line, by the gin file that has them."""

from __future__ import annotations

import json

import pytest

from tests import tiny_runs

pytestmark = pytest.mark.no_cover  # what trains is covered by the tests of its parts

GIN = f"""
{tiny_runs.GIN}
include 'gin/stages/ablations.gin'

layouts.Lengths.reflection = 8
rl_pit_0/whole/curriculum.Round.steps = 1
rl_pit_1/whole/curriculum.Round.steps = 1
rl_pit_0/third/curriculum.Round.steps = 1
rl_pit_1/third/curriculum.Round.steps = 1
rl_pit_2/curriculum.Round.steps = 1
rl_pit_checkpoint/curriculum.Round:
    steps = 1
    policy_step = 1
rl_policy/longer/curriculum.Round.steps = 1

run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(),
    @sft_policy/stages.SupervisedStage(),
    @sft_pit/stages.SupervisedStage(),
    @sft_pit/reflection/stages.SupervisedStage(),
    @sft_pit/unlikely/stages.SupervisedStage(),
    @sft_pit/unlikely_lw/stages.SupervisedStage(),
    @sft_pit/unlikely_ll/stages.SupervisedStage(),
    @sft_pit/unlikely_ww/stages.SupervisedStage(),
    @rm_policy/stages.RewardStage(),
    @rm_gap/stages.RewardStage(),
    @rm_gap/pair/stages.RewardStage(),
    @rm_gap/pointwise/stages.RewardStage(),
    @rl_policy/stages.RLStage(),
    @rl_pit/stages.RLStage(),
    @rl_policy/longer/stages.RLStage(),
    @rl_pit/first_only/stages.RLStage(),
    @rl_pit/second_only/stages.RLStage(),
    @rl_pit/reversed/stages.RLStage(),
    @rl_pit/intermediate/stages.RLStage(),
    @rl_pit/third_round/stages.RLStage(),
    @rl_pit/difference/stages.RLStage(),
    @rl_pit/gap_pair/stages.RLStage(),
    @rl_pit/gap_pointwise/stages.RLStage(),
)
"""


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A copy of the tiny run, to train further stages in."""
    return tiny_runs.copy(trained, tmp_path_factory.mktemp("variations") / "run")


def train(folder, name):
    """Trains a variation; returns its result and its records."""
    assert tiny_runs.command("train", folder, f"--gin.STAGE='{name}'", gin=GIN) == 0
    result = json.loads((folder / name / "result.json").read_text())
    return result, tiny_runs.records(folder / name / "metrics.jsonl")


@pytest.mark.parametrize("name", ["sft_pit_reflection", "sft_pit_unlikely"])
def test_supervised_variations(folder, name):
    result, records = train(folder, name)
    assert (result["task"], len(records)) == (name, 2)
    assert records[1]["loss"] < records[0]["loss"] and records[0]["grad_norm"] < 100
    if name == "sft_pit_reflection":  # a reflection adds tokens to those of its base
        plain = json.loads((folder / "sft_pit" / "result.json").read_text())
        assert result["tokens"] > plain["tokens"]


def test_a_gap_model_of_two_terms_is_anchored_by_all_four_scores(folder):
    result, records = train(folder, "rm_gap_pair")
    whole = json.loads((folder / "rm_gap" / "result.json").read_text())
    assert result["tokens"] < whole["tokens"]
    last = records[-1]
    assert {"held_out_accuracy_wl>ww", "held_out_mean_ll"} <= set(last)
    assert "mean_ll" not in last and "mean_wl" in last
    expected = (last["held_out_mean_ww"] + last["held_out_mean_ll"]) / 2
    assert result["anchor"] == pytest.approx(expected)


def test_ppo_on_a_difference_of_rewards(folder):
    result, records = train(folder, "rl_pit_difference")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert result["references"][0]["round"] == 1
    assert all(record["first_ratio_error"] == 0 for record in records)


@pytest.mark.slow
def test_all_of_them_train_and_are_evaluated(tmp_path):
    assert tiny_runs.command("run", tmp_path / "run", gin=GIN) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["stages"]) == 23
    orders = [
        tiny_runs.records(tmp_path / "run" / name / "metrics.jsonl")
        for name in (
            "rl_pit_first_only",
            "rl_pit_reversed",
            "rl_pit_intermediate",
            "rl_pit_third_round",
        )
    ]
    assert [len(records) for records in orders] == [1, 4, 3, 3]
