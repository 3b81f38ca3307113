"""Adds up a function of hidden states over the tokens that are targets, and takes its gradient.

Logits are the largest arrays there are, [B, T, V], and most tokens are no targets: prompts,
references and padding. So each row's targets are put first, and the function sees them in parts of
so many columns that its logits stay small, as long as a row has targets left. A part's gradient is
taken right after its value, so nothing of it is kept and nothing is computed twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.models.layers import WHOLE
from pit_jax.models.trees import take_columns
from pit_jax.runtime import partitioning
from pit_jax.runtime.partitioning import constrain

_LARGEST = 2**24  # logits that a device holds at once: 64 MiB of float32
_LARGEST_OF_MESH = 2**26
_PARTS = 8  # of a row, which end after its last target


def columns_of(rows: int, length: int, vocab_size: int) -> int:
    """Returns how many columns go through the head at once.

    Args:
      rows: B, of all devices together.
      length: T.
      vocab_size: V.
    """
    shape: tuple[int, ...] = (rows, length, vocab_size)
    if (partitioner := partitioning.active()) is None:
        return max(1, min(_LARGEST // (rows * vocab_size), -(-length // _PARTS)))
    # On a mesh each part's gradient is summed over it, so there are as few as memory allows.
    spec = partitioner.spec(("batch", "length", "vocab"), shape)
    shape = jax.sharding.NamedSharding(partitioner.mesh, spec).shard_shape(shape)
    return max(1, min(_LARGEST_OF_MESH // (shape[0] * shape[2]), length))


def add_up(
    function: Callable, columns: int, params: Any, hidden_BTD: jax.Array, targets: Any, is_BT: Any
) -> tuple[jax.Array, Any]:
    """Adds up what a function returns for the targets of a batch.

    Args:
      function: (params, hidden_BCD, targets [B, C, …]) -> value, extras. The value is a float32
        scalar, of which gradients are taken; the extras are a tree of further sums. Tokens that are
        no targets have to add nothing.
      columns: C, see `columns_of`.
      params: its parameters.
      hidden_BTD: the hidden states.
      targets: a tree of arrays [B, T, …] that says what each token's target is.
      is_BT: bool, which tokens are targets.

    Returns:
      value and extras, summed over all parts; the extras have no gradient.
    """
    if columns >= is_BT.shape[1]:
        return function(params, hidden_BTD, targets)
    order_BT = jnp.argsort(~is_BT, axis=1, stable=True)
    extra = -is_BT.shape[1] % columns
    count = -(-jnp.max(jnp.sum(is_BT, axis=1)) // columns)

    def first(x):
        return jnp.pad(take_columns(x, order_BT), ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2)))

    hidden_BTD = constrain(first(hidden_BTD), *WHOLE)
    return _add_up(function, columns, params, hidden_BTD, jax.tree.map(first, targets), count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _add_up(function, columns, params, hidden_BTD, targets, count):
    def part(start):
        return function(params, *_columns((hidden_BTD, targets), start, columns)), None

    return _loop(part, columns, count)[0]


def _forward(function, columns, params, hidden_BTD, targets, count):
    """Adds up the gradients too, of what has any."""
    leaves, shape = jax.tree.flatten(params)
    trained = [leaf.perturbed for leaf in leaves]
    values = [leaf.value for leaf in leaves]
    hidden_BTD, targets = hidden_BTD.value, jax.tree.map(lambda leaf: leaf.value, targets)

    def part(start):
        hidden_BCD, own = _columns((hidden_BTD, targets), start, columns)

        def value(moved, hidden_BCD):
            moved = iter(moved)
            of_all = [next(moved) if is_ else x for is_, x in zip(trained, values, strict=True)]
            return function(jax.tree.unflatten(shape, of_all), hidden_BCD, own)

        moved = [x for is_, x in zip(trained, values, strict=True) if is_]
        grad = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
        (total, extras), (moved, hidden_BCD) = grad(moved, hidden_BCD)
        return (total, extras, moved), hidden_BCD

    zeros_BTD = jnp.zeros_like(hidden_BTD)
    (total, extras, moved), hidden_BTD = _loop(part, columns, count.value, zeros_BTD)
    moved = iter(moved)
    grads = jax.tree.unflatten(shape, [next(moved) if is_ else None for is_ in trained])
    return (total, extras), (grads, hidden_BTD)


def _backward(function, columns, residuals, cotangent):
    del function, columns
    total = cotangent[0]
    grads, hidden_BTD = jax.tree.map(lambda x: (x * total).astype(x.dtype), residuals)
    return grads, hidden_BTD, None, None


_add_up.defvjp(_forward, _backward, symbolic_zeros=True)


def _columns(trees, start, columns):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, columns, axis=1), trees)


def _loop(part: Callable, columns: int, count: jax.Array, whole: Any = None) -> tuple[Any, Any]:
    """Adds up the sums of `count` parts, and puts the columns that each has into `whole`.

    Args:
      part: gives, for a part's first column, its sums and its columns, None without `whole`.
      columns: of a part.
      count: number of parts.
      whole: where columns go, [B, T, …].
    """
    sums, _ = jax.eval_shape(part, jnp.int32(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

    def add(number, carry):
        totals, whole = carry
        start = number * columns
        new, piece = part(start)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        return jax.tree.map(jnp.add, totals, new), jax.tree.map(put, whole, piece)

    return jax.lax.fori_loop(0, count, add, (zeros, whole))
