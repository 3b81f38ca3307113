"""Runs the training loop of every stage; what a step does is an argument.

The loop itself only counts, logs, evaluates and checkpoints.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.checked import at_least, checked
from pit_jax.errors import Interrupted, NotFiniteError
from pit_jax.runtime import metrics as metrics_lib
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.signals import Signals

MAX_SKIPPED_IN_ROW = 10


@dataclasses.dataclass
class Progress:
    """Says how far a stage has come; every checkpoint keeps it.

    Attributes:
      step: number of steps done.
      seconds: wall time spent on them, over all interruptions.
      tokens: number of real tokens processed.
      flops: model FLOPs done, as method/flops.py counts them.
      best: the evaluation on held-out data with the highest `accuracy`, all its metrics, and its
        `step`.
      accuracy: the `accuracy` of the newest evaluation; -1 before the first.
      pending: sum and weight of each metric since the last record, where a signal came between two
        records; the next record then holds what it would have held without the signal.
      pending_seconds: the wall time since then, which `seconds` doesn't count yet.
      records: what JsonlWriter.written says of the stage's records up to here, which are compared
        with it when the stage goes on; nothing in checkpoints of versions that didn't say it.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    accuracy: float = -1.0
    pending: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    pending_seconds: float = 0.0
    records: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
@checked
class LoopConfig:
    """Says how often the loop logs, saves and evaluates.

    Attributes:
      log_every: steps between records of metrics.
      checkpoint_every: steps between checkpoints; with 0 there is one at the end only.
      eval_every: steps between evaluations on held-out data; with 0 there is one at the end only.
    """

    log_every: int = dataclasses.field(default=10, metadata={"changes_result": False})
    checkpoint_every: int = dataclasses.field(default=200, metadata={"changes_result": False})
    eval_every: int = 0

    def __post_init__(self):
        at_least(self, 0, "log_every", "checkpoint_every", "eval_every")


def fit(
    state: Any,
    step: Callable[[Any, Any, int], tuple[Any, metrics_lib.Metrics, Callable[[], dict[str, str]]]],
    batches: Iterator[Any],
    progress: Progress,
    stop: int,
    loop: LoopConfig,
    writer: metrics_lib.MetricWriter,
    checkpoints: Checkpoints,
    held_out: Callable[[Any], dict[str, float]] | None = None,
    keep_every: int = 0,
    peak: float = 0.0,
    wrap: Callable[[Callable], Callable] = lambda step: step,
    signals: Signals | None = None,
) -> Any:
    """Runs steps `progress.step` to `stop`, writes a checkpoint and returns the last state.

    Args:
      state: what a step changes; a TrainState or RLState.
      step: (state, batch, step number) -> new state, metrics, and a function that gives sample
        texts. The sums of the metrics `tokens` and `model_flops` become rates.
      batches: the batches from step `progress.step` on.
      progress: how far the stage has come; it is changed in place.
      stop: number of the last step.
      loop: how often to log, evaluate and checkpoint.
      writer: what the metrics are written to.
      checkpoints: what the state is saved to.
      held_out: state -> metrics on held-out data; its `accuracy` chooses the best checkpoint.
      keep_every: a checkpoint is also written at each multiple of this step.
      peak: operations a second of all devices; 0 where it isn't known.
      wrap: makes of the step another one, as a profiler does.
      signals: asked after every step whether to stop; with None the loop never stops early.

    Raises:
      NotFiniteError: see check_finite and check_state; the last good checkpoint is kept.
      Interrupted: by a signal, once the checkpoint of its step is written, or can't be.
    """
    step = wrap(step)
    pending: metrics_lib.Metrics = {name: (*pair,) for name, pair in progress.pending.items()}
    clock = time.monotonic() - progress.pending_seconds
    progress.pending, progress.pending_seconds = {}, 0.0
    while progress.step < stop:
        state, metrics, texts = step(state, next(batches), progress.step)
        progress.step += 1
        pending = metrics_lib.merge(pending, metrics)
        last = progress.step == stop
        stopping = signals.asked(wait=last) if signals else 0
        evaluating = held_out is not None and (last or _due(progress.step, loop.eval_every))
        saving = last or evaluating or _due(progress.step, loop.checkpoint_every)
        saving = saving or _due(progress.step, keep_every)
        recording = saving or _due(progress.step, loop.log_every)
        if not (recording or stopping):
            continue
        if recording:
            check_finite(state, progress.step, checkpoints)
            seconds, clock = time.monotonic() - clock, time.monotonic()
            scalars, pending = _recorded(pending, seconds, peak, progress), {}
            if evaluating and held_out is not None:
                results = held_out(state)
                scalars |= {f"held_out_{name}": value for name, value in results.items()}
                progress.accuracy = results.get("accuracy", -1.0)
                if progress.accuracy > progress.best.get("accuracy", -1.0):
                    progress.best = results | {"step": progress.step}
            writer.write(progress.step, scalars, texts())
        else:  # an uninterrupted run has no record here, so neither has this one
            progress.pending = _on_host(pending)
            progress.pending_seconds = time.monotonic() - clock
        if saving or stopping:
            check_state(state, progress.step, checkpoints)
            if last:
                check_finite(state, progress.step, checkpoints, last)
            progress.records = writer.written()
            checkpoints.save(progress.step, state, dataclasses.asdict(progress), writer.flush)
        if stopping:
            checkpoints.wait()
            raise Interrupted(stopping, checkpoints.latest_step() or 0)
        progress.seconds += time.monotonic() - clock
        clock = time.monotonic()
    checkpoints.wait()
    return state


