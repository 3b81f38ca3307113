"""Rows of different lengths in flat arrays, against plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data import ragged
from pit_jax.data.ragged import Ragged

ROW = st.lists(st.integers(0, 3), max_size=4)
COUNT = st.shared(st.integers(0, 6), key="count")
ROWS = COUNT.flatmap(lambda n: st.lists(ROW, min_size=n, max_size=n))


def rows(made):
    return [row.tolist() for row in np.split(made.values, made.offsets[1:-1])][: len(made)]


@given(ROWS, ROWS, ROW)
def test_rows_are_joined_one_by_one(one, other, ids):
    made = ragged.join([ids, Ragged.of_rows(one), [], ids, Ragged.of_rows(other)])
    assert rows(made) == [ids + a + ids + b for a, b in zip(one, other, strict=True)]
    assert made.values.dtype == np.int32
    parts = [Ragged.of_rows(one), Ragged.of_rows(other), Ragged.of_rows(one)]
    turns = [row for a, b in zip(one, other, strict=True) for row in (a, b, a)]
    assert rows(ragged.interleave(parts)) == turns


@given(ROWS, ROWS, st.data())
def test_rows_are_chosen_counted_and_compared(one, other, data):
    made = Ragged.of_rows(one)
    assert rows(made) == one and len(made) == len(one)
    assert made.lengths().tolist() == [len(row) for row in one]
    assert ragged.same(made, Ragged.of_rows(other)).tolist() == [
        a == b for a, b in zip(one, other, strict=True)
    ]
    assert made.count(2).tolist() == [row.count(2) for row in one]
    assert rows(made.only(made.values != 2)) == [[i for i in row if i != 2] for row in one]
    assert rows(made.filled(7)) == [[7] * len(row) for row in one]
    order = data.draw(st.lists(st.integers(0, len(one) - 1), max_size=8) if one else st.just([]))
    assert rows(made.take(np.array(order, int))) == [one[k] for k in order]
    mask = np.array([len(row) > 1 for row in one], bool)
    assert rows(made.select(mask)) == [row for row in one if len(row) > 1]
    assert rows(Ragged.of_numbers(np.arange(3))) == [[0], [1], [2]]
