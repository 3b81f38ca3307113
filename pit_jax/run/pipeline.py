"""Trains a run's stages in order, and skips, resumes or refuses each as its folder says.

Giving the same command again continues at the last checkpoint.

`config.gin` in the run directory starts the same run again by itself. The first process writes it
whenever a stage is about to be trained, so it is the configuration that last trained one: the
controls of the quickstart, trained in its directory, replace its file by their own, a superset. A
command that is refused, or finds all stages complete and their checkpoints chosen, leaves it as it
is.
"""

from __future__ import annotations

from typing import Any

from pit_jax.files import write_whole
from pit_jax.run import checks, choosing, loading, sources, stage_training
from pit_jax.run import directory as run_directory
from pit_jax.run.run import Run
from pit_jax.runtime import processes


def train_all(run: Run) -> None:
    """Trains every stage that isn't complete, in order; for the errors see `train`."""
    for stage in run.config.stages:
        checks.check(run, stage.name)
    for stage in run.config.stages:
        train(run, stage.name)


def train(run: Run, name: str) -> dict[str, Any]:
    """Trains one stage, from its last checkpoint if there is one; returns its result.

    The checkpoint of an RL stage is then chosen, where it has a `choice`; also of one that was
    complete before.

    Raises:
      UserError: if its folder holds a stage with other settings, what it starts from isn't
        trained, or `checks.check` refuses it.
    """
    stage = run.stage(name)
    checks.check(run, name)
    complete = run.is_complete(name)
    for model in () if complete else run_directory.models_of(stage):
        if run.is_complete(model):
            run.result(model)  # refuses one whose checkpoint isn't chosen yet
    identity = loading.identity(run, run.role_name(stage), run.config.networks(stage).actor.lora)
    folder, settings = run.folder(name), run.settings(stage)
    models = sources.of_models(run, stage)
    run_directory.claim(folder, settings, identity, run.data.digest, models, run.allow_change)
    due = choosing.is_due(run, stage)
    if complete and not due:
        print(f"{name}: complete, skipped", flush=True)
        return run.result(name)
    if run.config_text and processes.is_first():
        write_whole(run.directory / "config.gin", run.config_text)
    if not complete:
        stage_training.train(run, stage)
    if due:
        choosing.choose(run, stage, anew=not complete)
    return run.result(name)
