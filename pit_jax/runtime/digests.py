"""Digests of a model's parameters, the same on any mesh and of any format that they are kept in.

Each number is mixed with its place in its array by the finaliser of MurmurHash3 (A. Appleby, public
domain), and what that gives is summed modulo 2**32, four times with other seeds. Sums have no
order, so devices add up what they have: nothing is gathered, and it takes one reading of memory.
Other parameters have another digest but for a chance of 2**-128. It isn't made against somebody who
looks for two models with one digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

_SEEDS = (0x9E3779B9, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def of_arrays(tree: Any) -> str:
    """Returns the digest of a tree of arrays: of their names, shapes and bits.

    Args:
      tree: arrays, on devices; all processes call this together. Numbers of other than 32 bits
        count as the float32 that they are.

    Returns:
      32 hexadecimal digits.
    """
    named = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get(_sums([x for _, x in named]))
    said = sorted(
        (jax.tree_util.keystr(path), list(x.shape), [int(each) for each in found])
        for (path, x), found in zip(named, sums, strict=True)
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[list[jax.Array]]:
    return [[_sum(x, seed) for seed in _SEEDS] for x in arrays]


def _sum(x: jax.Array, seed: int) -> jax.Array:
    x = x if x.dtype.itemsize == 4 else x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    place, stride = jnp.full(x.shape, jnp.uint32(seed)), 1
    for dim in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim) * jnp.uint32(stride % 2**32)
        stride *= x.shape[dim]
    return jnp.sum(_mixed(bits ^ _mixed(place)), dtype=jnp.uint32)


def _mixed(x: jax.Array) -> jax.Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x
