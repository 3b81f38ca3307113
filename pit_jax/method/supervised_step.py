"""One step of supervised fine-tuning or of a reward model, and the evaluation of either."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.runtime import metrics as metrics_lib
from pit_jax.runtime.microbatches import accumulate
from pit_jax.runtime.partitioning import Partitioner
from pit_jax.runtime.train_state import TrainState


def make_step(loss: Callable, partitioner: Partitioner, microbatches: int = 1) -> Callable:
    """The jitted supervised step `(state, batch) -> (state, metrics)`; donates the state.

    Args:
      loss: (params, batch) -> ((sum, weight), metrics).
      partitioner: places the program.
      microbatches: parts of the batch whose gradients are added up before the one division.
    """

    def step(state: TrainState, batch):
        def gradients(part):
            def total(params):
                (total, weight), metrics = loss(params, part)
                return total, (total, weight, metrics)

            return jax.grad(total, has_aux=True)(state.params), ()

        (grads, (total, weight, metrics)), _ = accumulate(gradients, batch, microbatches)
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-8), grads)
        state, step_metrics = state.apply_gradients(grads, total)
        return state, {**metrics, **step_metrics}

    return partitioner.jit(step, donate_argnums=0)


def evaluate(loss: Callable, params: Any, batches: Iterable, partitioner: Partitioner) -> dict:
    """Metrics over held-out batches, by name; `loss` is jitted."""
    totals: metrics_lib.Metrics = {}
    for batch in batches:
        _, metrics = loss(params, partitioner.shard_batch(batch))
        totals = metrics_lib.merge(totals, metrics)
    return metrics_lib.compute(totals)
