"""Tiny networks and random parameters shared by the tests."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models.attention import causal_mask
from pit_jax.models.config import NetworkConfig

TINY = NetworkConfig(
    vocab_size=16,
    embed_dim=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=12,
    activation="silu",
    tied_embeddings=True,
    scale_embeddings=False,
    scale_attention=True,
    scale_logits=False,
    positions="rotary",
    rope_theta=100.0,
    norm_epsilon=1e-6,
    dtype="float32",
    remat="none",
)

WIDTH = 8


def abstract_params(model):
    """Boxed shapes of a model's parameters, nothing computed."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    inputs = (tokens, tokens, jnp.ones((1, 2, 2), bool))
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def random_params(model, seed=0):
    """Unboxed float32 parameters, all of them random: scales of norms too."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = jax.tree_util.keystr(path)
        values = rng.normal(0, 1, leaf.shape)
        if "scale" in names:
            values = 1 + 0.2 * values
        elif "kernel" in names:
            values = values * 0.4
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(abstract_params(model)))


def inputs_of(segments):
    """Positions and mask of segment ids [B, T]; positions restart in each segment, 0 is padding."""
    segments = np.asarray(segments)
    positions = np.zeros(segments.shape, np.int32)
    for n in range(1, segments.max(initial=0) + 1):
        here = segments == n
        positions = np.where(here, here.cumsum(axis=1) - 1, positions)
    return positions, causal_mask(jnp.asarray(segments))


@functools.partial(jax.jit, static_argnames="model")
def run_model(model, params, tokens, positions, mask):
    """`model.apply`, compiled once for each model and shape."""
    return model.apply({"params": params}, tokens, positions, mask)


def apply_model(model, params, tokens, segments):
    """Outputs for tokens packed by segment ids; rows are filled up to one width."""
    width = ((0, 0), (0, WIDTH - len(tokens[0])))
    tokens, segments = (np.pad(np.asarray(x, np.int32), width) for x in (tokens, segments))
    positions, mask = inputs_of(segments)
    return run_model(model, params, tokens, positions, mask)
