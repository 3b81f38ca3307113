"""The KV cache: where tokens go, and what int8 makes of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import kernels
from pit_jax.models.attention import attend
from pit_jax.models.cache import KVCache
from tests.tiny_models import TINY


@pytest.mark.parametrize("written_out", [False, True])
def test_cache_writes_one_layer_at_one_column(written_out, monkeypatch):
    """Heads come before columns, so that a product over a row's keys copies nothing."""
    config = dataclasses.replace(TINY, dtype="bfloat16")
    monkeypatch.setattr(kernels, "_WRITTEN_OUT", config.embed_dim + (not written_out))
    cache, layer = KVCache.zeros(config, batch=2, length=5), 1 if written_out else jnp.int32(1)
    assert isinstance(cache.k_LBKSE, tuple) == written_out
    assert cache.k_LBKSE[0].shape == (2, 2, 5, 4)
    assert cache.k_LBKSE[0].dtype == jnp.uint16  # the bits, of which a CPU can write a slice
    ones = jnp.ones((2, 1, 2, 4), jnp.bfloat16)
    cache = cache.write(ones, 2 * ones, layer, jnp.int32(3))
    expected = np.zeros((2, 2, 2, 5, 4))
    expected[1, :, :, 3] = 1
    stacked_k, stacked_v = (np.stack(x).view(jnp.bfloat16) for x in (cache.k_LBKSE, cache.v_LBKSE))
    np.testing.assert_array_equal(stacked_k, expected)
    np.testing.assert_array_equal(stacked_v, 2 * expected)
    keys, values, scales = cache.layer(layer)
    assert scales is None
    np.testing.assert_array_equal(keys, np.swapaxes(expected[1], 1, 2))
    np.testing.assert_array_equal(values, 2 * np.swapaxes(expected[1], 1, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("written_out", [False, True])
def test_cache_writes_a_column_of_each_row(written_out, dtype, monkeypatch):
    config = dataclasses.replace(TINY, dtype=dtype)
    monkeypatch.setattr(kernels, "_WRITTEN_OUT", config.embed_dim + (not written_out))
    cache, layer = KVCache.zeros(config, batch=2, length=5), 1 if written_out else jnp.int32(1)
    ones = jnp.ones((2, 1, 2, 4), dtype)
    cache = cache.write(ones, 2 * ones, layer, jnp.array([3, 0]))
    expected = np.zeros((2, 5, 2, 4))
    expected[0, 3] = expected[1, 0] = 1
    for found, factor in zip(cache.layer(layer)[:2], (1, 2)):
        np.testing.assert_array_equal(found, factor * expected)
    for other in cache.layer(0 if written_out else jnp.int32(0))[:2]:
        assert not np.any(other)


@pytest.mark.parametrize("written_out", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_keys_and_values_are_those_within_half_a_step(written_out, dtype, monkeypatch):
    """A step is the largest number of a head of a token by 127; a token of zeros stays so."""
    config = dataclasses.replace(TINY, dtype=dtype, cache="int8")
    monkeypatch.setattr(kernels, "_WRITTEN_OUT", config.embed_dim + (not written_out))
    cache, layer = KVCache.zeros(config, batch=2, length=5), 1 if written_out else jnp.int32(1)
    k, v = (jax.random.normal(jax.random.key(n), (2, 3, 2, 4), dtype) for n in (0, 1))
    cache = cache.write(k, v, layer, jnp.int32(1))
    one = jnp.array([[[[0.5, -1.27, 0.004, 0], [0, 0, 0, 0]]]] * 2, dtype)
    cache = cache.write(one, one, layer, jnp.array([4, 0]))
    keys, values, scales = cache.layer(layer)
    assert keys.dtype == values.dtype == jnp.int8
    for found, scale, given in zip((keys, values), scales, (k, v), strict=True):
        scale = jnp.swapaxes(scale, 1, 2)[..., None]
        largest = jnp.max(jnp.abs(given), axis=-1, keepdims=True)
        np.testing.assert_allclose(scale[:, 1:4], largest / 127, rtol=1e-2)
        off = np.abs((found * scale)[:, 1:4] - given) / scale[:, 1:4]
        assert 0.3 < off.max() < 0.502
        np.testing.assert_array_equal(found[0, 4], [[50, -127, 0, 0], [0, 0, 0, 0]])
        np.testing.assert_array_equal(found[1, 0], found[0, 4])


def test_scales_of_keys_and_values_are_theirs():
    """Attention to int8 is attention to what the int8 stand for."""
    keys = jax.random.split(jax.random.key(3), 5)
    q = jax.random.normal(keys[0], (2, 1, 6, 8))
    k, v = (jax.random.randint(key, (2, 5, 2, 8), -127, 128, jnp.int8) for key in keys[1:3])
    scales = tuple(jax.random.uniform(key, (2, 2, 5)) / 50 for key in keys[3:])
    mask = jnp.array([[[1, 1, 0, 1, 1]], [[0, 1, 1, 1, 0]]], bool)
    found = attend(q, k, v, mask, scales=scales)
    whole_k, whole_v = (x * jnp.swapaxes(s, 1, 2)[..., None] for x, s in zip((k, v), scales))
    np.testing.assert_allclose(found, attend(q, whole_k, whole_v, mask), rtol=1e-5, atol=1e-5)