def _recorded(
    pending: metrics_lib.Metrics, seconds: float, peak: float, progress: Progress
) -> dict[str, float]:
    """Makes a record of the steps since the one before, and counts them in the progress."""
    tokens, flops = (float(pending.pop(name)[0]) for name in ("tokens", "model_flops"))
    progress.seconds += seconds
    progress.tokens += tokens
    progress.flops += flops
    return metrics_lib.compute(pending) | rates(tokens, flops, seconds, peak)


def _on_host(pending: metrics_lib.Metrics) -> dict[str, tuple[float, float]]:
    """Sums as Python's numbers, which hold every float32 and int32 as it is."""
    return {
        name: (np.asarray(total).item(), np.asarray(weight).item())
        for name, (total, weight) in pending.items()
    }


def rates(tokens: float, flops: float, seconds: float, peak: float) -> dict[str, float]:
    """Returns real tokens and model TFLOPs a second, and `mfu`, the share of `peak`, if known."""
    found = {
        "tokens_per_second": tokens / seconds,
        "model_tflops_per_second": flops / seconds / 1e12,
    }
    return found | ({"mfu": flops / seconds / peak} if peak else {})


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def check_finite(
    state: Any, step: int, checkpoints: Checkpoints | None = None, last: bool = False
) -> None:
    """Refuses to go on after many steps in a row that changed nothing, or to end with one.

    Args:
      state: the state after a step.
      step: the number of the step.
      checkpoints: those of the stage, which the message names; None if another library has them.
      last: whether it is the stage's last step.

    Raises:
      NotFiniteError: after ten steps whose loss or gradient wasn't finite, or one at the end.
    """
    skipped = int(state.train.skipped_in_row)
    if skipped >= MAX_SKIPPED_IN_ROW or (last and skipped):
        steps = f"the last {skipped} steps" if skipped > 1 else "the last step"
        raise NotFiniteError(
            f"step {step}: loss or gradient was not finite in {steps}; stopped. "
            + _way_out(checkpoints)
        )


def _way_out(checkpoints: Checkpoints | None) -> str:
    """What to do where training has broken off, and from which checkpoint it then goes on."""
    if checkpoints is not None:
        checkpoints.wait()
    if checkpoints is None or not (steps := checkpoints.all_steps()):
        return "Lower the learning rate, or look at the batch's data"
    text = f"To go on from step {steps[-1]}, lower the learning rate and give --allow_change"
    if steps[:-1]:
        text += f"; to go on from step {steps[-2]}, also delete {checkpoints.directory}/{steps[-1]}"
    return f"{text}. Or look at the batch's data"


def check_state(state: Any, step: int, checkpoints: Checkpoints | None = None) -> None:
    """Refuses to save a state in which a number isn't finite.

    Raises:
      NotFiniteError: which array it is in.
    """
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]
    ]
    finite = jax.device_get(_are_finite(state))
    if wrong := [name for name, good in zip(names, finite, strict=True) if not good]:
        raise NotFiniteError(
            f"step {step}: {wrong[0]} is not finite; no checkpoint of it is written. "
            + _way_out(checkpoints)
        )


@jax.jit
def _are_finite(state: Any) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]
