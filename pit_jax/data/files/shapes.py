"""Knows the shapes that preferences have in files, finds a file's, and reads its records by it.

To add a shape, add a row to SHAPES, and to fields.NAMES how files spell what it needs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pit_jax.data.examples import Example, turns_of
from pit_jax.data.files import formats, summaries, turns
from pit_jax.data.files.fields import NAMES, Fields, nearest
from pit_jax.data.files.formats import Columns, Half, Skip
from pit_jax.data.files.json_values import shown
from pit_jax.data.files.records import Record
from pit_jax.errors import UserError

_LOOKED_AT = 20
Found = tuple[Example, Columns]


def _fits(fields: Fields) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Shape:
    """Describes a shape of records.

    Attributes:
      name: what people read.
      needs: the names of fields.NAMES (of summaries: the keys) that a record has to have.
      example: a line of the shape.
      parse: reads a record; see formats.
      fits: what else is true of a record of the shape.
    """

    name: str
    needs: tuple[str, ...]
    example: str
    parse: Callable[[Fields], Found | Half]
    fits: Callable[[Fields], bool] = _fits

    def lacks(self, fields: Fields) -> list[str]:
        """Returns what the shape needs and a record doesn't have."""
        return [name for name in self.needs if name not in fields]


def _are_lists(fields: Fields) -> bool:
    return all(turns.listed(fields[name]) is not None for name in ("chosen", "rejected"))


def _has_no_prompt(fields: Fields) -> bool:
    return "prompt" not in fields and not _are_lists(fields)


def _are_dialogues(fields: Fields) -> bool:
    texts = (fields[name] for name in ("chosen", "rejected"))
    begun = any(isinstance(text, str) and text.lstrip().startswith("Human:") for text in texts)
    return begun and _has_no_prompt(fields)


PAIRS = Shape(
    "pairs",
    ("prompt", "chosen", "rejected"),
    '{"prompt": "Hi.", "chosen": "Hello!", "rejected": "No."}',
    formats.pair,
)
HH = Shape(
    "pairs of HH dialogues",
    ("chosen", "rejected"),
    r'{"chosen": "\n\nHuman: Hi.\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi.\n\nAss…"}',
    formats.hh,
    _are_dialogues,
)
# The first one that a record has all needs of, and that fits it, is its shape.
SHAPES = (
    PAIRS,
    HH,
    Shape(
        "pairs of whole dialogues",
        ("chosen", "rejected"),
        '{"chosen": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": '
        '"Hello!"}], "rejected": […]}',
        formats.pair,
        _are_lists,
    ),
    Shape(
        "two answers and which is better",
        ("response_a", "response_b", "preference"),
        '{"prompt": "Hi.", "response_a": "No.", "response_b": "Hello!", "winner": "b"}',
        formats.compared,
    ),
    Shape(
        "two answers with scores",
        ("prompt", "response_a", "response_b"),
        '{"prompt": "Hi.", "answer_0": "No.", "answer_1": "Hello!", "score_0": 1, "score_1": 4}',
        formats.compared,
    ),
    Shape(
        "several answers with scores",
        ("prompt", "responses"),
        '{"prompt": "Hi.", "responses": ["No.", "Hello!", "Yes?"], "scores": [1, 4, 2]}',
        formats.several,
    ),
    Shape(
        "one answer and whether it is good",
        ("prompt", "label"),
        '{"prompt": "Hi.", "completion": "Hello!", "label": true}',
        formats.labelled,
    ),
    Shape(
        "one answer and its score",
        ("prompt", "response", "score"),
        '{"prompt": "Hi.", "response": "Hello!", "helpfulness": 4}',
        formats.scored,
    ),
)
# What answers are called by the number of their turns; 0 is text.
_ANSWERS = {0: "text answers", 1: "one turn each"}
_ANY_HH = dataclasses.replace(HH, fits=_has_no_prompt)


def _summary(fields: Fields, source: str) -> Found:
    return summaries.summary(dict(fields.record), source)


