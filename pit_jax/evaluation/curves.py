"""What the stages of a run recorded while they trained, as the curves of its report."""

from __future__ import annotations

from typing import Any

from pit_jax.method import curriculum
from pit_jax.run import stages
from pit_jax.run.run import Run
from pit_jax.run.stages import RLStage
from pit_jax.runtime import metrics


def reward_curves(run: Run, pit: str) -> list[dict[str, Any]]:
    """Figure 4: the gap reward by step of each round of a stage that trains M_PIT.

    Args:
      run: whose stage it is.
      pit: name of the stage. Of one that T5X trained there is no curve: its metrics are not ours.
    """
    stage = run.stage(pit)
    assert isinstance(stage, RLStage)
    if not run.is_complete(pit):
        return []
    curves = []
    for number, round_, first, last in curriculum.locate(stage.rounds, 0):
        records = [r for r in _records(run, pit) if first < r["step"] <= last]
        curves.append(
            {
                "round": f"round {number}: references from {round_.source}",
                "steps": [r["step"] for r in records],
                "reward": [r["score"] for r in records],
            }
        )
    return curves


def learning_curves(run: Run) -> list[dict[str, Any]]:
    """The score of each stage of RL and the loss of each other one, by step."""
    curves = []
    for stage in run.config.stages:
        if not run.is_complete(stage.name):
            continue
        metric = "score" if stage.task in stages.RL_TASKS else "loss"
        records = [r for r in _records(run, stage.name) if metric in r]
        curves.append(
            {
                "stage": stage.name,
                "metric": metric,
                "steps": [r["step"] for r in records],
                "values": [r[metric] for r in records],
            }
        )
    return curves


def _records(run: Run, stage: str) -> list[dict[str, Any]]:
    return metrics.read_jsonl(run.directory / stage / "metrics.jsonl")
