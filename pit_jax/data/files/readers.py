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
import functools
from collections.abc import Callable, Sequence
from typing import Any

from pit_jax.data.examples import Example
from pit_jax.data.files import formats, records
from pit_jax.errors import UserError

ON_ERROR = ("raise", "skip")
# Raises ValueError for an example that is as malformed as a line may be.
Check = Callable[[Example], None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Holds what a reader has read.

    Attributes:
      examples: the examples in file order; `index` counts them.
      read: number of records; `read == len(examples) + sum(dropped.values())`.
      dropped: reason -> number of pairs left out; malformed lines are under `malformed`.
      malformed: what is wrong with malformed lines, as records.Problems.lines tells.
      columns: what a format tells beyond an Example: name -> a value for each example.
    """

    examples: list[Example]
    read: int
    dropped: dict[str, int]
    malformed: tuple[str, ...] = ()
    columns: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


def read_preferences(
    paths: str | Sequence[str], on_error: str = "raise", check: Check | None = None
) -> Reading:
    """Reads JSON lines with `prompt`, `chosen` and `rejected`.

    `prompt` is text, used as x as it stands, or a list of `{role, content}` turns with roles `user`
    and `assistant` in turn (and a `system` turn first, put before the first user turn and a blank
    line), ending with `user`; turns become x as dialogues of read_hh do. `chosen` and `rejected`
    are text or a list of turns: the answer, one `assistant` turn, which the turns of the prompt may
    precede. White space around answers is removed. Other keys are ignored.

    Args:
      paths: local or `gs://` paths and patterns.
      on_error: `raise` or `skip`, for malformed lines.
      check: raises ValueError for an example that makes its line malformed, such as turns that a
        chat template refuses.

    Raises:
      UserError: for a file that can't be read, and, unless they are skipped, malformed lines.
    """
    return _read(paths, on_error, formats.preference, check)


def read_hh(
    paths: str | Sequence[str], on_error: str = "raise", check: Check | None = None
) -> Reading:
    """Reads Anthropic HH-RLHF files: `chosen` and `rejected`, whole dialogues `\\n\\nHuman: …`.

    x is what stands between the first `Human: ` and the last `Assistant:`, including the blank line
    before `Assistant:`, so that `Human: {x}Assistant:` is the dialogue again, without the blank
    line it opens with. (A dialogue with no space after its first `Human:` gains one.) White space
    around the responses is removed: the layouts put one space before a response where they need it.

    Args and errors are those of read_preferences.
    """
    return _read(paths, on_error, formats.hh, check)


def read_summaries(
    paths: str | Sequence[str],
    source: str = "posts",
    on_error: str = "raise",
    check: Check | None = None,
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
      on_error, check: as those of read_preferences.

    Raises:
      UserError: for a file that can't be read, and, unless they are skipped, malformed lines.
    """
    if source not in formats.SUMMARY_SOURCES:
        choices = ", ".join(formats.SUMMARY_SOURCES)
        raise UserError(f"source: got {source!r}, expected one of {choices}")
    return _read(paths, on_error, functools.partial(formats.summary, source=source), check)


def _read(
    paths: str | Sequence[str],
    on_error: str,
    parse: Callable[[dict[str, Any]], tuple[Example, dict[str, Any]]],
    check: Check | None,
) -> Reading:
    if on_error not in ON_ERROR:
        raise UserError(f"on_error: got {on_error!r}, expected one of {', '.join(ON_ERROR)}")
    examples: list[Example] = []
    columns: dict[str, list[Any]] = {}
    dropped: collections.Counter[str] = collections.Counter()
    problems = records.Problems()
    read = 0
    for record in records.records(paths):
        read += 1
        try:
            if record.value is None:
                raise ValueError(record.problem)
            example, values = parse(record.value)
            formats.check_usable(example)
            if check:
                check(example)
        except formats.Skip as reason:
            dropped[str(reason)] += 1
        except ValueError as error:
            dropped["malformed"] += 1
            problems.add(record.place, str(error))
        else:
            examples.append(dataclasses.replace(example, index=len(examples)))
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    if problems.total and on_error == "raise":
        raise UserError(problems.message())
    return Reading(examples, read, dict(dropped), problems.lines(), columns)


def checked(examples: Sequence[Example], place: str, on_error: str, check: Check) -> Reading:
    """Checks examples that aren't lines of files; `place` and their number stand for file:line.

    Raises:
      UserError: for malformed examples, unless they are skipped.
    """
    kept: list[Example] = []
    problems = records.Problems()
    for number, example in enumerate(examples):
        try:
            check(example)
        except ValueError as error:
            problems.add(f"{place}:{number}", str(error))
        else:
            kept.append(dataclasses.replace(example, index=len(kept)))
    if problems.total and on_error == "raise":
        raise UserError(problems.message())
    dropped = {"malformed": problems.total} if problems.total else {}
    return Reading(kept, len(examples), dropped, problems.lines())
