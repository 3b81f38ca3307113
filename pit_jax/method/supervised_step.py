"""Makes a training step of a language or reward model, and evaluates such a model's loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.models import adapters
from pit_jax.runtime import metrics as metrics_lib
from pit_jax.runtime.microbatches import accumulate
from pit_jax.runtime.partitioning import Partitioner
from pit_jax.runtime.train_state import TrainState


def make_step(loss: Callable, partitioner: Partitioner, microbatches: int = 1) -> Callable:
    """Makes the jitted supervised step, which donates the state.

    It is `(state, batch, backbone) -> (state, metrics)`. The backbone is that of a model with
    adapters, whose state has only what is trained; None, the default, for a model trained whole.

    Args:
      loss: (params, batch) -> ((sum, weight), metrics).
      partitioner: what puts the program on devices.
      microbatches: number of parts of the batch, whose gradients are added up before they are
        divided once.
    """

    def step(state: TrainState, batch, backbone=None):
        def gradients(part):
            def total(own):
                (total, weight), metrics = loss(adapters.on(backbone, own), part)
                return total, (total, weight, metrics)

            return jax.grad(total, has_aux=True)(state.params), ()

        (grads, (total, weight, metrics)), _ = accumulate(gradients, batch, microbatches)
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-8), grads)
        state, step_metrics = state.apply_gradients(grads, total)
        return state, {**metrics, **step_metrics}

    return partitioner.jit(step, donate_argnums=0)


def make_evaluation(loss: Callable, partitioner: Partitioner, microbatches: int = 1) -> Callable:
    """Makes the jitted program (params, batch) -> metrics, which takes as little memory as a step.

    Args:
      loss: (params, batch) -> ((sum, weight), metrics).
      partitioner: what puts the program on devices.
      microbatches: number of parts of the batch, whose metrics are added up.
    """

    def evaluation(params, batch):
        metrics, _ = accumulate(lambda part: (loss(params, part)[1], ()), batch, microbatches)
        return metrics

    return partitioner.jit(evaluation)


def evaluate(program: Callable, params: Any, batches: Iterable, partitioner: Partitioner) -> dict:
    """Computes metrics over held-out batches, by name; see `make_evaluation`."""
    totals: metrics_lib.Metrics = {}
    for batch in batches:
        totals = metrics_lib.merge(totals, program(params, partitioner.shard_batch(batch)))
    return metrics_lib.compute(totals)
