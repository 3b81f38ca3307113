"""Refuses, before the first step, what a stage's configuration already shows to be a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.datasets import MixtureConfig
from pit_jax.data.layouts import TASK_FOLDS, UNLIKELY
from pit_jax.errors import UserError
from pit_jax.method.roles import POLICY
from pit_jax.run import directory as run_directory
from pit_jax.run import loading, sources, stages
from pit_jax.run.run import Run
from pit_jax.run.settings_diff import Change
from pit_jax.run.stages import RewardStage, RLStage, Stage
from pit_jax.runtime import records
from pit_jax.runtime.checkpoints import Checkpoints

# Tasks whose models can stand in a role. A warm-up has learned the layouts of both models.
POLICY_TASKS = ("pretrain", "sft_policy", "rl_policy")
PIT_TASKS = ("pretrain", "sft_pit", *UNLIKELY, *stages.PIT_RL)
LANGUAGE_TASKS = (*dict.fromkeys(POLICY_TASKS + PIT_TASKS), "sft_pit_reflection")

_EVALUATED = {
    "sft": POLICY_TASKS,
    "policy": POLICY_TASKS,
    "pit": (*PIT_TASKS, "sft_pit_reflection"),
    "reward_model": ("rm_policy",),
    "gap_model": ("rm_gap",),
}


def check(run: Run, name: str) -> list[Change]:
    """Refuses a stage that could only fail once it, or one before it, has been trained for hours.

    Returns:
      the rates that the stage would go on with, which `run.allow_change` lets be lower.

    Raises:
      UserError: if the mesh can't split its batches, its data doesn't fill one, or what it builds
        on is missing, comes after it, is of a kind that doesn't suit, or won't have kept a
        checkpoint; if its critic can't read what its reward model reads; or if its folder holds
        another stage, or something damaged; or if what it builds on was trained on other examples.
    """
    stage = run.stage(name)
    _check_rows(run, stage)
    of_stage = run.settings(stage), run.data.digest, sources.of_models(run, stage)
    lowered = run_directory.check_claim(run.folder(name), *of_stage, run.allow_change)
    for below in run_directory.built_on(run.config, stage)[1:]:
        run_directory.check_data(run.folder(below.name), run.data.digest)
    if isinstance(stage, RLStage) and stage.choice:
        check_split(run, "dev", f"stage {name}: its checkpoint is chosen on")
    if run.is_complete(name):
        run.task_of(name)
        return lowered
    _check_data(run, stage)
    if run.config.networks(stage).actor.lora:
        loading.check_start(run, stage, stage.initial, run.role_name(stage))
    for field, other, tasks in _builds_on(stage):
        _check_model(run, stage, field, other, tasks)
    if isinstance(stage, RLStage):
        if stage.ppo.critic_start == "reward" and run.reward_data(stage) is not None:
            raise UserError(
                f"stage {name}: got critic_start='reward', expected 'actor': its reward model has "
                "another vocabulary"
            )
        for round_ in stage.rounds:
            if round_.source == "checkpoint" and round_.steps:
                _check_kept(run, stage, round_.policy, round_.policy_step)
    return lowered


def check_models(run: Run, names: Iterable[str]) -> None:
    """Refuses models that aren't there, or that mean something else in this run.

    Args:
      run: the run.
      names: of stages, or paths of stages' folders.

    Raises:
      UserError: for the first one that can't be loaded.
    """
    for name in dict.fromkeys(names):
        result = run.result(name)
        if run.is_complete(name):
            loading.check(run, name, run.role_name(name))
            checkpoints = Checkpoints(run.folder(name) / "checkpoints", read_only=True)
            checkpoints.check_step(result["model_step"])
            checkpoints.close()


def check_records(run: Run) -> None:
    """Refuses what a stage has recorded, if it can't be read, before hours of evaluation.

    Raises:
      UserError: if a complete stage's metrics are missing or damaged.
    """
    for stage in run.config.stages:
        if run.is_complete(stage.name):
            recorded(run.folder(stage.name))


def recorded(folder: epath.Path) -> list[dict[str, Any]]:
    """Returns what a complete stage has recorded, see records.read_jsonl.

    Raises:
      UserError: if it isn't there, or isn't what was written.
    """
    result = folder / "result.json"
    written = run_directory.read_json(result).get("records", {}) if result.exists() else {}
    return records.read_jsonl(folder / records.NAME, written)


def check_there(model_dir: str) -> None:
    """Refuses a run directory that isn't there.

    Raises:
      UserError: if it isn't; the run beside it whose name is nearest is named.
    """
    directory = epath.Path(model_dir)
    if directory.is_dir():
        return
    beside = {}
    if files.is_local(directory) and directory.parent.is_dir():
        beside = {each.name: each for each in directory.parent.iterdir() if _is_run(each)}
    near = difflib.get_close_matches(directory.name, beside, 1)
    hint = f"; did you mean {beside[near[0]]}?" if near else ""
    if beside and not near:
        hint = f"; beside it there are {', '.join(sorted(beside)[:5])}"
    raise UserError(f"no such run: {directory}{hint}")


def _is_run(folder: epath.Path) -> bool:
    return folder.is_dir() and any((each / "stage.json").exists() for each in folder.iterdir())


def _check_rows(run: Run, stage: Stage) -> None:
    stages.check_mesh(stage, run.role_of(stage).network, run.partitioner)
    rows = run.partitioner.row_shards
    if run.config.sampling_batch % rows:
        raise UserError(
            f"run: got sampling_batch={run.config.sampling_batch}, expected a multiple of "
            f"{rows}: rows are split over slices x data of the mesh"
        )


def _check_data(run: Run, stage: Stage) -> None:
    """Refuses a stage whose fold doesn't fill a batch, or that has nothing to be evaluated on."""
    task, data = stages.rows_of(stage), run.data_of(stages.role_of(stage))
    rounds = stage.rounds if isinstance(stage, RLStage) else ()
    for sampled in {round_.is_sampled for round_ in rounds if round_.steps} or {False}:
        bounds = data.row_bounds(task, "train", stage.batch_size, sampled=sampled)
        rows = sum(most for _, most in bounds.values())
        if rows < stage.batch_size:
            raise UserError(
                f"stage {stage.name}: its fold of the train split has {rows} rows, expected at "
                f"least batch_size={stage.batch_size}; {run.data.counts()}"
            )
        mixture = run.config.dataset
        empty = [part for part, (_, most) in bounds.items() if most == 0]
        if empty and isinstance(mixture, MixtureConfig) and mixture.rates:
            why = f"the mixture draws from {empty[0]}, which has no rows"
            raise UserError(f"stage {stage.name}: {why}")
    packed, widths = data.batching.packed_length, data.feature_lengths(task)
    if "inputs" in widths and 0 < packed < widths["inputs"] + widths["targets"]:
        data.num_rows(task, "train")  # refuses rows for a longer example
    if task == "sft_pit_reflection":
        _check_reflections(run, stage)
    if isinstance(stage, RewardStage):
        check_split(run, "dev", f"stage {stage.name}: it is evaluated on")


