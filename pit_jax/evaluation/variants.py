"""Finds the stages of a run that are compared with the main ones, and says what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pit_jax.method import curriculum
from pit_jax.run import stages
from pit_jax.run.run import Run
from pit_jax.run.stages import RewardStage, RLStage, Stage

Labelled = tuple[tuple[str, str], ...]


def others(
    run: Run, tasks: Sequence[str], main: str, named: Sequence[tuple[str, str]] = ()
) -> Labelled:
    """Lists (label, stage) of the models that are compared with a main one.

    Args:
      run: the run.
      tasks: the tasks of such models.
      main: the stage of the main model.
      named: those that have labels, which come first, whatever their task is.

    Returns:
      `named`, and by their own names the other complete stages of the tasks, in the run's order.
    """
    listed = {main, *(stage for _, stage in named)}
    found = [name for name in _complete(run, tasks) if name not in listed]
    return (*named, *((name, name) for name in found))


def supervised(run: Run) -> Labelled:
    """Lists (label, stage) of the complete supervised PIT models, as Figure 5 calls them."""
    labels: dict[str, str] = {}
    for name in _complete(run, stages.PIT_SUPERVISED):
        task = run.stage(name).task
        label = {"sft_pit": "PIT (SFT)", "sft_pit_reflection": "PIT (SFT, CoT)"}.get(task)
        label = label or f"PIT (SFT, {task.removeprefix('sft_pit_').replace('_', ' ')})"
        labels[f"{label} {name}" if label in labels else label] = name
    return tuple(labels.items())


def kind(run: Run, name: str, pit: str) -> str:
    """Returns what a PIT model of Table 2 is, as report/write.py lists kinds.

    The paper's variants learn from the reward of its PIT; what learns from another is an ablation.

    Args:
      run: the run.
      name: the model's stage.
      pit: the stage of PIT itself.
    """
    stage, main = (_find(run, each) for each in (name, pit))
    if not isinstance(stage, RLStage):
        return "ablation"
    if isinstance(main, RLStage) and main.reward_model != stage.reward_model:
        return "ablation"
    sources = {round_.source for _, round_, *_ in curriculum.locate(stage.rounds, 0)}
    if sources == {"data"}:
        return "first_only"
    return "second_only" if sources == {"policy"} else "ablation"


def describe(run: Run, name: str) -> str:
    """Says in a few words what a stage trained: its rounds, its loss, its reward, its start."""
    stage = _find(run, name)
    if stage is None:
        return ""
    start = f" from {stage.initial}" if stage.initial else ""
    if isinstance(stage, RewardStage):
        loss = "pairwise loss"
        if stage.task == "rm_gap":
            loss = f"gap loss {stage.reward.gap_loss}"
        return f"{loss}, {stage.steps} steps{start}"
    if not isinstance(stage, RLStage):
        return f"{stage.task}, {stage.steps} steps{start}"
    rounds = [
        f"{round_.steps} steps" + ("" if round_.source == "none" else f" on {_source(round_)}")
        for round_ in stage.rounds
        if round_.steps
    ]
    return f"from {stage.initial}: {', then '.join(rounds)}; reward: {_reward(run, stage)}"


def rows(
    run: Run, groups: Mapping[str, tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]]
) -> list[dict[str, str]]:
    """Says what each model of a group is, where there are several.

    Args:
      run: the run.
      groups: (label, stage) of a group's main models, and of the others.

    Returns:
      group, label, stage and what, of each.
    """
    return [
        {"group": group, "label": label, "stage": stage, "what": describe(run, stage)}
        for group, (main, more) in groups.items()
        if more
        for label, stage in (*main, *more)
    ]


def _source(round_: curriculum.Round) -> str:
    if round_.source == "checkpoint":
        return f"references of {round_.policy} at step {round_.policy_step}"
    return {
        "data": "references from the data",
        "policy": f"references from {round_.policy}",
        "pit": f"its own improvements of {round_.policy}",
    }[round_.source]


def _reward(run: Run, stage: RLStage) -> str:
    model = _find(run, stage.reward_model)
    if stage.task == "rl_policy" or not isinstance(model, RewardStage):
        return stage.reward_model
    if model.task == "rm_gap":
        return f"{stage.reward_model} (gap loss {model.reward.gap_loss})"
    return f"difference of {stage.reward_model}’s scores"


def _complete(run: Run, tasks: Iterable[str]) -> list[str]:
    return [
        stage.name
        for stage in run.config.stages
        if stage.task in tasks and run.is_complete(stage.name)
    ]


def _find(run: Run, name: str) -> Stage | None:
    return next((stage for stage in run.config.stages if stage.name == name), None)
