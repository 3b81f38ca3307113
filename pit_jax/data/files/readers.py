"""Makes Examples of the records of preference files, and counts what is left out and why.

A reader takes a path or pattern, or several, of any kind that `records` reads. A file that can't be
opened raises a UserError. Nothing that is wrong with a record is lost:

- A *malformed* line isn't of the format: it is no object, as `records` tells, or it has a missing
  field or one of another type. With `on_error='raise'` the files are read to their end and one
  UserError lists the first lines of each kind; with `'skip'` they are counted as dropped.
- A well-formed pair that can't be learned from is counted and skipped, never repaired.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.data.examples import Example
from pit_jax.data.files import formats, records, shapes, summaries
from pit_jax.data.progress import told
from pit_jax.data.texts import TextWriter
from pit_jax.errors import UserError

ON_ERROR = ("raise", "skip")
# Raises ValueError for an example that is as malformed as a line may be.
Check = Callable[[Example], None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Holds what a reader has read.

    Attributes:
      examples: the examples in file order; `index` counts them.
      read: number of records, two that make a pair together counted as one;
        `read == len(examples) + sum(dropped.values())`.
      dropped: reason -> number of pairs left out; malformed lines are under `malformed`.
      malformed: what is wrong with malformed lines, as records.Problems.lines tells.
      columns: what a shape tells beyond an Example: name -> a value for each example, or None.
      shape: the shape that each file was read as, such as `pairs: text prompt, text answers`.
      joined: number of pairs that were made of two records each.
    """

    examples: Sequence[Example]
    read: int
    dropped: dict[str, int]
    malformed: tuple[str, ...] = ()
    columns: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    shape: str = ""
    joined: int = 0


def read_preferences(
    paths: str | Sequence[str],
    on_error: str = "raise",
    check: Check | None = None,
    columns: Mapping[str, str] | None = None,
    min_margin: float = 0,
    with_columns: bool = True,
) -> Reading:
    """Reads preferences in any of shapes.SHAPES, such as `prompt`, `chosen` and `rejected`.

    Prompts are text or turns and become x as module turns says. White space around answers is
    removed. Keys that a shape doesn't name are ignored. The columns `margin`, `score_chosen` and
    `score_rejected` are kept where a record tells them; None stands where it doesn't. Pairs of
    equal scores are dropped as a tie.

    Args:
      paths: local or `gs://` paths and patterns.
      on_error: `raise` or `skip`, for malformed lines.
      check: raises ValueError for an example that makes its line malformed, such as turns that a
        chat template refuses.
      columns: name of fields.NAMES -> the key that stands for it in the files.
      min_margin: by how much the chosen answer has to be better, in the unit of the files' scores;
        0 takes every pair.
      with_columns: whether to keep them, which takes up to 100 bytes a pair.

    Raises:
      UserError: for a file that can't be read, a column that isn't there, a `min_margin` of files
        without scores, and, unless they are skipped, malformed lines.
    """
    rules = shapes.Rules(shapes.shapes_of("preferences"), columns or {}, min_margin)
    return _read(paths, on_error, check, rules, with_columns)


def read_hh(
    paths: str | Sequence[str],
    on_error: str = "raise",
    check: Check | None = None,
    columns: Mapping[str, str] | None = None,
    min_margin: float = 0,
    with_columns: bool = True,
) -> Reading:
    """Reads Anthropic HH-RLHF files: `chosen` and `rejected`, whole dialogues `\\n\\nHuman: …`.

    x is what stands between the first `Human: ` and the last `Assistant:`, including the blank line
    before `Assistant:`, so that `Human: {x}Assistant:` is the dialogue again, without the blank
    line it opens with. (A dialogue with no space after its first `Human:` gains one.) White space
    around the responses is removed: the layouts put one space before a response where they need it.

    Files in any other of shapes.SHAPES, such as HH-RLHF as turns, are read as read_preferences
    does; so are Args and errors those of read_preferences.
    """
    rules = shapes.Rules(shapes.shapes_of("hh"), columns or {}, min_margin)
    return _read(paths, on_error, check, rules, with_columns)


