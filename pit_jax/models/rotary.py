"""Turns queries and keys by their positions, with the frequencies that each layer has."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from pit_jax.models.config import NetworkConfig


def rotary(x_BTHE: jax.Array, positions_BT: jax.Array, frequencies_I: jax.Array) -> jax.Array:
    """Turns pairs (x[i], x[i + I]) by `position * frequencies[i]` (Su et al., 2021).

    Args:
      x_BTHE: queries or keys; E is at least 2 I, and numbers beyond the first 2 I stay.
      positions_BT: int32 position of each token within its sequence.
      frequencies_I: radians that each pair turns from token to token, float32.

    Returns:
      Same shape and type as `x_BTHE`.
    """
    turning = 2 * frequencies_I.shape[0]
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequencies_I[None, None, None]
    first, second = jnp.split(x_BTHE[..., :turning].astype(jnp.float32), 2, axis=-1)
    turned = (
        first * jnp.cos(angle) - second * jnp.sin(angle),
        second * jnp.cos(angle) + first * jnp.sin(angle),
    )
    turned_BTHE = jnp.concatenate(turned, axis=-1).astype(x_BTHE.dtype)
    if turning == x_BTHE.shape[-1]:
        return turned_BTHE
    return jnp.concatenate([turned_BTHE, x_BTHE[..., turning:]], axis=-1)


def frequencies(config: NetworkConfig, layer: int = 0) -> jax.Array:
    """Returns how fast the pairs of a layer's heads turn, float32 [I]: `theta^(-i/I)`, scaled.

    A layer without rotary positions turns nothing: its frequencies are 0.
    """
    half = (config.rotary_dim or config.head_dim) // 2
    if not config.has_rotary(layer):
        return jnp.zeros(half, jnp.float32)
    local = _is_local(config, layer)
    theta = config.rope_local_theta if local else config.rope_theta
    frequencies_I = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if local or config.rope_factor == 1:
        return frequencies_I
    slow_I = frequencies_I / config.rope_factor
    if not config.rope_original_length:
        return slow_I
    turns_I = config.rope_original_length * frequencies_I / (2 * math.pi)
    kept_I = (turns_I - config.rope_low) / (config.rope_high - config.rope_low)
    kept_I = jnp.clip(kept_I, 0.0, 1.0)
    return (1 - kept_I) * slow_I + kept_I * frequencies_I


def frequencies_of_layers(config: NetworkConfig) -> jax.Array | None:
    """Returns the `frequencies` of all layers, float32 [L, I]; None if they are the same."""
    layers = range(config.num_layers)
    if len({(config.has_rotary(layer), _is_local(config, layer)) for layer in layers}) == 1:
        return None
    return jnp.stack([frequencies(config, layer) for layer in layers])


def _is_local(config: NetworkConfig, layer: int) -> bool:
    return config.rope_local_theta > 0 and config.window_of(layer) > 0
