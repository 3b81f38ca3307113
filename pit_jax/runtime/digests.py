"""Computes digests of arrays on the devices that hold them, equal on every mesh.

An array's digest is two sums modulo 2^32. The first adds up a word for every number, mixed of its
bits and its place in the whole array; the second weighs these words by their places. Integers add
up exactly and in any order, so neither layout nor hardware matters, and an array is never gathered.
The mixing is MurmurHash3's finaliser, which maps no two words to one: where a single number
changes, both sums do. Digests are made against accidents; they are no protection from somebody who
makes two arrays of one digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def names_of(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by name, independent of the classes that hold them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def kind_of(array: Any) -> str:
    """Returns type and shape of an array or abstract array, such as `float32[4,8]`."""
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def of(tree: Any) -> dict[str, str]:
    """Returns for each array of a tree, by name, its kind and digest, `float32[4,8] 01234567…`.

    All processes have to call it. It waits for the arrays.
    """
    arrays = names_of(tree)
    sums = []
    for array in arrays.values():
        sums.append(_sum(array))
        if jax.default_backend() == "cpu":  # where programs at one time wait for each other's parts
            jax.block_until_ready(sums[-1])
    sums = jax.device_get(sums)
    return {
        name: f"{kind_of(array)} {int(one):08x}{int(other):08x}"
        for (name, array), (one, other) in zip(arrays.items(), sums, strict=True)
    }


def of_arrays(tree: Any) -> str:
    """Returns one digest, 32 hexadecimal digits, of what `of` returns: names, kinds and bits."""
    return hashlib.sha256(json.dumps(sorted(of(tree).items())).encode()).hexdigest()[:32]


# By array: those of one shape, as optimizers have, share a program.
@jax.jit
def _sum(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two sums of one array, uint32 []."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place += along * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    place = place * jnp.uint32(0x9E3779B9) + jnp.uint32(0x7F4A7C15)
    words = _mixed(bits ^ place)
    weighed = words * (place | 1)  # odd, so that no two words become one
    return jnp.sum(words, dtype=jnp.uint32), jnp.sum(weighed, dtype=jnp.uint32)


def _mixed(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
