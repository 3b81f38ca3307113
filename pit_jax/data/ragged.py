"""Holds rows of different lengths in one flat array, and joins them column by column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Holds rows without padding: row i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
      values: the numbers of all rows, one row after another.
      offsets: where each row begins in `values`, and where the last one ends; int64 [n + 1].
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Returns rows of these lengths, [n]."""
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        """Returns rows of ids, int32."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        parts = [np.asarray(row, np.int32) for row in rows]
        return cls.of(np.concatenate([np.zeros(0, np.int32), *parts]), lengths)

    @classmethod
    def of_numbers(cls, numbers: np.ndarray) -> Ragged:
        """Returns rows of one number each, [n]."""
        return cls(numbers, np.arange(len(numbers) + 1))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> np.ndarray:
        """Returns how many numbers each row has, [n]."""
        return np.diff(self.offsets)

    def filled(self, number: int) -> Ragged:
        """Returns rows of the same lengths that hold a number."""
        return Ragged(np.full_like(self.values, number), self.offsets)

    def count(self, number: int) -> np.ndarray:
        """Returns how often each row has a number, [n]."""
        up_to = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.values == number)])
        return np.diff(up_to[self.offsets])

    def only(self, chosen: np.ndarray) -> Ragged:
        """Returns the rows with only those of their numbers that a mask of all numbers chooses."""
        if chosen.all():
            return self
        up_to = np.concatenate([np.zeros(1, np.int64), np.cumsum(chosen)])
        return Ragged(self.values[chosen], up_to[self.offsets])

    def take(self, rows: np.ndarray) -> Ragged:
        """Returns the rows of these numbers, in their order."""
        lengths = self.lengths()[rows]
        found = Ragged.of(self.values, lengths)
        return dataclasses.replace(found, values=self.values[places(self.offsets[rows], lengths)])

    def select(self, chosen: np.ndarray) -> Ragged:
        """Returns the rows of a mask, [n]."""
        return self if chosen.all() else self.take(np.flatnonzero(chosen))


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns start, start + 1, … of each row, as many as it is long; both [n]."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def join(pieces: Iterable[Ragged | Sequence[int]]) -> Ragged:
    """Puts the rows of several pieces behind each other; ids in a list are in every row.

    At least one piece has rows.
    """
    parts = [piece for piece in pieces if isinstance(piece, Ragged) or len(piece)]
    some = next(part for part in parts if isinstance(part, Ragged))
    lengths = np.zeros(len(some), np.int64)
    for part in parts:
        lengths += part.lengths() if isinstance(part, Ragged) else len(part)
    found = Ragged.of(some.values, lengths)
    values = np.empty(found.offsets[-1], some.values.dtype)
    starts = found.offsets[:-1]
    for part in parts:
        if isinstance(part, Ragged):
            values[places(starts, part.lengths())] = part.values
            starts = starts + part.lengths()
        else:
            values[starts[:, None] + np.arange(len(part))] = part
            starts = starts + len(part)
    return dataclasses.replace(found, values=values)


def interleave(parts: Sequence[Ragged]) -> Ragged:
    """Returns the first row of each part, then the second of each, and so on."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.stack([part.lengths() for part in parts], axis=1).reshape(-1)
    found = Ragged.of(parts[0].values, lengths)
    values = np.empty(found.offsets[-1], parts[0].values.dtype)
    for number, part in enumerate(parts):
        values[places(found.offsets[number : -1 : len(parts)], part.lengths())] = part.values
    return dataclasses.replace(found, values=values)


def same(a: Ragged, b: Ragged) -> np.ndarray:
    """Returns whether each row of one is equal to that of the other, bool [n]."""
    lengths = a.lengths()
    equal = lengths == b.lengths()
    rows = np.flatnonzero(equal)
    ours, theirs = a.take(rows), b.take(rows)
    differ = Ragged((ours.values != theirs.values).astype(np.int32), ours.offsets)
    equal[rows] = differ.count(1) == 0
    return equal
