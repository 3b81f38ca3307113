"""What the stages of a run recorded while they trained, as the curves of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.method import curriculum
from pit_jax.run import checks
from pit_jax.run.run import Run
from pit_jax.run.stages import RLStage
from pit_jax.runtime.records import ASIDE, NAME

# What tells most about a stage, in order: its reward, what that cost, what it is trained for, and
# how that is on held-out pairs.
_TELLING = (
    *("score", "kl", "entropy", "loss", "held_out_accuracy", "held_out_loss", "accuracy"),
    *("token_accuracy", "grad_norm"),
)
_SHOWN = 3
# Depends on the machine, and is no matter of what was learned; the table of stages has it.
_SPEED = ("tokens_per_second", "model_tflops_per_second", "mfu")
_MOST = 200  # points of a curve beside those that are shown


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


def _telling(there: Mapping[str, Any]) -> list[str]:
    """The three metrics of a stage's that tell most, or fewer where it has fewer."""
    return [name for name in _TELLING if name in there][:_SHOWN]


def stages(run: Run) -> list[dict[str, Any]]:
    """Returns the result of each stage, with `damaged` if its curves are without some records."""
    found = []
    for name in (stage.name for stage in run.config.stages if run.is_complete(stage.name)):
        row = {key: value for key, value in run.result(name).items() if key != "records"}
        damaged = (run.folder(name) / (NAME + ASIDE)).exists()
        found.append(row | ({"damaged": True} if damaged else {}))
    return found


def learning_curves(run: Run) -> list[dict[str, Any]]:
    """What each stage recorded, by step: the three metrics that tell most, then all others.

    Returns:
      stage, metric, steps, values, and `folded`: whether it is one of the others. These have 200
      points at most, and those that never change are left out, as are those of speed.
    """
    curves = []
    for stage in run.config.stages:
        if not run.is_complete(stage.name):
            continue
        records = _records(run, stage.name)
        names = dict.fromkeys(name for record in records for name in record)
        shown = _telling(names)
        for name in (*shown, *sorted(names.keys() - {"step", *_SPEED, *shown})):
            points = [(r["step"], r[name]) for r in records if _is_number(r.get(name))]
            folded = name not in shown
            if folded and len({value for _, value in points}) < 2:
                continue
            if folded:
                points = points[:: -(-len(points) // _MOST)]
            curves.append(
                {
                    "stage": stage.name,
                    "metric": name,
                    "steps": [step for step, _ in points],
                    "values": [value for _, value in points],
                    "folded": folded,
                }
            )
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _records(run: Run, stage: str) -> list[dict[str, Any]]:
    return checks.recorded(run.directory / stage)
