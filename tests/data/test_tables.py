"""Rows without padding: what is kept of them, and the batches that are padded again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from pit_jax.data import flat_arrays, tables
from pit_jax.data.batching import BatchingConfig
from pit_jax.data.ragged import Ragged
from pit_jax.data.rows import Feature, RowWriter, features


def kept(chunks):
    """The features of padded rows that come in chunks."""

    def fill(append):
        writer = RowWriter(append)
        for chunk in chunks:
            writer.write({name: Feature.of_padded(array) for name, array in chunk.items()})

    widths = {name: array.shape[1] for name, array in chunks[0].items()}
    cache = flat_arrays.Cache("")
    return features(cache.arrays(fill, 0, "task", lambda: "key"), widths)


@settings(max_examples=40)
@given(st.data())
def test_every_row_comes_back_as_it_was(data):
    """Whatever it holds: zeros within, on either side or everywhere, weights below 0."""
    count, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    numbers = st.integers(-1, 2)
    ids = data.draw(numpy_st.arrays(np.int32, (count, width), elements=numbers))
    weights = data.draw(numpy_st.arrays(np.float32, (count, width), elements=numbers))
    cut = data.draw(st.integers(0, count))
    rows = {"ids": ids, "weights": weights}
    found = kept([{k: v[:cut] for k, v in rows.items()}, {k: v[cut:] for k, v in rows.items()}])
    table = tables.make("task", found, [count], BatchingConfig())
    order = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    batch = table.batch(order)
    for name, array in rows.items():
        np.testing.assert_array_equal(batch[name], array[order])
        assert batch[name].dtype == array.dtype


def test_only_what_is_real_is_kept():
    found = kept([{"x": np.array([[0, 7, 8, 0], [0, 0, 0, 0], [5, 0, 6, 0]], np.int32)}])["x"]
    assert found.values.tolist() == [7, 8, 5, 0, 6] and found.values.dtype == np.int32
    assert found.offsets.tolist() == [0, 2, 2, 5]
    assert found.starts[[0, 2]].tolist() == [1, 0]
    assert found.lengths().tolist() == [2, 0, 3]


def test_rows_are_padded_on_either_side():
    rows = Ragged.of(np.array([7, 0, 8, 5], np.int32), np.array([3, 0, 1]))
    for left, expected in ((False, [[7, 0, 8, 0], [0] * 4, [5, 0, 0, 0]]), (True, None)):
        expected = expected or [[0, 7, 0, 8], [0] * 4, [0, 0, 0, 5]]
        table = tables.make("task", {"x": Feature.of(rows, 4, left)}, [3], BatchingConfig())
        assert table.batch(np.arange(3))["x"].tolist() == expected
    with pytest.raises(ValueError, match="rows: got one of 3 numbers, expected 2 at most"):
        Feature.of(rows, 2)


def sft_rows(lengths, width):
    segments = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)
    numbers = np.arange(1, len(lengths) + 1, dtype=np.int32)[:, None]
    return {
        "decoder_segment_ids": segments,
        "decoder_positions": segments * np.arange(width, dtype=np.int32),
        "decoder_input_tokens": segments * numbers,
    }


def test_packed_rows_by_hand():
    """3 and 4 of the first dataset fill a row of 8; the second's 2, 5 and 6 need two."""
    rows = kept([sft_rows([3, 4, 2, 5, 6], 6)])
    table = tables.make("sft_pit", rows, [2, 3], BatchingConfig(packed_length=8))
    assert table.sources == [1, 2] and table.num_examples == 5
    batch = table.batch(np.array([2, 0]))
    assert batch["decoder_input_tokens"].tolist() == [
        [4, 4, 4, 4, 4, 0, 0, 0],
        [2, 2, 2, 2, 1, 1, 1, 0],
    ]
    assert batch["decoder_segment_ids"].tolist() == [
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 2, 2, 2, 0],
    ]
    assert batch["decoder_positions"].tolist() == [
        [0, 1, 2, 3, 4, 0, 0, 0],
        [0, 1, 2, 3, 0, 1, 2, 0],
    ]
    (other,) = table.batch(np.array([1]))["decoder_input_tokens"].tolist()
    assert other == [5] * 6 + [3] * 2
    assert all(array.dtype == np.int32 for array in batch.values())


def test_a_batch_is_as_wide_as_its_longest_row_needs():
    table = tables.make(
        "sft_pit", kept([sft_rows([3, 8, 9, 20], 32)]), [4], BatchingConfig(length_buckets=3)
    )
    assert table.widths.tolist() == [8, 16, 24]
    for numbers, width in (([0, 1], 8), ([1, 2], 16), ([3, 0], 24)):
        batch = table.batch(np.array(numbers))
        assert {array.shape for array in batch.values()} == {(2, width)}


@pytest.mark.parametrize("packed_length", [0, 16])
def test_no_rows_make_an_empty_table(packed_length):
    rows = kept([sft_rows([], 16)])
    table = tables.make("sft_pit", rows, [0], BatchingConfig(packed_length=packed_length))
    assert sum(table.sources) == table.num_examples == 0
    assert list(table.in_order(4)) == []
