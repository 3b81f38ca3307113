"""Cuts a batch of episodes into the parts that pass through the networks one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.method.ppo import Experience, PPOConfig
from pit_jax.method.widths import lengths_of
from pit_jax.runtime.microbatches import split
from pit_jax.runtime.partitioning import constrain_rows


def in_parts(
    function: Callable, episodes: Any, config: PPOConfig, order_B: jax.Array | None = None
) -> Any:
    """Applies a per-episode function in parts of the size that the update uses.

    The same shapes as in the update give the same floating-point results, so the first ratio of
    an update is exactly 1, and no more activations live at once than in the update.

    Args:
      function: gives arrays of a row for each episode.
      episodes: a tree of arrays with a row for each episode.
      config: PPO's settings.
      order_B: the order in which episodes go into parts; that in which they are by default.

    Returns:
      the function's arrays, in the episodes' own order.
    """
    if order_B is not None:
        episodes = jax.tree.map(lambda x: x[order_B], episodes)
    parts = split(episodes, config.parts)
    out = jax.lax.map(lambda part: function(constrain_rows(part)), parts)
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if order_B is None:
        return out
    back_B = jnp.argsort(order_B)
    return jax.tree.map(lambda x: x[back_B], out)


def orders(episodes: Experience, key: jax.Array, config: PPOConfig) -> list[jax.Array]:
    """Draws each epoch's minibatches, whose microbatches are of episodes of like lengths.

    Args:
      episodes: the episodes.
      key: what they are shuffled with, anew for each epoch.
      config: PPO's settings.

    Returns:
      for each epoch the numbers of the episodes, int32 [minibatches, episodes of a minibatch].
    """
    lengths_B = lengths_of(episodes.critic_prompt_BQ, episodes.mask_BR)
    drawn = []
    for each in jax.random.split(key, config.epochs):
        order_NB = jax.random.permutation(each, len(lengths_B)).reshape(config.minibatches, -1)
        if config.microbatches > 1 and config.widths > 1:
            by_length_NB = jnp.argsort(lengths_B[order_NB], axis=1, stable=True)
            order_NB = jnp.take_along_axis(order_NB, by_length_NB, axis=1)
        drawn.append(order_NB)
    return drawn
