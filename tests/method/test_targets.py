"""Sums over targets part by part, against the whole at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.method.targets import add_up, columns_of

B, T, D, V = 3, 7, 4, 5
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, T, D)).astype(np.float32)
PARAMS = {"kernel": RNG.normal(size=(D, V)).astype(np.float32), "bias": np.ones(V, np.float32)}
TOKENS = RNG.integers(0, V, (B, T)).astype(np.int32)


def part(params, hidden_BCD, data):
    """A weighted sum of negative log-probabilities, and how many there are."""
    tokens_BC, weights_BC = data
    log_p = jax.nn.log_softmax(hidden_BCD @ params["kernel"] + params["bias"][None, None])
    chosen_BC = jnp.take_along_axis(log_p, tokens_BC[..., None], axis=-1)[..., 0]
    return -jnp.sum(weights_BC * chosen_BC), {"count": jnp.sum(weights_BC != 0)}


def in_parts(columns, weights, params=PARAMS, hidden=HIDDEN):
    return add_up(part, columns, params, hidden, (TOKENS, weights), weights != 0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1.0, -0.5]), min_size=B * T, max_size=B * T),
    st.sampled_from([1, 2, 3, T, 2 * T]),
)
def test_parts_have_the_sum_and_the_gradients_of_the_whole(weights, columns):
    weights = np.array(weights, np.float32).reshape(B, T)

    def whole(params, hidden):
        return part(params, hidden, (TOKENS, weights))

    def parts(params, hidden):
        return in_parts(columns, weights, params, hidden)

    (found, extras), gradients = jax.value_and_grad(parts, (0, 1), has_aux=True)(PARAMS, HIDDEN)
    (sum_, count), expected = jax.value_and_grad(whole, (0, 1), has_aux=True)(PARAMS, HIDDEN)
    np.testing.assert_allclose(found, sum_, atol=1e-5)
    np.testing.assert_allclose(in_parts(columns, weights)[0], sum_, atol=1e-5)
    assert extras["count"] == count["count"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected)


def test_columns_after_the_last_target_are_not_looked_at():
    """The two targets of each row come first; what isn't a number stands in all other columns."""
    weights = np.zeros((B, T), np.float32)
    weights[[0, 0, 1, 1, 2, 2], [0, 1, 3, 6, 2, 4]] = 1
    hidden = np.where(weights[..., None] != 0, HIDDEN, np.nan)
    assert np.isfinite(in_parts(2, weights, hidden=hidden)[0])
    assert np.isnan(in_parts(3, weights, hidden=hidden)[0])


def test_what_is_frozen_gets_no_gradient_and_costs_none():
    """Of the kernel's gradient, [D, V], there is no array in the program."""
    weights = np.ones((B, T), np.float32)

    def of_bias(bias, hidden):
        return in_parts(2, weights, {"kernel": PARAMS["kernel"], "bias": bias}, hidden)[0]

    program = jax.make_jaxpr(jax.grad(of_bias, (0, 1)))(PARAMS["bias"], HIDDEN)
    sums = [line for line in str(program).splitlines() if "add_any" in line or " add " in line]
    assert not any(f"f32[{D},{V}] = add" in line for line in sums)
    every = jax.make_jaxpr(jax.grad(lambda p: in_parts(2, weights, p)[0]))(PARAMS)
    assert f"f32[{D},{V}] = add" in str(every)


@pytest.mark.parametrize(
    ("shape", "columns"),
    [((16, 256, 384), 32), ((16, 52, 49152), 7), ((2, 2048, 128256), 65), ((64, 8, 2**20), 1)],
)
def test_a_part_is_an_eighth_of_a_row_or_what_64_mebibytes_hold(shape, columns):
    assert columns_of(*shape) == columns
