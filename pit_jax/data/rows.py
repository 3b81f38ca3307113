"""Keeps rows without their padding, and pads those that a batch is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from pit_jax.data.flat_arrays import Append, Arrays


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
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        into = np.repeat(columns + self.starts[numbers], size) + within
        batch[np.repeat(rows, size), into] = self.values[np.repeat(begin, size) + within]


class RowWriter:
    """Appends padded rows to flat arrays, from which `features` reads them."""

    def __init__(self, append: Append, types: Mapping[str, np.dtype]):
        """Begins with no row.

        Args:
          append: adds to the flat arrays.
          types: the name of each feature -> its type.
        """
        self._append = append
        self._sizes = dict.fromkeys(types, 0)
        for name, dtype in types.items():
            append(f"{name}.values", np.zeros(0, dtype))
            append(f"{name}.starts", np.zeros(0, np.int32))
            append(f"{name}.offsets", np.zeros(1, np.int64))

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows, each feature [n, width]."""
        for name, array in rows.items():
            real = array != 0
            starts = real.argmax(axis=1)
            ends = array.shape[1] - real[:, ::-1].argmax(axis=1)
            ends = np.where(real.any(axis=1), ends, starts)
            columns = np.arange(array.shape[1])
            within = (columns >= starts[:, None]) & (columns < ends[:, None])
            offsets = self._sizes[name] + np.cumsum(ends - starts)
            self._append(f"{name}.values", array[within])
            self._append(f"{name}.starts", starts.astype(np.int32))
            self._append(f"{name}.offsets", offsets)
            self._sizes[name] += int(np.sum(ends - starts))


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
