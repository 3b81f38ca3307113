"""Says which rows make a batch and how wide it is: order, mixtures, packing, length buckets.

Everything here is a function of row lengths and a seed. So the k-th batch of a run is known without
the batches before it, and every host knows the whole of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from pit_jax.checked import checked
from pit_jax.errors import UserError

Batch = dict[str, np.ndarray]

_WIDTH_MULTIPLE = 8
_CYCLE = 1000


@dataclasses.dataclass(frozen=True)
@checked
class BatchingConfig:
    """Says how examples of different lengths share batches.

    Attributes:
      packed_length: tokens of a row of the tasks pretrain, sft_policy and sft_pit, into which
        several examples go; 0 puts one example in a row.
      length_buckets: number of widths that batches of rows with one example come in; each is a
        program to compile. With 1, every batch is as wide as the longest row.
    """

    packed_length: int = 0
    length_buckets: int = 1

    def __post_init__(self):
        if self.packed_length < 0 or self.length_buckets < 1:
            raise UserError(
                f"batching: got {self}, expected packed_length >= 0 and length_buckets >= 1"
            )


def pack(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs examples into rows of `room` tokens.

    From the longest on, each example goes into the row where it leaves the least room (best fit).
    The rows are in the order of their first examples, so the first ones aren't the longest.

    Args:
      lengths: tokens of each example, none over `room`.
      room: length of a row.

    Returns:
      the examples of all rows, one row after another, and how many each row has.
    """
    members = np.argsort(-lengths, kind="stable")
    rows, count = _best_fit(lengths[members], room)
    firsts = np.full(count, len(lengths))
    np.minimum.at(firsts, rows, members)
    rank = np.empty(count, np.int64)
    rank[np.argsort(firsts)] = np.arange(count)
    order = np.argsort(rank[rows], kind="stable")
    return members[order], np.bincount(rank[rows], minlength=count)


def _best_fit(lengths: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """Returns the row of each example, the longest of which come first, and the number of rows.

    Examples of one length are placed together. Of the rows with room for them, those with the least
    are filled up one after the other, of equal ones the first; each takes as many as it has room
    for, since after the first it is the one with the least.
    """
    found = np.empty(len(lengths), np.int64)
    # Room left -> rows that have it.
    free: list[list[np.ndarray]] = [[] for _ in range(room + 1)]
    count, start = 0, 0
    for length, size in zip(*(each[::-1] for each in np.unique(lengths, return_counts=True))):
        end = start + size
        for left in [*range(length, room), room]:
            takes = left // length
            wanted = -(-(end - start) // takes)
            if left == room:
                rows = np.arange(count, count + wanted)
                count += wanted
            elif free[left]:
                rows = np.sort(np.concatenate(free[left]))
                rows, rest = rows[:wanted], rows[wanted:]
                free[left] = [rest] if len(rest) else []
            else:
                continue
            placed = np.repeat(rows, takes)[: end - start]
            found[start : start + len(placed)] = placed
            start += len(placed)
            if len(placed):
                last = len(placed) - takes * (len(rows) - 1)
                free[left - takes * length].append(rows[:-1])
                free[left - last * length].append(rows[-1:])
            if start == end:
                break
    return found, count


def bucket_widths(lengths: np.ndarray, count: int) -> np.ndarray:
    """Finds at most `count` widths, ascending multiples of 8, that pad rows of `lengths` least."""
    widths, rows = np.unique(-(-lengths // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE, return_counts=True)
    if not len(widths):
        return np.array([_WIDTH_MULTIPLE])
    up_to = np.cumsum(rows)
    # What the rows up to each width cost with one bucket, two, …; and where the last one starts.
    cost, starts = widths * up_to, []
    for _ in range(min(count, len(widths)) - 1):
        split = cost[:, None] + widths * (up_to - up_to[:, None])
        split[np.tril_indices(len(widths))] = np.iinfo(split.dtype).max
        best = split.min(axis=0)
        starts.append(np.where(best < cost, split.argmin(axis=0), -1))
        cost = np.minimum(best, cost)
    place = len(widths) - 1
    chosen = [place]
    for start in reversed(starts):
        if start[place] >= 0:
            place = start[place]
            chosen.append(place)
    return widths[chosen[::-1]]


def batch_rows(
    sources: Sequence[int],
    rates: Sequence[float],
    buckets: np.ndarray,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    start_batch: int = 0,
    num_epochs: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the row numbers [batch_size] of each training batch, from `start_batch` on.

    Epoch e goes through a permutation drawn from (seed, e), in whole batches; the rows that are
    left over are others in each epoch. Within an epoch, the rows of a bucket come together, and the
    batches are shuffled. With rates, an epoch has as many rows, at least a cycle that holds the
    rates; they are drawn from each source at its rate, and each source goes through permutations
    of its own.

    Args:
      sources: number of rows of each dataset; the rows of a dataset follow those of the last.
      rates: rates of the datasets; without any, each row is drawn once an epoch.
      buckets: bucket number of every row.
      batch_size: number of rows of a batch.
      seed: seed of the order.
      shuffle: whether to draw a new order every epoch.
      start_batch: how many batches to skip.
      num_epochs: number of epochs; None never ends.
    """
    per_epoch = max(sum(sources), _CYCLE if rates else 0) // batch_size
    size = per_epoch * batch_size
    first_epoch, first_batch = divmod(start_batch, per_epoch)
    epochs = itertools.count(first_epoch) if num_epochs is None else range(first_epoch, num_epochs)
    for epoch in epochs:
        rng = np.random.default_rng([seed, epoch])
        if rates:
            rows = _mixed(sources, rates, seed, epoch * size, size)
        else:
            rows = rng.permutation(sum(sources)) if shuffle else np.arange(sum(sources))
            rows = rows[:size]
        if shuffle and len(np.unique(buckets)) > 1:
            rows = rows[np.argsort(buckets[rows], kind="stable")].reshape(per_epoch, batch_size)
            rows = rng.permutation(rows, axis=0).reshape(-1)
        for batch in range(first_batch if epoch == first_epoch else 0, per_epoch):
            yield rows[batch * batch_size : (batch + 1) * batch_size]


def _mixed(sources, rates, seed: int, start: int, size: int) -> np.ndarray:
    """Returns rows `start` to `start + size` of an endless mixture, whose cycles hold the rates."""
    bounds = np.round(np.cumsum(rates) / np.sum(rates) * _CYCLE).astype(int)
    per_cycle = np.diff(bounds, prepend=0)
    cycle, _ = divmod(start, _CYCLE)
    last = -(-(start + size) // _CYCLE)
    of = np.repeat(np.arange(len(sources)), per_cycle)
    order = np.concatenate(
        [np.random.default_rng([seed, 1, c]).permutation(of) for c in range(cycle, last)]
    )
    rows = np.empty(len(order), np.int64)
    first_row = np.concatenate([[0], np.cumsum(sources)[:-1]])
    for source, (count, of_source) in enumerate(zip(sources, per_cycle, strict=True)):
        mine = np.flatnonzero(order == source)
        numbers = cycle * of_source + np.arange(len(mine))
        found = np.empty(len(mine), np.int64)
        for epoch in np.unique(numbers // max(count, 1)):
            here = numbers // count == epoch
            permutation = np.random.default_rng([seed, 2, source, epoch]).permutation(count)
            found[here] = permutation[numbers[here] % count]
        rows[mine] = first_row[source] + found
    skip = start - cycle * _CYCLE
    return rows[skip : skip + size]
