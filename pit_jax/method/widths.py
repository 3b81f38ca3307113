"""Cuts rows of prompt and response to what a part of a batch needs, of a few widths.

Windows are for the longest text, and most rows fill a quarter of one. A program can't have as many
shapes as there are lengths, so it has a few widths, and each part of a batch goes through the
network in the least that its longest row fits in. What rows give doesn't depend on the width, but
for rounding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.method.ppo import PPOConfig
from pit_jax.models import adapters, kernels
from pit_jax.models.config import NetworkConfig

_LEAST = 48  # columns, below which a width saves nothing
_MOST_LAYERS = 32  # that a program has written out for all widths of a model


def ladder(length: int, count: int) -> tuple[int, ...]:
    """Returns up to `count` widths in equal steps, multiples of 8, the last of them `length`."""
    if length < 2 * _LEAST:
        return (length,)
    steps = {-(-length * n // (8 * count)) * 8 for n in range(1, count)}
    return (*sorted(width for width in steps if _LEAST <= width < length), length)


def affordable(config: PPOConfig, *networks: NetworkConfig) -> PPOConfig:
    """Leaves as many widths as deep networks can be compiled for.

    Where each layer is written out by itself, it is so for each width. Of four widths of 30 layers
    XLA made a program with 20 GB of memory.
    """
    layers = max((n.num_layers for n in networks if kernels.written_out(n)), default=0)
    most = max(1, _MOST_LAYERS // layers) if layers else config.widths
    return dataclasses.replace(config, widths=min(config.widths, most))


def lengths_of(prompt_BP: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Counts the real tokens of each row of a prompt and a response, int32 [B]."""
    return jnp.sum(prompt_BP != PAD_ID, axis=1) + jnp.sum(mask_BR > 0, axis=1)


def by_length(prompt_BP: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Returns the numbers of rows from the shortest to the longest, int32 [B]."""
    return jnp.argsort(lengths_of(prompt_BP, mask_BR), stable=True)


def chosen(lengths_B: jax.Array, widths: tuple[int, ...]) -> jax.Array:
    """Returns which of the widths is the least that rows of such lengths fit in, int32 []."""
    return jnp.sum(jnp.max(lengths_B) > jnp.asarray(widths[:-1], jnp.int32))


def mean_width(
    prompt_BP: jax.Array, mask_BR: jax.Array, order_B: jax.Array, config: PPOConfig
) -> jax.Array:
    """Returns how wide the rows of the parts are on average, where they hold all tokens."""
    widths = ladder(prompt_BP.shape[1] + mask_BR.shape[1], config.widths)
    of_parts = lengths_of(prompt_BP, mask_BR)[order_B].reshape(config.parts, -1)
    numbers = jax.vmap(lambda lengths_B: chosen(lengths_B, widths))(of_parts)
    return jnp.mean(jnp.asarray(widths, jnp.float32)[numbers])


def at_width(function: Callable[[int], Any], widths: tuple[int, ...], number: jax.Array) -> Any:
    """Calls a function with the width of this number, of which each has a program of its own."""
    if len(widths) == 1:
        return function(widths[0])
    return jax.lax.switch(number, [functools.partial(function, width) for width in widths])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fitted(function, widths, backbone, own, rows, number):
    params = adapters.on(backbone, own)
    return at_width(lambda width: function(params, rows, width), widths, number)


def _forward(function, widths, *given):
    return _fitted(function, widths, *given), given


def _backward(function, widths, given, cotangent):
    backbone, own, rows, number = jax.lax.optimization_barrier(given)

    def gradient(width):
        def at_own(own):
            return function(adapters.on(backbone, own), rows, width)

        return jax.vjp(at_own, own)[1](cotangent)[0]

    return None, at_width(gradient, widths, number), None, None


_fitted.defvjp(_forward, _backward)


def fitted(
    function: Callable, widths: tuple[int, ...], params: Any, rows: Any, lengths_B: jax.Array
) -> Any:
    """Applies a function of a model and rows at the least width that the rows fit in.

    For gradients the forward pass is done again, as with `jax.checkpoint`: a program that chooses
    between widths would keep room for what each of them has to remember.

    Args:
      function: (params, rows, width) -> arrays, whose shapes don't depend on the width.
      widths: what to choose from, see `ladder`.
      params: the model's parameters, a tree or an adapters.Adapted, of which `own` has a gradient.
      rows: a tree of arrays.
      lengths_B: columns that each row needs.
    """
    backbone, own = None, params
    if isinstance(params, adapters.Adapted):
        backbone, own = params.backbone, params.own
    return _fitted(function, widths, backbone, own, rows, chosen(lengths_B, widths))
