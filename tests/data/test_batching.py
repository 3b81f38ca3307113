"""Which rows make a batch: order, restarts, mixtures, packing, widths."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.batching import BatchingConfig, batch_rows, bucket_widths, pack
from pit_jax.errors import UserError


def no_buckets(size):
    return np.zeros(size, int)


@given(st.integers(1, 40), st.data())
def test_an_epoch_has_each_row_at_most_once(size, data):
    batch_size = data.draw(st.integers(1, size))
    start = data.draw(st.integers(0, 30))
    buckets = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    per_epoch = size // batch_size
    arguments = ([size], (), buckets, batch_size)
    run = list(batch_rows(*arguments, seed=3, num_epochs=4))
    assert len(run) == 4 * per_epoch
    for epoch in range(4):
        rows = np.concatenate(run[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert len(set(rows.tolist())) == len(rows) == per_epoch * batch_size
        assert rows.max() < size
    resumed = list(batch_rows(*arguments, seed=3, num_epochs=4, start_batch=start))
    assert [r.tolist() for r in resumed] == [r.tolist() for r in run[start:]]


def test_batches_hold_rows_of_neighbouring_buckets():
    buckets = np.repeat([0, 1, 2], [16, 16, 16])[np.random.default_rng(0).permutation(48)]
    run = list(batch_rows([48], (), buckets, 8, seed=1, num_epochs=1))
    assert sorted(tuple(set(buckets[rows])) for rows in run) == sorted([(0,), (1,), (2,)] * 2)
    first = [buckets[rows][0] for rows in run]
    assert first != sorted(first)


@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=3),
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.integers(0, 400),
)
def test_mixtures_hold_their_rates_and_restart_exactly(sources, rates, start):
    rates = rates[: len(sources)]
    arguments = (sources, rates, no_buckets(sum(sources)), 1)
    run = np.concatenate(list(itertools.islice(batch_rows(*arguments, seed=7), 2000)))
    first_row = np.cumsum([0, *sources])
    for source, rate in enumerate(rates):
        mine = run[(run >= first_row[source]) & (run < first_row[source + 1])]
        assert abs(len(mine) / 2000 - rate / sum(rates)) <= 1e-3
        # Each goes through a whole permutation before any of its rows comes again.
        size = sources[source]
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size].tolist())) == size
    resumed = batch_rows(*arguments, seed=7, start_batch=start)
    assert np.concatenate(list(itertools.islice(resumed, 50))).tolist() == (
        run[start : start + 50].tolist()
    )


def packed(lengths, room):
    """The examples of each row."""
    members, sizes = pack(np.array(lengths, int), room)
    return [row.tolist() for row in np.split(members, np.cumsum(sizes)[:-1])] if len(sizes) else []


def best_fit(lengths, room):
    """Example by example, each into the fullest row that has room, of equal ones the first."""
    rows = []
    for member in sorted(range(len(lengths)), key=lambda m: -lengths[m]):
        left = [room - sum(lengths[m] for m in row) for row in rows]
        fits = [(free, row) for row, free in enumerate(left) if free >= lengths[member]]
        if fits:
            rows[min(fits)[1]].append(member)
        else:
            rows.append([member])
    return sorted(rows, key=min)


@given(st.lists(st.integers(1, 12), max_size=40), st.integers(12, 30))
def test_packing_is_best_fit(lengths, room):
    assert packed(lengths, room) == best_fit(lengths, room)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(12, 30))
def test_packing_loses_nothing(lengths, room):
    bins = packed(lengths, room)
    assert sorted(member for each in bins for member in each) == list(range(len(lengths)))
    assert max(sum(lengths[member] for member in each) for each in bins) <= room
    # Best fit is never worse than every two rows more than full together.
    assert len(bins) <= 2 * -(-sum(lengths) // room)


def test_packing_by_hand():
    """9 fills a row, 5 and 4 another, 4 and 4 leave one token free; 3 comes alone."""
    bins = packed([9, 5, 4, 4, 4, 3], 9)
    assert bins == [[0], [1, 2], [3, 4], [5]]


def test_widths_by_hand():
    lengths = np.array([3, 9, 17, 18, 30, 31, 40, 64])
    assert bucket_widths(lengths, 1).tolist() == [64]
    # 6 x 32 + 2 x 64 = 320 tokens, against 4 x 24 + 4 x 64 = 352 and 7 x 40 + 64 = 344.
    assert bucket_widths(lengths, 2).tolist() == [32, 64]
    assert bucket_widths(lengths, 9).tolist() == [8, 16, 24, 32, 40, 64]
    assert bucket_widths(np.zeros(0, int), 3).tolist() == [8]


@given(st.lists(st.integers(1, 80), min_size=1, max_size=30), st.integers(1, 4))
def test_no_widths_pad_less(lengths, count):
    def padded(widths):
        return sum(min((w for w in widths if w >= length), default=10**6) for length in lengths)

    widths = bucket_widths(np.array(lengths), count).tolist()
    assert len(widths) <= count and max(widths) >= max(lengths)
    choices = itertools.chain.from_iterable(
        itertools.combinations(range(8, 88, 8), n) for n in range(1, count + 1)
    )
    assert padded(widths) == min(map(padded, choices))


@pytest.mark.parametrize("fields", [{"packed_length": -1}, {"length_buckets": 0}])
def test_settings_are_checked(fields):
    with pytest.raises(UserError, match="batching: got .* expected packed_length >= 0"):
        BatchingConfig(**fields)


def test_packed_rows_are_in_the_order_of_their_examples():
    """Lengths 3, 4, 9, 5: best fit starts with the 9, yet the row of the first example is first."""
    assert packed([3, 4, 9, 5], 9) == [[0], [3, 1], [2]]


# --- draws --------------------------------------------------------------------------------------


def order(seed, epochs=3, size=24, **arguments):
    """Rows of each epoch, of 24 rows in batches of 4."""
    arguments = {"rates": (), "buckets": no_buckets(size), "sources": [size]} | arguments
    rows = np.concatenate(
        list(itertools.islice(batch_rows(batch_size=4, seed=seed, **arguments), epochs * size // 4))
    )
    return rows.reshape(epochs, size).tolist()


def test_seed_and_epoch_each_move_the_order():
    first, other = order(3), order(4)
    assert order(3) == first
    assert len({tuple(epoch) for epoch in (*first, *other)}) == 6
    assert all(sorted(epoch) == list(range(24)) for epoch in first)
    assert order(3, shuffle=False) == order(4, shuffle=False) == [list(range(24))] * 3


def test_seed_and_epoch_each_move_the_batches_of_buckets():
    """Also where rows aren't drawn: of one batch a bucket, the order of batches is what moves."""
    buckets = np.repeat(np.arange(6), 4)
    found = [
        [epoch[start] // 4 for start in range(0, 24, 4)]
        for seed in (3, 4, 3)
        for epoch in order(seed, buckets=buckets)
    ]
    assert found[:3] == found[6:] and len({tuple(epoch) for epoch in found}) == 6
    assert all(sorted(epoch) == list(range(6)) for epoch in found)


def test_seed_cycle_and_source_each_move_a_mixture():
    """Two sources of 10 rows at 1 to 1: what is drawn of each, and when."""
    arguments = {"sources": [10, 10], "rates": (1.0, 1.0), "buckets": no_buckets(20)}
    turns, rows = [], []
    for seed in (3, 4, 3):
        (drawn,) = np.array(order(seed, epochs=1, size=2000, **arguments))
        turns += [tuple(cycle) for cycle in (drawn >= 10).reshape(2, 1000).tolist()]
        for source in (0, 1):
            mine = drawn[drawn // 10 == source] % 10
            rows += [tuple(epoch) for epoch in mine[:30].reshape(3, 10).tolist()]
    assert len(set(turns)) == 4 and turns[:2] == turns[4:]  # two cycles of two seeds
    assert len(set(rows)) == 12 and rows[:6] == rows[12:]  # three epochs of two sources, twice


def test_rows_that_are_left_over_are_others_in_each_epoch():
    rows = itertools.islice(batch_rows([10], (), no_buckets(10), 4, 0), 20)  # ten epochs of 8
    assert set(np.concatenate(list(rows)).tolist()) == set(range(10))
