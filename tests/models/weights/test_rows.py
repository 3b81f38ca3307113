"""Rows of a table: where single numbers of a family's tensor go, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.errors import UserError
from pit_jax.models.weights.rows import Row, flatten, nest, pieces

SHAPES = {
    "query/kernel": (3, 5, 4, 6),  # L D H E
    "bias": (3, 4, 6),  # L H E
    "table": (7, 5),  # V D
}


def piece(dims, ours, part=None, layer=1):
    name = "a{}" if len(SHAPES[ours]) != 2 else "a"
    found = pieces([Row(name, ours, dims, part)], {f"decoder/{ours}": SHAPES[ours]}, "some")
    return found[layer]


def test_a_joined_and_turned_matrix():
    row = piece("HE D -> D H E", "query/kernel")
    assert (row.theirs, row.layer, row.shape) == ("a1", 1, (24, 5))
    theirs = np.arange(24 * 5).reshape(24, 5)
    ours = row.ours_of(theirs)
    assert ours.shape == (5, 4, 6)
    assert ours[3, 2, 5] == theirs[2 * 6 + 5, 3]


def test_heads_whose_query_key_and_value_are_beside_each_other():
    row = piece("HCE D -> D H E", "query/kernel", part=1)
    assert row.shape == (72, 5)
    theirs = np.arange(72 * 5).reshape(72, 5)
    # Head 2 begins at row 36, its key after 6 rows of its query.
    assert row.ours_of(theirs)[3, 2, 5] == theirs[36 + 6 + 5, 3]
    bias = piece("HCE -> H E", "bias", part=2)
    assert bias.ours_of(np.arange(72))[1, 3] == 18 + 12 + 3


def test_heads_whose_pairs_are_beside_each_other():
    """Numbers 0 and 3 of a head of 6 turn together; llama.cpp has them at 0 and 1."""
    row = piece("HIP D -> D H PI", "query/kernel")
    theirs = np.repeat(np.arange(24)[:, None], 5, axis=1)
    np.testing.assert_array_equal(row.ours_of(theirs)[0, 2], 12 + np.array([0, 2, 4, 1, 3, 5]))


ROWS = [
    ("HE D -> D H E", "query/kernel", None),
    ("HCE D -> D H E", "query/kernel", 2),
    ("HIP D -> D H PI", "query/kernel", None),
    ("D HE -> D H E", "query/kernel", None),
    ("HCE -> H E", "bias", 0),
    ("V D -> V D", "table", None),
    ("D V -> V D", "table", None),
]


@settings(max_examples=20)
@given(st.sampled_from(ROWS), st.integers(1, 300))
def test_chunks_make_the_whole_and_back(row, numbers):
    dims, ours, part = row
    row = piece(dims, ours, part, layer=0)
    theirs = np.random.default_rng(0).normal(size=row.shape)
    whole = row.ours_of(theirs)
    filled = np.full(SHAPES[ours], np.nan)
    for chunk, place in row.chunks(numbers):
        some = row.ours_of(theirs[chunk])
        index = tuple(map(slice, place[-some.ndim :], np.add(place[-some.ndim :], some.shape)))
        (filled if len(place) == some.ndim else filled[place[0]])[index] = some
    np.testing.assert_array_equal(filled if row.layer is None else filled[0], whole)
    back = row.theirs_of(whole, theirs.copy() if part is not None else None)
    np.testing.assert_array_equal(back, theirs)


def test_a_parameter_that_a_family_lacks():
    with pytest.raises(UserError, match="some weights: our decoder/x: got a parameter that"):
        pieces([], {"decoder/x": (3,)}, "some")


def test_nesting():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert dict(flatten(tree)) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert nest(dict(flatten(tree))) == tree
