"""Keeps rows without their padding, and pads those that a batch is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from pit_jax.data.flat_arrays import Append, Arrays
from pit_jax.data.ragged import Ragged, places


@dataclasses.dataclass(frozen=True)
class Feature:
    """Holds what isn't padding of a feature of every row: all from the first number that isn't 0.

    Example, rows [0, 7, 8, 0], [0, 0, 0, 0] and [5, 0, 6, 0]:

      values   [7, 8, 5, 0, 6]
      offsets  [0, 2, 2, 5]
      starts   [1, 0, 0]

    Attributes:
      values: the numbers of all rows, one row after another.
      offsets: where each row begins in `values`, and where the last one ends; int64 [n + 1].
      starts: the column of each row's first number; int32 [n].
      width: columns of a row with its padding.
    """

    values: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.starts)

    def lengths(self) -> np.ndarray:
        """Returns how many numbers each row holds, [n]."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Ragged, width: int, left: bool = False) -> Feature:
        """Holds rows that are padded on the right, or on the left, up to `width`.

        Raises:
          ValueError: if a row is longer than that.
        """
        lengths = rows.lengths()
        if (longest := int(lengths.max(initial=0))) > width:
            raise ValueError(f"rows: got one of {longest} numbers, expected {width} at most")
        starts = (width - lengths if left else np.zeros(len(rows))).astype(np.int32)
        real = np.flatnonzero(rows.values)
        firsts = np.searchsorted(real, rows.offsets)
        some = firsts[1:] > firsts[:-1]
        begin, end = np.zeros((2, len(rows)), np.int64)
        begin[some] = real[firsts[:-1][some]]
        end[some] = real[firsts[1:][some] - 1] + 1
        starts[some] += (begin - rows.offsets[:-1])[some].astype(np.int32)
        kept = Ragged.of(rows.values, end - begin)
        if len(rows.values) > kept.offsets[-1]:
            inside = np.zeros(len(rows.values) + 1, np.int8)
            inside[begin[some]] += 1
            inside[end[some]] -= 1
            kept = dataclasses.replace(kept, values=rows.values[np.cumsum(inside[:-1]) > 0])
        return cls(kept.values, kept.offsets, starts, width)

    @classmethod
    def of_padded(cls, rows: np.ndarray) -> Feature:
        """Holds rows [n, width] without the zeros before and after what they hold."""
        count, width = rows.shape
        return cls.of(Ragged.of(rows.reshape(-1), np.full(count, width)), width)

    def put(
        self, batch: np.ndarray, numbers: np.ndarray, rows: np.ndarray, columns: np.ndarray
    ) -> None:
        """Writes rows into an array of zeros.

        Args:
          batch: the array, [B, T].
          numbers: the rows to write, [m].
          rows: the row of `batch` that each one goes to, [m].
          columns: the column of `batch` at which each one begins, [m].
        """
        begin = self.offsets[numbers]
        size = self.offsets[numbers + 1] - begin
        into = places(columns + self.starts[numbers], size)
        batch[np.repeat(rows, size), into] = self.values[places(begin, size)]


class RowWriter:
    """Appends rows to flat arrays, from which `features` reads them."""

    def __init__(self, append: Append):
        """Begins with no row.

        Args:
          append: adds to the flat arrays.
        """
        self._append = append
        self._sizes: dict[str, int] = {}

    def write(self, rows: Mapping[str, Feature]) -> None:
        """Appends rows."""
        for name, feature in rows.items():
            if name not in self._sizes:
                self._sizes[name] = 0
                self._append(f"{name}.offsets", np.zeros(1, np.int64))
            self._append(f"{name}.values", feature.values)
            self._append(f"{name}.starts", feature.starts)
            self._append(f"{name}.offsets", self._sizes[name] + feature.offsets[1:])
            self._sizes[name] += int(feature.offsets[-1])


def features(arrays: Arrays, widths: Mapping[str, int]) -> dict[str, Feature]:
    """Returns the features of the rows of a RowWriter.

    Args:
      arrays: the flat arrays.
      widths: the name of each feature -> its columns.
    """
    return {
        name: Feature(
            values=arrays[f"{name}.values"],
            offsets=arrays[f"{name}.offsets"],
            starts=arrays[f"{name}.starts"],
            width=width,
        )
        for name, width in widths.items()
    }
