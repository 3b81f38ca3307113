"""Counts what it costs to train a run's stages with several seeds, and estimates the time."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

from pit_jax.plan import storage
from pit_jax.plan.programs import programs
from pit_jax.run import directory as run_directory
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.runtime.partitioning import Partitioner


@dataclasses.dataclass(frozen=True)
class Cost:
    """Says what a stage costs.

    Attributes:
      stage: its name.
      steps: its steps.
      flops: model FLOPs of all its steps, as a plan counts them: with padding, and every response
        of its full length.
      size: bytes of the checkpoints that stay.
      left: for each run, the share of its steps that is still to be done, from 1 to 0.
      seconds: the time of all its steps in one run; None if nothing says it.
      source: where the time comes from: `measured`; `as STAGE`, at the speed of this stage, which
        is of the same task; `plan`; empty if nothing says it.
    """

    stage: str
    steps: int
    flops: float
    size: float
    left: tuple[float, ...]
    seconds: float | None
    source: str

    @property
    def to_do(self) -> float:
        """How many times the whole stage is still to be trained."""
        return sum(self.left)


def costs(
    runs: Sequence[Run], partitioner: Partitioner, planned: Mapping[str, float] | None = None
) -> list[Cost]:
    """Returns what each stage of some runs costs, which differ in seed and directory alone.

    Args:
      runs: the runs; what is trained of them is measured.
      partitioner: the mesh.
      planned: name of a stage -> seconds by a plan, for what isn't measured.

    Raises:
      UserError: for a damaged result of a stage.
    """
    config = runs[0].config
    flops: dict[str, float] = collections.defaultdict(float)
    for program in programs(config, partitioner):
        flops[program.stage] += program.flops * program.runs
    disk = {row["stage"]: row for row in storage.checkpoints(config, partitioner)}
    measured = {stage.name: _measured(runs, stage.name) for stage in config.stages}
    found = []
    for stage in config.stages:
        seconds, source = _time(config, stage.name, flops, measured, planned or {})
        row = disk[stage.name]
        left = tuple(1 - _done(run, stage.name) for run in runs)
        size = row["bytes"] * row["checkpoints"]
        found.append(Cost(stage.name, stage.steps, flops[stage.name], size, left, seconds, source))
    return found


def _measured(runs: Sequence[Run], name: str) -> list[float]:
    paths = [run.folder(name) / "result.json" for run in runs if run.is_complete(name)]
    return [run_directory.read_json(path)["seconds"] for path in paths]


def _done(run: Run, name: str) -> float:
    if run.is_complete(name):
        return 1.0
    return max(run_directory.steps(run.folder(name)), default=0) / run.stage(name).steps


def _time(
    config: RunConfig,
    name: str,
    flops: Mapping[str, float],
    measured: Mapping[str, Sequence[float]],
    planned: Mapping[str, float],
) -> tuple[float | None, str]:
    if times := measured[name]:
        return sum(times) / len(times), "measured"
    tasks = {stage.name: stage.task for stage in config.stages}
    for other, times in measured.items():
        if times and tasks[other] == tasks[name] and flops[other]:
            return flops[name] / flops[other] * sum(times) / len(times), f"as {other}"
    return (planned[name], "plan") if name in planned else (None, "")
