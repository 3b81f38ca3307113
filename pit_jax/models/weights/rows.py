"""Says in one row of a table how a tensor of a family becomes part of one of our parameters.

    Row("model.layers.{}.self_attn.q_proj.weight", "layers/attention/query/kernel", "HE D -> D H E")

is a matrix of their layer `{}`, whose first dim is our heads and their widths joined and whose
second is the model's width. The letters are those of `network.py`, and these beside them:

    C  query, key and value in one tensor, of which the row takes `part` 0, 1 or 2
    P  the 2 numbers of a pair that rotary positions turn
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pit_jax.errors import UserError

_FIXED = {"C": 3, "P": 2}


class Row(NamedTuple):
    """Is a row of a family's table.

    Attributes:
      theirs: the family's name of the tensor, with `{}` for the layer.
      ours: our name of the parameter, without `decoder/`.
      dims: their dims and ours within a layer, see this module.
      part: which of query, key and value it is, in a tensor of all three.
    """

    theirs: str
    ours: str
    dims: str
    part: int | None = None


class Piece(NamedTuple):
    """Is a tensor of a family, or a part of one, which is one layer or the whole of a parameter.

    Attributes:
      theirs: name of the tensor.
      ours: name of the parameter.
      layer: the layer, None for the whole.
      row: the row that says so.
      sizes: of each letter of the row's dims.
    """

    theirs: str
    ours: str
    layer: int | None
    row: Row
    sizes: dict[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the family's tensor."""
        return tuple(math.prod(self.sizes[x] for x in group) for group in self._groups[0])

    @property
    def _groups(self) -> tuple[list[str], list[str]]:
        left, right = self.row.dims.split(" -> ")
        return left.split(), right.split()

    def ours_of(self, array: np.ndarray) -> np.ndarray:
        """Turns the family's tensor, or some of the first letter of its first dim, into ours."""
        left, right = ("".join(groups) for groups in self._groups)
        sizes = self.sizes | {left[0]: self.sizes[left[0]] * array.shape[0] // self.shape[0]}
        array = array.reshape([sizes[x] for x in left])
        if self.row.part is not None:
            array = np.take(array, self.row.part, axis=left.index("C"))
            left = left.replace("C", "")
        array = array.transpose([left.index(x) for x in right])
        return array.reshape([math.prod(sizes[x] for x in group) for group in self._groups[1]])

    def theirs_of(self, array: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        """Turns ours into the family's tensor; the inverse of `ours_of`.

        Args:
          array: a layer of our parameter.
          into: the tensor that it is a part of, written in place; None for a new one.
        """
        left, right = ("".join(groups) for groups in self._groups)
        array = array.reshape([self.sizes[x] for x in right])
        array = array.transpose([right.index(x) for x in left if x != "C"])
        if self.row.part is None:
            return np.ascontiguousarray(array.reshape(self.shape))
        into = np.empty(self.shape, array.dtype) if into is None else into
        whole = into.reshape([self.sizes[x] for x in left])
        whole[(slice(None),) * left.index("C") + (self.row.part,)] = array
        return into

    def chunks(self, numbers: int) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """Yields slices of the tensor's first dim of about so many numbers, and where they go.

        A place is the first index of each dim of our parameter.
        """
        left, right = self._groups
        letter = left[0][0]
        inner = self.shape[0] // self.sizes[letter]
        step = max(1, numbers * self.sizes[letter] // max(1, math.prod(self.shape)))
        dim = next(n for n, group in enumerate(right) if group[0] == letter)
        for first in range(0, self.sizes[letter], step):
            place = [0] * len(right)
            place[dim] = first
            last = min(first + step, self.sizes[letter])
            layer = () if self.layer is None else (self.layer,)
            yield slice(first * inner, last * inner), (*layer, *place)


def pieces(rows: Iterable[Row], shapes: Mapping[str, tuple[int, ...]], family: str) -> list[Piece]:
    """Lists every tensor that a family has for our parameters.

    Args:
      rows: the family's table.
      shapes: of our parameters by name, such as `decoder/final_norm/scale`.
      family: its name, for messages.

    Raises:
      UserError: for a parameter that the family has no tensor for.
    """
    table: dict[str, Row] = {}
    for row in rows:
        table[row.ours if row.ours.startswith("head/") else f"decoder/{row.ours}"] = row
    found = []
    for name, shape in shapes.items():
        if name not in table:
            raise UserError(f"{family} weights: our {name}: got a parameter that the family lacks")
        row = table[name]
        layered = "{}" in row.theirs
        sizes = _sizes(row, shape[1:] if layered else shape)
        for layer in range(shape[0]) if layered else (None,):
            found.append(Piece(row.theirs.format(layer), name, layer, row, sizes))
    return found


def _sizes(row: Row, shape: tuple[int, ...]) -> dict[str, int]:
    """The size of each letter, of which a group of ours has one that isn't fixed."""
    sizes = dict(_FIXED)
    for group, size in zip(row.dims.split(" -> ")[1].split(), shape, strict=True):
        fixed = math.prod(_FIXED[x] for x in group if x in _FIXED)
        (free,) = (x for x in group if x not in _FIXED)
        sizes[free] = size // fixed
    return sizes


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested parameters with their names, joined by `/`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nests leaves again; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def grouped(found: Iterable[Piece]) -> Iterator[tuple[str, list[Piece]]]:
    """Yields each tensor's name with its pieces, in the order of layers and names."""
    ordered = sorted(found, key=lambda p: (-1 if p.layer is None else p.layer, p.theirs))
    for name, each in itertools.groupby(ordered, key=lambda piece: piece.theirs):
        yield name, list(each)
