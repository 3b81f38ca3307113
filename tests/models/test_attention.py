"""Attention, masks and the KV cache against brute force."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.models.attention import (
    attend,
    attend_causal,
    attend_in_turn,
    causal_mask,
    positions_of,
    relative_buckets,
)
from tests import reference

property_settings = settings(max_examples=25)
T = 6


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_matches_numpy(kv_heads):
    rng = np.random.default_rng(kv_heads)
    q = rng.normal(size=(2, 3, 4, 6))
    k, v = (rng.normal(size=(2, 5, kv_heads, 6)) for _ in range(2))
    mask = rng.integers(0, 2, (2, 3, 5)).astype(bool)
    mask[0, 1] = False  # a query without keys
    out = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), jnp.asarray(mask))
    expected = np.stack([reference.attention(q[b], k[b], v[b], mask[b]) for b in range(2)])
    np.testing.assert_allclose(out, expected, atol=2e-6)
    assert not np.asarray(out[0, 1]).any()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_with_a_relative_bias_matches_numpy(kv_heads):
    rng = np.random.default_rng(kv_heads)
    q = rng.normal(size=(2, 3, 4, 6))
    k, v = (rng.normal(size=(2, 40, kv_heads, 6)) for _ in range(2))
    bias = rng.normal(size=(4, 32))
    mask = rng.integers(0, 2, (2, 3, 40)).astype(bool)
    mask[0, 1] = False  # a query without keys
    arrays = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    buckets = relative_buckets(jnp.asarray(mask))
    out = attend(*arrays, buckets, 0.3, jnp.asarray(bias, jnp.float32))
    expected = [reference.attention(q[b], k[b], v[b], mask[b], 0.3, bias) for b in range(2)]
    np.testing.assert_allclose(out, np.stack(expected), atol=3e-6)


def test_relative_buckets_of_long_rows():
    """Every distance to 199; from 113 on they share the last bucket."""
    expected = [reference.relative_bucket(distance) for distance in reversed(range(200))]
    buckets = relative_buckets(jnp.ones((1, 1, 200), bool))[0, 0]
    assert buckets.tolist() == expected
    assert buckets.tolist()[-17:] == [16, *reversed(range(16))]
    assert buckets.tolist()[:88] == [31] * 87 + [30]


@property_settings
@given(hnp.arrays(np.bool_, (2, T, T)))
def test_relative_buckets_count_visible_keys(mask):
    buckets = relative_buckets(jnp.asarray(mask))
    for b, t, s in np.ndindex(2, T, T):
        assert buckets[b, t, s] == (mask[b, t, s + 1 :].sum() if mask[b, t, s] else -1)


def test_attend_ignores_masked_values_entirely():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 4, 2, 4)), jnp.float32) for _ in range(3))
    mask = jnp.ones((1, 4, 4), bool).at[:, :, 2].set(False)
    clean = attend(q, k, v, mask)
    dirty = attend(q, k.at[:, 2].set(1e4), v.at[:, 2].set(-1e4), mask)
    np.testing.assert_array_equal(clean, dirty)


def test_attend_survives_large_scores():
    q = jnp.full((1, 2, 1, 4), 1e3)
    out, grad = jax.value_and_grad(lambda q: attend(q, q, q, jnp.tri(2, dtype=bool)[None]).sum())(q)
    assert float(out) == pytest.approx(8e3)
    assert np.isfinite(grad).all()


def test_gradient_of_a_query_without_keys_is_zero_not_nan():
    q = jnp.ones((1, 2, 1, 4))
    grad = jax.grad(lambda q: attend(q, q, q, jnp.zeros((1, 2, 2), bool)).sum())(q)
    assert not np.asarray(grad).any()


def test_causal_mask_draws_the_example():
    expected = ["....", ".x..", ".xx.", "...x"]
    mask = causal_mask(jnp.array([[0, 1, 1, 2]]))[0]
    assert ["".join(".x"[int(seen)] for seen in row) for row in mask] == expected


@property_settings
@given(hnp.arrays(np.int32, (2, T), elements=st.integers(0, 2)))
def test_causal_mask_is_brute_force(segments):
    mask = causal_mask(jnp.asarray(segments))
    for b, t, s in np.ndindex(2, T, T):
        same = segments[b, t] == segments[b, s] != 0
        assert bool(mask[b, t, s]) == (same and s <= t)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("length", [7, 16, 17, 40, 200])
def test_causal_attention_in_parts_is_attention(length, relative):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    segments = np.sort(rng.integers(0, 3, (2, length)), axis=1)
    bias = rng.normal(size=(4, 32)).astype(np.float32)

    @jax.jit
    def all_of_them(q, k, v, segments, bias):
        mask, how = causal_mask(segments), ()
        if relative:
            mask, how = relative_buckets(mask), (1.0, bias)
        return [whole(q, k, v, mask, *how) for whole in (attend, attend_causal, attend_in_turn)]

    expected, *others = all_of_them(q, k, v, segments, bias)
    for out in others:
        np.testing.assert_allclose(out, expected, atol=1e-6)


def test_positions_count_real_tokens():
    valid = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(positions_of(valid), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]])


@pytest.mark.parametrize(("T", "S", "K", "G"), [(1, 9, 2, 3), (7, 7, 2, 1), (4, 4, 1, 5)])
def test_attention_by_head_is_attention(T, S, K, G):
    """And its gradients: in bfloat16, where a CPU takes it, against float32 of the same numbers."""
    keys = jax.random.split(jax.random.key(8), 4)
    shapes = (2, T, K * G, 8), (2, S, K, 8), (2, S, K, 8), (2, T, K * G, 8)
    half = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes)]
    mask = jnp.broadcast_to(jnp.arange(S)[None] <= jnp.arange(T)[:, None] + S - T, (2, T, S))

    def of(*qkv):
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, mask), *qkv)
        return out, *pull(half[3].astype(out.dtype))

    found = jax.jit(of)(*half[:3])
    exact = jax.jit(of)(*(x.astype(jnp.float32) for x in half[:3]))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.05, rtol=0.05)
