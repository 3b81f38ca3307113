"""Counts the checkpoints that a run keeps, and their bytes."""

from __future__ import annotations

from typing import Any

import jax

from pit_jax.run import stages
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RewardStage, RLStage, Stage
from pit_jax.runtime.partitioning import Partitioner


def kept(stage: Stage) -> list[int]:
    """Returns the steps whose checkpoints stay when a stage is complete, the last one of them.

    A reward stage also keeps the best one. Which it is isn't known before; here it is taken to be
    the first that is evaluated, so it counts beside the last one if there are two evaluations.
    """
    if isinstance(stage, RLStage):
        every = stage.keep_every or stage.steps
        return sorted({*range(every, stage.steps + 1, every), stage.steps})
    best = stage.loop.eval_every if isinstance(stage, RewardStage) else 0
    return sorted({min(best or stage.steps, stage.steps), stage.steps})


def stored(stage: Stage) -> list[int]:
    """Returns the steps whose checkpoints are on disk when a stage is complete.

    They are those of `kept`, and the last one before the last.
    """
    found, last = {*kept(stage)}, stage.steps
    evaluated = stage.loop.eval_every if isinstance(stage, RewardStage) else 0
    kept_every = stage.keep_every if isinstance(stage, RLStage) else 0
    for every in (stage.loop.checkpoint_every, evaluated, kept_every):
        found |= {(last - 1) // every * every} if every else set()
    rounds = stage.rounds if isinstance(stage, RLStage) else ()
    found |= {sum(each.steps for each in rounds[:n]) for n in range(1, len(rounds))}
    before = [step for step in found if 0 < step < last]
    return sorted({*kept(stage), *([max(before)] if before else [])})


def checkpoints(config: RunConfig, partitioner: Partitioner) -> list[dict[str, Any]]:
    """Returns for each stage its name, the number of `checkpoints` and the `bytes` of one.

    A checkpoint has all that a stage trains: parameters or adapters, optimizer state and counters.
    What orbax saves by compression isn't known before.
    """
    rows = []
    for stage in config.stages:
        state = stages.abstract_state(stage, config.networks(stage), partitioner)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        rows.append({"stage": stage.name, "checkpoints": len(stored(stage)), "bytes": size})
    return rows
