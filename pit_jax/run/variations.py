"""Puts variations of a run into one run, in which stages that are the same are there once.

A variation is the run with other settings of some stages. A stage of it is the same as one that is
there already if all its settings are, and what it builds on is the same too; then the two are one.
Any other stage is added under a name of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pit_jax.errors import UserError
from pit_jax.run.config import RunConfig
from pit_jax.run.directory import MODEL_FIELDS
from pit_jax.run.stages import RLStage, Stage

BASE = "base"  # what the run itself is called among its variations


@dataclasses.dataclass(frozen=True)
class Merged:
    """Holds a run with its variations.

    Attributes:
      config: the run with the stages of all variations, each after those that it builds on.
      names: of BASE and of each variation, what its stages are called here, by their own names.
    """

    config: RunConfig
    names: dict[str, dict[str, str]]

    def users(self, stage: str) -> list[str]:
        """Returns BASE and the variations that a stage is of."""
        return [label for label, names in self.names.items() if stage in names.values()]


def merge(base: RunConfig, variations: Mapping[str, RunConfig]) -> Merged:
    """Adds to a run the stages in which its variations differ from it and from each other.

    A stage that is added is called `STAGE_VARIATION`, or by its own name if the run has none of it.

    Args:
      base: the run.
      variations: name of each variation -> the run as it varies it.

    Raises:
      UserError: for a variation that changes nothing, or more than stages.
    """
    stages = {stage.name: stage for stage in base.stages}
    names = {BASE: {name: name for name in stages}}
    for label, config in variations.items():
        _check_shared(label, base, config)
        found: dict[str, str] = {}
        for stage in config.stages:
            wanted = _building_on(stage, found)
            found[stage.name] = _place(wanted, stages, label)
            stages.setdefault(
                found[stage.name], dataclasses.replace(wanted, name=found[stage.name])
            )
        if found.items() <= names[BASE].items():
            raise UserError(f"--vary: {label} changes no stage, expected another setting of one")
        names[label] = found
    return Merged(dataclasses.replace(base, stages=tuple(stages.values())), names)


def _place(stage: Stage, stages: Mapping[str, Stage], label: str) -> str:
    """Returns the name of the stage that is the same, or one that is free."""
    candidates = (stage.name, *(name for name in stages if name != stage.name))
    for name in candidates:
        if name in stages and dataclasses.replace(stage, name=name) == stages[name]:
            return name
    name = f"{stage.name}_{label}" if stage.name in stages else stage.name
    if name in stages:
        raise UserError(f"--vary: {label}: the run has another stage {name!r}, expected no such")
    return name


def _building_on(stage: Stage, names: Mapping[str, str]) -> Stage:
    """A stage that builds on others by their names here; a path stays as it is."""
    own = {field: getattr(stage, field, "") for field in MODEL_FIELDS}
    changes: dict[str, Any] = {
        field: names.get(value, value) for field, value in own.items() if value
    }
    if isinstance(stage, RLStage):
        changes["rounds"] = tuple(
            dataclasses.replace(each, policy=names.get(each.policy, each.policy))
            for each in stage.rounds
        )
    return dataclasses.replace(stage, **changes)


def _check_shared(label: str, base: RunConfig, config: RunConfig) -> None:
    for field in dataclasses.fields(base):
        name = field.name
        if name != "stages" and getattr(base, name) != getattr(config, name):
            raise UserError(
                f"--vary: {label} changes RunConfig.{name}, expected changes of stages alone: all "
                "stages of a run share it. `run` it in another MODEL_DIR"
            )
