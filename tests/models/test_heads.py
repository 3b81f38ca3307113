"""Scalar read-outs and pooling."""

from __future__ import annotations

import dataclasses

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.models.heads import ScalarModel, pool
from tests import reference
from tests.tiny_models import TINY, apply_model, random_params

B, R = 3, 4


def test_scalars_match_numpy():
    model = ScalarModel(TINY)
    params = random_params(model, seed=2)
    tokens = np.random.default_rng(0).integers(1, 16, (1, 6))
    scalars = apply_model(model, params, tokens, np.ones((1, 6), int))[:, :6]
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    causal = np.array(reference.causal(6))
    hidden = reference.decoder(double["decoder"], TINY, tokens[0], range(6), causal)
    np.testing.assert_allclose(scalars[0], hidden @ double["head"]["kernel"][:, 0], atol=1e-5)


def test_scalars_are_float32_under_bfloat16():
    model = ScalarModel(dataclasses.replace(TINY, dtype="bfloat16"))
    scalars = apply_model(model, random_params(model), [range(1, 7)], np.ones((1, 6), int))
    assert scalars.dtype == jnp.float32
    # The head itself is not rounded to bfloat16.
    assert not np.array_equal(scalars, scalars.astype(jnp.bfloat16).astype(jnp.float32))


def test_pooling_by_hand():
    scalars = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(pool(scalars, mask, "last"), [2, 8])
    np.testing.assert_array_equal(pool(scalars, mask, "sum"), [3, 26])


@settings(max_examples=25)
@given(
    hnp.arrays(np.float32, (B, R), elements=st.floats(-10, 10, width=32)),
    st.lists(st.integers(1, R), min_size=B, max_size=B),
    st.floats(-1000, 1000, width=32),
)
def test_pooling_matches_numpy_and_ignores_padding(scalars, lengths, garbage):
    mask = np.arange(R)[None] < np.array(lengths)[:, None]
    dirty = np.where(mask, scalars, np.float32(garbage))
    last = [scalars[b, n - 1] for b, n in enumerate(lengths)]
    total = [scalars[b, :n].astype(np.float64).sum() for b, n in enumerate(lengths)]
    np.testing.assert_array_equal(pool(dirty, mask, "last"), last)
    np.testing.assert_allclose(pool(dirty, mask, "sum"), total, atol=1e-5)


def test_pooling_names_its_choices():
    with pytest.raises(ValueError, match=r"pooling: got 'mean', expected one of \('last', 'sum'\)"):
        pool(jnp.zeros((1, 2)), jnp.ones((1, 2)), "mean")
