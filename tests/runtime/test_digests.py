"""Digests of parameters: every bit and place counts, and the mesh does not."""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.runtime import digests

PARAMS = {
    "embed": np.arange(48, dtype=np.float32).reshape(8, 6) / 7,
    "block": {"scale": np.float32(-0.0), "bias": np.array([0.0, np.nan, np.inf], np.float32)},
}


def by_hand(tree):
    """The same with Python's numbers, one after the other."""

    def mixed(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            x = (x ^ (x >> shift)) * factor % 2**32
        return x

    said = []
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        bits = np.asarray(x, np.float32).reshape(-1).view(np.uint32).tolist()
        sums = [
            sum(mixed(bit ^ mixed((seed + place) % 2**32)) for place, bit in enumerate(bits))
            for seed in (0x9E3779B9, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
        ]
        said.append(
            (jax.tree_util.keystr(path), list(np.shape(x)), [each % 2**32 for each in sums])
        )
    return hashlib.sha256(json.dumps(sorted(said)).encode()).hexdigest()[:32]


def test_it_is_what_it_says():
    assert digests.of_arrays(jax.tree.map(jnp.asarray, PARAMS)) == by_hand(PARAMS)


def test_a_mesh_changes_nothing_and_anything_else_does():
    params = jax.tree.map(jnp.asarray, PARAMS)
    found = digests.of_arrays(params)
    mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))
    split = NamedSharding(mesh, PartitionSpec("a", "b"))
    assert digests.of_arrays(params | {"embed": jax.device_put(params["embed"], split)}) == found
    assert digests.of_arrays(params | {"embed": params["embed"].at[3, 4].add(1e-6)}) != found
    assert digests.of_arrays(params | {"embed": params["embed"][::-1]}) != found
    assert digests.of_arrays(params | {"embed": params["embed"].reshape(6, 8)}) != found
    block = params["block"] | {"scale": jnp.float32(0.0)}
    assert digests.of_arrays(params | {"block": block}) != found
    renamed = {"embedding": params["embed"], "block": params["block"]}
    assert digests.of_arrays(renamed) != found
