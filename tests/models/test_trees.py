"""Masks and positions of trees, and their attention apart against that by the whole mask."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.models import attention, kernels, trees
from pit_jax.models.network import LanguageModel
from pit_jax.models.trees import TreeRows, tree_mask, tree_positions
from tests import reference
from tests.tiny_models import TINY, random_params, run_model

property_settings = settings(max_examples=25)
SIZES = (4, 3, 3, 3, 2, 3)  # most tokens of each block
T = sum(SIZES) + 2


# A root, two branches, and leaves below the second, the first and the second of these.
PARENTS = (0, 1, 1, 3, 2, 3)
ANCESTORS = {1: [1], 2: [1, 2], 3: [1, 3], 4: [1, 3, 4], 5: [1, 2, 5], 6: [1, 3, 6]}


@property_settings
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=2))
def test_tree_mask_and_positions_are_brute_force(counts):
    blocks = np.zeros((len(counts), 20), np.int32)
    for row, count in zip(blocks, counts):
        numbers = np.repeat(np.arange(1, 7), count)
        row[: len(numbers)] = numbers
    mask = tree_mask(jnp.asarray(blocks), PARENTS)
    positions = tree_positions(jnp.asarray(blocks), PARENTS)
    for b, t in np.ndindex(*blocks.shape):
        seen = [s for s in range(t + 1) if blocks[b, t] and blocks[b, s] in ANCESTORS[blocks[b, t]]]
        assert np.flatnonzero(mask[b, t]).tolist() == seen
        if seen:
            assert positions[b, t] == len(seen) - 1


def test_tree_mask_as_drawn():
    expected = ["x....", "xx...", "xxx..", "x..x.", "....."]
    mask = tree_mask(jnp.array([[1, 2, 2, 3, 0]]), (0, 1, 1))[0]
    assert ["".join(".x"[int(seen)] for seen in row) for row in mask] == expected


@pytest.mark.parametrize(
    "fields",
    [{}, {"positions": "relative"}, {"windows": (3, 0)}, {"windows": (2,), "attention_cap": 1.0}],
)
def test_tree_mask_gives_each_branch_what_it_gets_alone(fields):
    """A prefix with two branches equals two whole sequences: the gap model's shared prefixes."""
    config = dataclasses.replace(TINY, **fields)
    model = LanguageModel(config)
    params = random_params(model)
    prefix, left, right = [3, 4, 5], [6, 7], [8, 9, 10]
    tokens = np.array([[*prefix, *left, *right]])
    blocks = jnp.array([[1, 1, 1, 2, 2, 3, 3, 3]])
    places = jnp.array([[0, 1, 2, 3, 4, 3, 4, 5]])
    logits = run_model(model, params, tokens, places, tree_mask(blocks, (0, 1, 1)))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    np.testing.assert_allclose(
        logits[0, :5], reference.logits(double, config, [*prefix, *left]), atol=2e-5
    )
    np.testing.assert_allclose(
        logits[0, 5:], reference.logits(double, config, [*prefix, *right])[3:], atol=2e-5
    )


def blocks_of(counts):
    """Rows of blocks of so many tokens, padded on the right."""
    blocks = np.zeros((len(counts), T), np.int32)
    for row, count in zip(blocks, counts, strict=True):
        numbers = np.repeat(np.arange(1, 7), count)
        row[: len(numbers)] = numbers
    return jnp.asarray(blocks)


def attended(q, k, v, blocks, weights):
    """Attention by a tree's whole mask and apart, each with the gradients of a weighted sum."""
    rows = TreeRows(blocks, PARENTS, SIZES)
    branches = rows.apart(lambda queries, keys: float(queries == T))  # the parts are free
    real_BT11 = (blocks > 0)[..., None, None]

    def dense(q, k, v):
        return attention.attend(q, k, v, rows.dense())

    def apart(q, k, v):
        return attention.attend_apart(q, k, v, branches)

    def with_gradients(function):
        def total(q, k, v):
            return jnp.sum(function(q, k, v) * weights * real_BT11)

        return function(q, k, v) * real_BT11, jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    return with_gradients(dense), with_gradients(apart)


of_counts = st.tuples(*(st.integers(0, most) for most in SIZES))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_attention_apart_is_that_of_the_whole_mask(platform, monkeypatch):
    monkeypatch.setattr(trees, "_LEAST", 0)
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    monkeypatch.setattr(attention, "_part", lambda queries, most: 2)
    program = jax.jit(attended)

    @settings(max_examples=25, deadline=None)
    @given(st.tuples(of_counts, of_counts), st.integers(0, 999))
    def check(counts, seed):
        rng = np.random.default_rng(seed)
        q, k, v, weights = (
            rng.normal(size=(2, T, heads, 4)).astype(np.float32) for heads in (4, 2, 2, 4)
        )
        expected, found = program(q, k, v, blocks_of(counts), weights)
        for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(other, one, atol=2e-6)

    check()


def test_a_row_goes_apart_only_where_that_takes_less():
    def scores(queries, keys):
        return queries * keys

    def at(width, sizes):
        rows = TreeRows(jnp.ones((1, width), jnp.int32), (0, 1, 1, 3, 2, 3, 2), sizes)
        branches = rows.apart(scores)
        return branches and [
            (*group.mask_NQW.shape[::2], group.queries.there_BC.shape[1])
            for group in branches.groups
        ]

    # The row of Eq. 2: sequences, the columns of each, and the queries of all: of the prompt, of
    # both references after it, and of four responses after one of these.
    whole = [(1, 512, 512), (2, 1024, 2 * 512), (4, 1536, 4 * 512)]
    assert at(7 * 512, 7 * (512,)) == whole
    assert at(1024, 7 * (512,)) is None  # short rows in wide windows: seven times 512 queries
    assert at(7 * 16, 7 * (16,)) is None  # too short for it to be worth it
    assert at(7 * 512, ()) is None
