"""Adds up a function of equal parts of a batch's rows, with one part in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.runtime.partitioning import constrain_rows


def split(batch: Any, parts: int) -> Any:
    """Reshapes arrays [B, …] to [parts, B / parts, …]."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def accumulate(function: Callable[[Any], tuple[Any, Any]], batch: Any, parts: int):
    """Applies a function to each part of a batch, one after the other.

    Args:
      function: gives, for a part, the arrays to add up over all parts and the arrays to keep.
      batch: arrays with rows first.
      parts: number of parts; it must divide the number of rows.

    Returns:
      the sums, and the arrays that were kept, with a leading dim of `parts`.
    """
    if parts == 1:
        total, kept = function(constrain_rows(batch))
        return total, jax.tree.map(lambda x: x[None], kept)

    def add(total, part):
        new, kept = function(constrain_rows(part))
        return jax.tree.map(jnp.add, total, new), kept

    split_batch = split(batch, parts)
    first = jax.tree.map(lambda x: x[0], split_batch)
    shapes, _ = jax.eval_shape(function, first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zero, split_batch)