def shapes_of(kind: str, source: str = "posts") -> tuple[Shape, ...]:
    """Returns the shapes that files of a kind of dataset may have; `source` is of summaries."""
    if kind == "summaries":
        example = (
            '{"info": {"post": "…", "title": "…"}, "summaries": [{"text": "…"}, {"text": "…"}], '
            '"choice": 0, "split": "train"}'
        )
        needs = ("info", "summaries", "choice", "split")
        parse = functools.partial(_summary, source=source)
        return (Shape("comparisons of summaries", needs, example, parse),)
    return (_ANY_HH, *SHAPES) if kind == "hh" else SHAPES


@dataclasses.dataclass(frozen=True)
class Rules:
    """Says how records are read.

    Attributes:
      shapes: the shapes they may have.
      columns: name of fields.NAMES -> the key that stands for it in the files.
      min_margin: by how much the better answer has to be better, in the unit of the files' scores;
        0 takes every pair.
    """

    shapes: tuple[Shape, ...] = SHAPES
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    min_margin: float = 0


class Interpreter:
    """Makes pairs of the records of files.

    Attributes:
      described: the shape of every file, without repetition.
      joined: number of pairs that were made of two records each.
      contrary: number of pairs whose rejected answer has the higher score.
    """

    def __init__(self, rules: Rules):
        self.described: dict[str, None] = {}
        self.joined = 0
        self.contrary = 0
        self._rules = rules
        self._halves: dict[tuple[str, Any], list[tuple[Record, Half]]] = {}
        self._seen, self._with_margin = 0, 0

    def pairs(self, records: Iterable[Record]) -> Iterator[tuple[Record, Found | Exception]]:
        """Yields each record with its pair, or with what is wrong with it (Skip, ValueError).

        Records that hold one answer each are yielded last: those that make a pair as one, the first
        of the two, and those that are left as Skip.

        Raises:
          UserError: if `columns` names what a file doesn't have, or `min_margin` is asked of files
            that have no scores.
        """
        for path, of_file in itertools.groupby(records, key=lambda record: record.path):
            yield from self._file(path, of_file)
        for record, found in self._joined():
            yield record, self._margin(found)
        if self._rules.min_margin and self._seen and not self._with_margin:
            raise UserError(
                f"min_margin: got {self._rules.min_margin:g} for files without scores, expected "
                f"'score_chosen' and 'score_rejected', or 'margin', in them"
            )

    def _file(self, path: str, of_file: Iterator[Record]) -> Iterator[tuple[Record, Any]]:
        first: list[Record] = []
        for record in of_file:
            first.append(record)
            if len(first) >= _LOOKED_AT and any(one.value is not None for one in first):
                break
        samples = [self._fields(record) for record in first if record.value is not None]
        self._check_columns(path, samples)
        shape, problem, sample = _find(self._rules.shapes, samples)
        if shape and sample:
            self.described[_described(shape, sample)] = None
        for record in itertools.chain(first, of_file):
            if record.value is None:
                yield record, ValueError(record.problem)
                continue
            try:
                if shape is None:
                    raise ValueError(problem)
                found = shape.parse(self._fields(record))
            except (Skip, ValueError) as error:
                yield record, error
                continue
            if isinstance(found, Half):
                key = found.prompt, turns_of(found.prompt)
                self._halves.setdefault(key, []).append((record, found))
            else:
                yield record, self._margin(found)

    def _fields(self, record: Record) -> Fields:
        return Fields(record.value or {}, self._rules.columns)

    def _check_columns(self, path: str, samples: Sequence[Fields]) -> None:
        keys = sorted({key for fields in samples for key in fields.record})
        for name, key in self._rules.columns.items():
            if samples and key not in keys:
                raise UserError(
                    f"{path}: columns: got {key!r} for {name!r}, expected one of "
                    f"{', '.join(keys)}{nearest(key, keys)}"
                )

    def _margin(self, found: Found | Exception) -> Found | Exception:
        """Counts a pair's margin, and makes a Skip of a pair whose margin is too small."""
        if isinstance(found, Exception):
            return found
        least, margin = self._rules.min_margin, found[1].get("margin")
        self._seen += 1
        self._with_margin += margin is not None
        self.contrary += margin is not None and margin < 0
        if least and (margin is None or margin < least):
            return Skip("no score" if margin is None else f"margin under {least:g}")
        return found

    def _joined(self) -> Iterator[tuple[Record, Found | Exception]]:
        """Pairs the best answer to each prompt with the worst, the second with the last but one."""
        outcomes: list[tuple[Record, Found | Exception]] = []
        for rows in self._halves.values():
            good = collections.deque(sorted(rows, key=lambda row: -row[1].score))
            while len(good) > 1 and (good[0][1].score > good[-1][1].score):
                (record, best), (other, worst) = good.popleft(), good.pop()
                outcomes.append((min(record, other, key=_number), _joined(best, worst)))
                self.joined += 1
            if len(good) > 1 and not good[0][1].is_label:
                outcomes += ((record, Skip(formats.TIE)) for record, _ in good)
            else:
                outcomes += ((record, Skip("no answer to pair it with")) for record, _ in good)
        self._halves.clear()
        yield from outcomes


