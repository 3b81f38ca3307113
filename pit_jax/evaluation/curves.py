"""What the stages of a run recorded while they trained, as the curves of its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pit_jax.method import curriculum
from pit_jax.run import stages
from pit_jax.run.run import Run
from pit_jax.run.stages import RLStage
from pit_jax.runtime import metrics


def reward_curves(run: Run, models: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Figure 4: the gap reward by step of each round of the stages that train PIT models.

    Args:
      run: whose stages they are.
      models: (label, stage) of each, PIT's own first. What isn't a stage of PPO has no curve, nor
        has one that T5X trained, whose metrics are not ours, nor one whose reward isn't PIT's.

    Returns:
      model, round, steps and reward of each round, and `start`, the step of the stage after which
      its second round begins, which is the first whose references are M_P^RL's. For a stage without
      such a round this is its end, for there its model is what a second round would start from.
    """
    curves = []
    known = {stage.name: stage for stage in run.config.stages if isinstance(stage, RLStage)}
    rewards = [known[name].reward_model for _, name in models if name in known]
    for label, name in models:
        stage = known.get(name)
        if stage is None or stage.reward_model != rewards[0] or not run.is_complete(name):
            continue
        rounds = list(curriculum.locate(stage.rounds, 0))
        second = [first for _, round_, first, _ in rounds if round_.source == "policy"]
        for number, round_, first, last in rounds:
            records = [r for r in _records(run, name) if first < r["step"] <= last]
            curves.append(
                {
                    "model": label,
                    "round": f"round {number}: references from {round_.source}",
                    "steps": [r["step"] for r in records],
                    "reward": [r["score"] for r in records],
                    "start": second[0] if second else stage.steps,
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
