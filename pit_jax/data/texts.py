"""Keeps the text of examples in one piece, from which each example is made when it is asked for.

Ten million examples as Python objects would take 15 GB. Here they are bytes in a temporary file
that is mapped to memory, and eight bytes each that say where they begin.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import functools
import hashlib
import mmap
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from pit_jax.data.examples import (
    FOLDS,
    SPLITS,
    TEXTS,
    Example,
    quoted,
    stable_hashes,
    turns_json,
    with_turns,
)
from pit_jax.data.progress import chunks

_IN_MEMORY = 64 << 20
# An example is the lengths of these texts in bytes, then the texts; no group means the prompt.
_FIELDS = ("prompt", "group", "turns", "chosen", "rejected", "reflection")
_LENGTHS = struct.Struct("<6I")
_COLUMNS = (*TEXTS, "turns")


class TextWriter:
    """Takes examples one by one, in memory until they are many."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 (goes with this)
        self._offsets = array.array("q", [0])

    def append(self, e: Example) -> None:
        """Adds an example; its `index` becomes its number here."""
        group = "" if e.group == e.prompt else e.group
        texts = (e.prompt, group, turns_json(e.prompt), e.chosen, e.rejected, e.reflection)
        parts = [text.encode("utf-8", "surrogatepass") for text in texts]
        record = _LENGTHS.pack(*map(len, parts)) + b"".join(parts)
        self._file.write(record)
        self._offsets.append(self._offsets[-1] + len(record))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def finish(self) -> Examples:
        """Returns all examples, in their order."""
        offsets = np.array(self._offsets, np.int64)
        self._file.flush()
        content: Any = b""
        if self._file._rolled:  # type: ignore[attr-defined]
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        else:
            self._file.seek(0)
            content = self._file.read()
        self._file.close()
        return Examples.whole(content, offsets)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Holds the text of all examples that a load has read.

    Attributes:
      parts: the bytes of some examples, and where each of these begins; one after another.
      name: names the group of an example by its prompt and by its group as it was read.
      renamed: number of an example -> the name of its group, where that is another one.
    """

    parts: list[tuple[Any, np.ndarray]]
    name: Callable[[str, str], str] = lambda prompt, group: group
    renamed: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def starts(self) -> list[int]:
        """The number of the first example of each part, and the number of all."""
        return np.cumsum([0, *(len(offsets) - 1 for _, offsets in self.parts)]).tolist()

    def fields(self, row: int) -> list[bytes]:
        """Returns the texts of an example, in the order of _FIELDS."""
        part = bisect.bisect_right(self.starts, row) - 1
        content, offsets = self.parts[part]
        within = row - self.starts[part]
        record = content[offsets[within] : offsets[within + 1]]
        place, found = _LENGTHS.size, []
        for length in _LENGTHS.unpack_from(record):
            found.append(record[place : place + length])
            place += length
        return found

    def example(self, row: int, index: int) -> Example:
        """Makes an example."""
        prompt, group, turns, chosen, rejected, reflection = map(_text, self.fields(row))
        x = with_turns(prompt, turns)
        name = self.renamed.get(row) or self.name(prompt, group or prompt)
        return Example(x, chosen, rejected, reflection, index, name)

    def columns(self, rows: np.ndarray, names: Sequence[str]) -> list[list[bytes]]:
        """Returns the texts of some examples in UTF-8: a list for each name of _FIELDS."""
        found: list[list[bytes]] = [[b""] * len(rows) for _ in names]
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(parts).tolist():
            places = np.flatnonzero(parts == part)
            content, offsets = self.parts[part]
            begins = offsets[rows[places] - self.starts[part]][:, None]
            heads = np.frombuffer(content, np.uint8)[begins + np.arange(_LENGTHS.size)]
            lengths = heads.view("<u4").astype(np.int64)
            ends = begins + _LENGTHS.size + np.cumsum(lengths, axis=1)
            starts = ends - lengths
            for column, number in zip(found, map(_FIELDS.index, names), strict=True):
                bounds = zip(starts[:, number].tolist(), ends[:, number].tolist(), strict=True)
                texts = [content[start:end] for start, end in bounds]
                if len(places) == len(rows):
                    column[:] = texts
                else:
                    for place, text in zip(places.tolist(), texts, strict=True):
                        column[place] = text
        return found

    def asked(self, rows: np.ndarray) -> Iterator[tuple[str, str]]:
        """Yields the prompt and the group of some examples as they were read."""
        for prompt, group in zip(*self.columns(rows, ("prompt", "group")), strict=True):
            yield (x := _text(prompt)), (_text(group) or x)

    def groups(self, rows: np.ndarray) -> list[str]:
        """Returns the names of the groups of some examples."""
        found = [self.name(prompt, group) for prompt, group in self.asked(rows)]
        if self.renamed:
            named = zip(rows.tolist(), found, strict=True)
            found = [self.renamed.get(row) or name for row, name in named]
        return found

    def sizes(self) -> np.ndarray:
        """Returns the bytes of each example, [n]."""
        return np.concatenate([np.diff(offsets) for _, offsets in self.parts])

    @functools.cached_property
    def hashes(self) -> dict[str, np.ndarray]:
        """What the group of each example hashes to, [n], for `split` and `order`, and its `fold`.

        Two groups have one hash by a chance of 3e-6 among ten million.
        """
        count = self.starts[-1]
        found = {name: np.empty(count, np.uint64) for name in ("split", "order")}
        found["fold"] = np.empty(count, np.uint8)
        for some in chunks(count, "groups"):
            names = self.groups(np.arange(count)[some])
            for purpose, hashes in found.items():
                made = stable_hashes(names, purpose)
                hashes[some] = made % len(FOLDS) if purpose == "fold" else made
        return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


class Examples(Sequence[Example]):
    """Some examples in an order, each made when it is asked for.

    Attributes:
      texts: what they are made of.
      rows: the number of each one in `texts`, [n].
      indices: the `index` of each one, int32 [n].
    """

    def __init__(self, texts: Texts, rows: np.ndarray, indices: np.ndarray):
        self.texts = texts
        self.rows = rows
        self.indices = indices

    @classmethod
    def whole(cls, content: Any, offsets: np.ndarray) -> Examples:
        """Returns all examples whose bytes begin at `offsets`, in their order."""
        rows = np.arange(len(offsets) - 1)
        return cls(Texts([(content, offsets)]), rows, rows.astype(np.int32))

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """Returns examples that may be in a list, as they are."""
        if isinstance(examples, cls):
            return examples
        writer, indices = TextWriter(), []
        for example in examples:
            writer.append(example)
            indices.append(example.index)
        made = writer.finish()
        return cls(made.texts, made.rows, np.array(indices, np.int32))

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Returns several, which are made of the same texts, in the order of their `index`."""
        if len(parts) == 1:
            return parts[0]
        rows, indices = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "indices")
        )
        order = np.argsort(indices, kind="stable")
        return cls(parts[0].texts, rows[order], indices[order])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> Examples: ...

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.select(place)
        return self.texts.example(int(self.rows[place]), int(self.indices[place]))

    def __iter__(self) -> Iterator[Example]:
        for row, index in zip(self.rows, self.indices, strict=True):
            yield self.texts.example(int(row), int(index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(Example.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Iterable[Example]) -> list[Example]:
        return [*self, *other]

    def __radd__(self, other: Iterable[Example]) -> list[Example]:
        return [*other, *self]

    def select(self, which: Any) -> Examples:
        """Returns those that a slice, a mask [n] or their places [m] choose."""
        return Examples(self.texts, self.rows[which], self.indices[which])

    def columns(self) -> dict[str, np.ndarray]:
        """Returns their texts in UTF-8, each [n]: those of TEXTS, and `turns` as JSON."""
        found = {}
        for name, texts in zip(_COLUMNS, self.texts.columns(self.rows, _COLUMNS), strict=True):
            found[name] = np.empty(len(self), object)
            found[name][:] = texts
        return found

    def strings(self) -> dict[str, list[str]]:
        """Returns what `columns` does, as text."""
        texts = self.texts.columns(self.rows, _COLUMNS)
        return {name: [*map(_text, each)] for name, each in zip(_COLUMNS, texts, strict=True)}

    def size(self) -> int:
        """Counts the bytes of their text."""
        return int(self.texts.sizes()[self.rows].sum())

    def hashes(self, purpose: str) -> np.ndarray:
        """Returns what the group of each one hashes to, [n]; see Texts.hashes."""
        return self.texts.hashes[purpose][self.rows]


def of_fold(examples: Iterable[Example], fold: str) -> Examples:
    """Returns the examples of a fold, one of FOLDS, in their order."""
    examples = Examples.of(examples)
    return examples.select(examples.hashes("fold") == FOLDS.index(fold))


def digest(datasets: Iterable[Mapping[str, Examples]], rates: Sequence[float]) -> str:
    """Computes a SHA-256 of all that examples are: texts, turns, splits, order and groups.

    Args:
      datasets: the splits of each dataset.
      rates: how often each dataset is drawn; empty where that follows from their sizes.
    """
    found = hashlib.sha256(repr(tuple(rates)).encode())
    for splits in datasets:
        for split in SPLITS:
            examples = splits[split]
            found.update(f"{split} {len(examples)}".encode())
            for some in chunks(len(examples), f"pairs of {split} in the digest"):
                found.update("".join(_said(examples.select(some))).encode())
    return found.hexdigest()


def _said(examples: Examples) -> Iterator[str]:
    """What json.dumps makes of [index, group, prompt, turns, chosen, rejected, reflection]."""
    texts = examples.strings()
    names = ("prompt", "turns", "chosen", "rejected", "reflection")
    groups = examples.texts.groups(examples.rows)
    columns = zip(groups, *(texts[name] for name in names), strict=True)
    for index, fields in zip(examples.indices.tolist(), columns, strict=True):
        yield f"[{index}, {', '.join(map(quoted, fields))}]"