def read_summaries(
    paths: str | Sequence[str],
    source: str = "posts",
    on_error: str = "raise",
    check: Check | None = None,
    with_columns: bool = True,
) -> Reading:
    """Reads the comparisons of OpenAI's summarize-from-feedback, `batch*.json`: an object a line.

    The chosen response is `summaries[choice].text`, the rejected response is the other, both
    without white space around them. x of a Reddit post, and of a CNN/DM article, which has no
    subreddit, is

        Subreddit: r/{info.subreddit}
        Title: {info.title}

        {info.post}

        Summarise the post above.

    with a blank line after it, as dialogues of read_hh have; a missing title or subreddit has no
    line. The columns `split` (train, valid1, valid2 or test, as the record says) and `confidence`
    (`extra.confidence`, how sure the rater was; -1 where it is missing) are kept.

    Args:
      paths: local or `gs://` paths and patterns.
      source: `posts` or `articles`; the others are dropped.
      on_error, check, with_columns: as those of read_preferences.

    Raises:
      UserError: for a file that can't be read, and, unless they are skipped, malformed lines.
    """
    if source not in summaries.SOURCES:
        choices = ", ".join(summaries.SOURCES)
        raise UserError(f"source: got {source!r}, expected one of {choices}")
    rules = shapes.Rules(shapes.shapes_of("summaries", source))
    return _read(paths, on_error, check, rules, with_columns)


def _read(
    paths: str | Sequence[str],
    on_error: str,
    check: Check | None,
    rules: shapes.Rules,
    with_columns: bool,
) -> Reading:
    if on_error not in ON_ERROR:
        raise UserError(f"on_error: got {on_error!r}, expected one of {', '.join(ON_ERROR)}")
    examples = TextWriter()
    columns: dict[str, list[Any]] = {}
    dropped: collections.Counter[str] = collections.Counter()
    problems = records.Problems()
    interpreter = shapes.Interpreter(rules)
    read = 0
    for record, found in told(interpreter.pairs(records.records(paths)), "pairs read"):
        read += 1
        try:
            if isinstance(found, Exception):
                raise found
            example, values = found
            formats.check_usable(example)
            if check:
                check(example)
        except formats.Skip as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            dropped["malformed"] += 1
            problems.add(record.place, str(error))
        else:
            for name in values if with_columns else ():
                columns.setdefault(name, [None] * len(examples))
            for name, column in columns.items():
                column.append(values.get(name))
            examples.append(example)
    if problems.total and on_error == "raise":
        raise UserError(problems.message())
    shape = "; ".join(interpreter.described)
    if interpreter.contrary:
        shape += f" (the rejected answer has the higher score in {interpreter.contrary:,})"
    return Reading(
        examples.finish(),
        read,
        dict(dropped),
        problems.lines(),
        columns,
        shape,
        interpreter.joined,
    )


def checked(examples: Sequence[Example], place: str, on_error: str, check: Check) -> Reading:
    """Checks examples that aren't lines of files; `place` and their number stand for file:line.

    Those that nothing can be learned from are dropped and counted, as those of files are.

    Raises:
      UserError: for malformed examples, unless they are skipped.
    """
    kept = TextWriter()
    dropped: collections.Counter[str] = collections.Counter()
    problems = records.Problems()
    for number, example in enumerate(examples):
        try:
            formats.check_usable(example)
            check(example)
        except formats.Skip as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            dropped["malformed"] += 1
            problems.add(f"{place}:{number}", str(error))
        else:
            kept.append(example)
    if problems.total and on_error == "raise":
        raise UserError(problems.message())
    return Reading(kept.finish(), len(examples), dict(dropped), problems.lines())