def _check_reflections(run: Run, stage: Stage) -> None:
    """Refuses to learn reflections without a window for them, or from examples that have none."""
    if not run.role_of(stage).lengths.reflection:
        raise UserError(
            f"stage {stage.name}: got Lengths.reflection=0, expected the most tokens of a "
            "reflection and <<Improved>>"
        )
    examples = run.data.examples("train", TASK_FOLDS[stage.task])
    without = sum(not example.reflection for example in examples)
    if without:
        raise UserError(
            f"stage {stage.name}: {without} of the {len(examples)} examples that it learns from "
            "have no reflection, expected one in each"
        )


def check_evaluated(run: Run, evaluation: Any) -> None:
    """Refuses stages that can't stand where an EvaluationConfig names them.

    Raises:
      UserError: for one that isn't in the run, or of a task with another layout.
    """
    for name in evaluation.stages:
        run.stage(name)
    for field, tasks in _EVALUATED.items():
        name = getattr(evaluation, field)
        if (task := run.stage(name).task) not in tasks:
            raise UserError(
                f"EvaluationConfig.{field}: got {name!r}, which is of task {task}, expected a "
                f"stage of task {' or '.join(tasks)}"
            )


def check_split(run: Run, split: str, why: str) -> None:
    """Refuses to look at a split that has no examples.

    Raises:
      UserError: if it has none; `why` opens the message.
    """
    if not sum(most for _, most in run.data.row_bounds("sft_policy", split, 1).values()):
        raise UserError(f"{why} split {split!r}, which has no examples; {run.data.counts()}")


def _builds_on(stage: Stage) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(field, stage that it names, tasks that suit) of everything a stage takes a model from."""
    if not isinstance(stage, RLStage):
        if stage.initial:
            yield "initial", stage.initial, LANGUAGE_TASKS
        return
    own = POLICY_TASKS if stage.task == "rl_policy" else PIT_TASKS
    yield "initial", stage.initial, own
    yield "reference", stage.reference, own
    yield "reward_model", stage.reward_model, (stages.REWARD_TASK_OF[stage.task],)
    for number, round_ in enumerate(stage.rounds):
        if round_.is_sampled and round_.steps:
            yield f"policy of round {number}", round_.policy, POLICY_TASKS


def _check_model(run: Run, stage: Stage, field: str, other: str, tasks: tuple[str, ...]) -> None:
    role = POLICY if field.startswith("policy") else stages.role_of(stage)
    names = [each.name for each in run.config.stages]
    if other in names and not run.is_complete(other) and not run.is_from_t5x(other):
        task = run.stage(other).task
        if names.index(other) >= names.index(stage.name):
            raise UserError(
                f"stage {stage.name}: {field} is {other!r}, which comes after it; expected a stage "
                "before it, or one that is trained"
            )
    elif other and other not in names and run.is_from_t5x(other):
        return  # T5X's checkpoints don't say which task they are of
    elif other in names or "/" in other:
        task = run.task_of(other, role)
    else:
        raise UserError(
            f"stage {stage.name}: {field} is {other!r}, expected a stage of the run "
            f"({', '.join(names)}) or the path of a stage's folder"
        )
    if task not in tasks:
        raise UserError(
            f"stage {stage.name}: {field} {other!r} is of task {task}, whose layout differs; "
            f"expected one of task {' or '.join(tasks)}"
        )


def _check_kept(run: Run, stage: RLStage, policy: str, step: int) -> None:
    """Refuses a round that samples from a checkpoint which its policy won't have kept."""
    if run.is_complete(policy):
        checkpoints = Checkpoints(run.folder(policy) / "checkpoints", read_only=True)
        kept = checkpoints.all_steps()
        checkpoints.close()
        if step in kept:
            return
        raise UserError(
            f"stage {stage.name}: a round samples from step {step} of {policy!r}, which has kept: "
            f"{', '.join(map(str, kept))}"
        )
    trained = run.stage(policy)
    every = trained.keep_every if isinstance(trained, RLStage) else 0
    if step > trained.steps or (step != trained.steps and (not every or step % every)):
        raise UserError(
            f"stage {stage.name}: a round samples from step {step} of {policy!r}, which has "
            f"{trained.steps} steps and keep_every={every}; expected a multiple of its keep_every"
        )