def _number(record: Record) -> int:
    return record.number


def _joined(best: Half, worst: Half) -> Found:
    columns: Columns = {}
    if not best.is_label:
        margin = best.score - worst.score
        columns = {"score_chosen": best.score, "score_rejected": worst.score, "margin": margin}
    return Example(best.prompt, best.answer, worst.answer, group=best.group), columns


def _find(
    shapes: Sequence[Shape], samples: Sequence[Fields]
) -> tuple[Shape | None, str, Fields | None]:
    """Returns the shape that most of the records have, or what is wrong, and the first of them."""
    found: list[list[Fields]] = [[] for _ in shapes]
    problem = ""
    for fields in samples:
        for shape, alike in zip(shapes, found, strict=True):
            if shape.lacks(fields) or not shape.fits(fields):
                continue
            try:
                shape.parse(fields)
            except Skip:
                alike.append(fields)
            except ValueError as error:
                problem = problem or f"{error}; expected lines such as {shape.example}"
            else:
                alike.append(fields)
            break
    most = max(found, key=len)
    if most or not samples:
        return shapes[found.index(most)], "", most[0] if most else None
    return None, problem or _unknown(shapes, samples[0]), None


def _unknown(shapes: Sequence[Shape], fields: Fields) -> str:
    """Says what the shape that is nearest to a record needs."""
    shape = max(shapes, key=lambda shape: len(shape.needs) - len(shape.lacks(fields)))
    lacks = shape.lacks(fields)
    keys = sorted(fields.record)
    near = {name: nearest(name, [key for key in keys if key != name]) for name in lacks}
    name, hint = next(((n, h) for n, h in near.items() if h), ("", ""))
    hint = f"{hint[:-1]} for {name!r}?" if hint else ""
    nulls = [name for name in lacks if fields.record.get(name, "") is None]
    wants = "lacks " + " and ".join(map(repr, lacks)) if lacks else "has text without 'Human:'"
    wants += " (null is no text)" if nulls else ""
    return (
        f"got the keys {shown(keys)}, expected those of a known shape; the nearest, "
        f"{shape.name}, is as {shape.example} and this {wants}{hint}"
    )


def _described(shape: Shape, fields: Fields) -> str:
    """Says a shape, and in which of its forms a record is."""
    said = []
    if "prompt" in shape.needs:
        listed = turns.listed(fields["prompt"])
        said.append("text prompt" if listed is None else "prompt of turns")
    if "prompt" in shape.needs and "chosen" in shape.needs:
        sizes = [len(turns.listed(fields[name]) or ()) for name in ("chosen", "rejected")]
        said.append(_ANSWERS.get(max(sizes), "whole dialogues"))
    said += (
        f"{name} is {fields.key(name)!r}"
        for name in NAMES
        if name in fields and name in shape.needs and fields.key(name) != name
    )
    return f"{shape.name}: {', '.join(said)}" if said else shape.name
