"""Widths of rows, and passes over rows that are cut to one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.method import forward, widths
from pit_jax.method.ppo import PPOConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from tests.tiny_models import TINY, random_params

PROMPTS = np.array([[0, 0, 0, 3, 4, 5], [6, 7, 8, 9, 3, 4], [0, 0, 0, 0, 0, 9]])
RESPONSES = np.array([[5, 1, 0, 0], [3, 4, 5, 6], [7, 3, 1, 0]])
MASK = (RESPONSES > 0).astype(np.float32)


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (95, 4, (95,)),
        (96, 4, (48, 72, 96)),
        (100, 4, (56, 80, 100)),
        (512, 4, (128, 256, 384, 512)),
        (512, 1, (512,)),
        (1000, 2, (504, 1000)),
    ],
)
def test_widths_are_equal_steps_of_multiples_of_8(length, count, expected):
    assert widths.ladder(length, count) == expected


@pytest.mark.parametrize(
    ("layers", "embed", "expected"),
    [(8, 256, 4), (16, 256, 2), (30, 256, 1), (80, 256, 1), (30, 32, 4)],
)
def test_a_cpu_has_few_widths_of_deep_networks(layers, embed, expected):
    """Small ones have a loop over their layers, which is compiled once."""
    deep = dataclasses.replace(TINY, num_layers=layers, embed_dim=embed)
    config = PPOConfig(widths=4, beta=0.5)
    assert widths.affordable(config, TINY, deep) == PPOConfig(widths=expected, beta=0.5)
    assert widths.affordable(PPOConfig(widths=1), TINY, deep).widths == 1


@pytest.mark.parametrize(
    ("longest", "number"), [(1, 0), (32, 0), (33, 1), (56, 1), (57, 2), (90, 3)]
)
def test_the_least_width_that_fits_is_chosen(longest, number):
    assert int(widths.chosen(jnp.array([1, longest]), (32, 56, 80, 100))) == number


def test_lengths_are_of_real_tokens():
    np.testing.assert_array_equal(widths.lengths_of(PROMPTS, MASK), [5, 10, 4])
    np.testing.assert_array_equal(widths.by_length(PROMPTS, MASK), [2, 0, 1])


def test_a_row_that_is_cut_begins_with_its_first_real_token():
    tokens, positions, rows = forward.join(PROMPTS[::2], RESPONSES[::2], MASK[::2], width=5)
    np.testing.assert_array_equal(tokens, [[3, 4, 5, 5, 1], [9, 7, 3, 1, 0]])
    np.testing.assert_array_equal(positions, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]])
    np.testing.assert_array_equal(rows.segments_BT, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


@pytest.mark.parametrize("pooling", ["last", "sum"])
def test_cut_rows_give_what_whole_rows_give(pooling):
    """The second row fills its windows, so it isn't among those that are cut."""
    prompts, responses, mask = PROMPTS[::2], RESPONSES[::2], MASK[::2]
    language, scalar = LanguageModel(TINY), ScalarModel(TINY)
    actor, critic = random_params(language), random_params(scalar)

    def passes(width):
        rows = prompts, responses, mask
        return (
            forward.response_log_probs(language, actor, *rows, 0.7, None, width),
            forward.response_values(scalar, critic, *rows, width),
            forward.response_scores(scalar, critic, *rows, pooling, width),
        )

    found = jax.jit(passes, static_argnums=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found(None), found(6))


@pytest.mark.parametrize("longest", [2, 4, 6])
def test_gradients_are_those_of_the_width_that_is_chosen(longest):
    """And of the parameters alone, not of the rows."""
    lengths = jnp.array([1, longest])

    def function(params, rows, width):
        return jnp.sum(params["w"][:width] * rows[:width]) ** 2 * jnp.ones(2)

    params, rows = {"w": jnp.arange(1.0, 7)}, jnp.arange(2.0, 8)

    def loss(params):
        return jnp.sum(widths.fitted(function, (2, 4, 6), params, rows, lengths))

    value, gradient = jax.value_and_grad(loss)(params)
    product = float(np.dot(np.arange(1, longest + 1), np.arange(2, longest + 2)))
    assert float(value) == 2 * product**2
    expected = np.where(np.arange(6) < longest, 4 * product * np.arange(2, 8), 0)
    np.testing.assert_allclose(gradient["w"], expected, rtol=1e-6)
