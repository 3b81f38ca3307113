"""Digests of arrays: an independent computation, one digest on all meshes, no change unnoticed."""

from __future__ import annotations

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from pit_jax.runtime import digests
from pit_jax.runtime.partitioning import MeshConfig, Partitioner

WORD = 2**32


def mixed(word):
    word = (word ^ (word >> 16)) * 0x85EBCA6B % WORD
    word = (word ^ (word >> 13)) * 0xC2B2AE35 % WORD
    return word ^ (word >> 16)


def by_hand(array):
    """The digest of a NumPy array, number after number in Python's integers."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]
    one = other = 0
    for number, bits in enumerate(array.reshape(-1).view(kind).tolist()):
        place = (number * 0x9E3779B9 + 0x7F4A7C15) % WORD
        word = mixed(bits ^ place)
        one, other = (one + word) % WORD, (other + word * (place | 1)) % WORD
    shape = ",".join(map(str, array.shape))
    return f"{array.dtype.name}[{shape}] {one:08x}{other:08x}"


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1.5).reshape(()),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7,
        np.arange(6, dtype=np.int32).reshape(3, 2),
        np.array([True, False, True]),
        np.array([[0.5, -2.0]], jnp.bfloat16),
        np.arange(-4, 4, dtype=np.int8),
        np.zeros((0, 3), np.float32),
    ],
    ids=lambda array: f"{array.dtype.name} {array.shape}",
)
def test_a_digest_is_what_its_definition_says(array):
    assert digests.of({"x": jnp.asarray(array)}) == {"['x']": by_hand(array)}


@given(st.integers(0, 59), st.integers(0, 59), st.integers(0, 31))
@settings(max_examples=40, deadline=None)
def test_no_flipped_bit_and_no_exchange_goes_unnoticed(place, other, bit):
    array = np.random.default_rng(0).normal(size=60).astype(np.float32)
    changed, exchanged = array.copy(), array.copy()
    changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
    exchanged[[place, other]] = exchanged[[other, place]]
    before = by_hand(array).split()[1]
    after = by_hand(changed).split()[1]
    assert before[:8] != after[:8] and before[8:] != after[8:]
    assert (by_hand(exchanged) == by_hand(array)) == (place == other)


@pytest.mark.mesh
def test_a_digest_is_the_same_on_every_mesh():
    array = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)
    for data, model in ((1, 1), (4, 2), (2, 4)):
        mesh = Partitioner(MeshConfig(data, model), jax.devices()[: data * model]).mesh
        spec = jax.sharding.NamedSharding(mesh, PartitionSpec(*mesh.axis_names[:2]))
        assert digests.of([jax.device_put(array, spec)]) == {"[0]": by_hand(array)}


def test_one_digest_of_many_arrays():
    params = {"embed": jnp.arange(48.0).reshape(8, 6), "scale": jnp.float32(-0.0)}
    said = json.dumps(
        [
            ["['embed']", by_hand(np.asarray(params["embed"]))],
            ["['scale']", by_hand(np.float32(-0.0))],
        ]
    )
    found = digests.of_arrays(params)
    assert found == hashlib.sha256(said.encode()).hexdigest()[:32]
    for changed in (
        {"embed": params["embed"].at[3, 4].add(1e-5)},
        {"embed": params["embed"][::-1]},
        {"embed": params["embed"].reshape(6, 8)},
        {"scale": jnp.float32(0.0)},
    ):
        assert digests.of_arrays(params | changed) != found
    assert digests.of_arrays({"embedding": params["embed"], "scale": params["scale"]}) != found
