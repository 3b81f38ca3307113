"""Reads preference files: makes Examples of lines, and counts what is left out and why.

A reader takes a path or pattern, or several, each local or `gs://…`. A file that begins as a gzip
file does is unpacked, whatever its name. A file that can't be opened raises a UserError. Nothing
that is wrong with a line is lost:

- A *malformed* line isn't of the format: other encodings than UTF-8, text that isn't a JSON object,
  the same key twice, a missing field, another type, more than MAX_LINE_BYTES; also the place where
  a gzip file breaks off. With `on_error='raise'` the files are read to their end and one UserError
  lists the first lines of the kind; with `'skip'` they are counted as dropped.
- A well-formed pair that can't be learned from is counted and skipped, never repaired.

Blank lines hold nothing and are counted nowhere. A byte order mark that opens a file, and CR before
a line's end, are not part of its text.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import dataclasses
import functools
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from etils import epath

from pit_jax.data.examples import Example
from pit_jax.data.files import formats
from pit_jax.errors import UserError

ON_ERROR = ("raise", "skip")
MAX_LINE_BYTES = 16 << 20
MAX_LISTED = 10
# Raises ValueError for an example that is as malformed as a line may be.
Check = Callable[[Example], None]

_GZIP = b"\x1f\x8b"
_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Reading:
    """Holds what a reader has read.

    Attributes:
      examples: the examples in file order; `index` counts them.
      read: number of lines that aren't blank; `read == len(examples) + sum(dropped.values())`.
      dropped: reason -> number of pairs left out; malformed lines are under `malformed`.
      malformed: the first MAX_LISTED malformed lines, as `file:line: got …, expected …`.
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
    malformed: list[str] = []
    read = 0
    for path in _files(paths):
        for number, line, problem in _lines(path):
            read += 1
            try:
                if problem:
                    raise ValueError(problem)
                example, values = parse(formats.json_object(line))
                formats.check_usable(example)
                if check:
                    check(example)
            except formats.Skip as reason:
                dropped[str(reason)] += 1
            except ValueError as error:
                dropped["malformed"] += 1
                if len(malformed) < MAX_LISTED:
                    malformed.append(f"{path}:{number}: {error}")
            else:
                examples.append(dataclasses.replace(example, index=len(examples)))
                for name, value in values.items():
                    columns.setdefault(name, []).append(value)
    if malformed and on_error == "raise":
        raise UserError(_listed(malformed, dropped["malformed"]))
    return Reading(examples, read, dict(dropped), tuple(malformed), columns)


def checked(examples: Sequence[Example], place: str, on_error: str, check: Check) -> Reading:
    """Checks examples that aren't lines of files; `place` and their number stand for file:line.

    Raises:
      UserError: for malformed examples, unless they are skipped.
    """
    kept: list[Example] = []
    malformed: list[str] = []
    for number, example in enumerate(examples):
        try:
            check(example)
        except ValueError as error:
            malformed.append(f"{place}:{number}: {error}")
        else:
            kept.append(dataclasses.replace(example, index=len(kept)))
    listed = malformed[:MAX_LISTED]
    if malformed and on_error == "raise":
        raise UserError(_listed(listed, len(malformed)))
    dropped = {"malformed": len(malformed)} if malformed else {}
    return Reading(kept, len(examples), dropped, tuple(listed))


def _listed(malformed: Sequence[str], total: int) -> str:
    lines = list(malformed)
    if total > len(malformed):
        lines.append(f"… and {total - len(malformed)} more, {total} malformed lines in all")
    elif total > 1:
        lines.append(f"{total} malformed lines in all")
    return "\n".join(lines)


def _files(paths: str | Sequence[str]) -> list[str]:
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[str] = []
    for pattern in map(os.fspath, patterns):
        if "**" in pattern:
            raise UserError(f"{pattern}: got a pattern with **, expected one with * for each part")
        with _reported(pattern):
            path = epath.Path(pattern)
            if path.is_dir():
                raise UserError(f"{pattern}: got a folder, expected files, such as *.jsonl in it")
            matches = [pattern]
            if not path.exists():
                found = path.parent.glob(path.name)
                matches = sorted(os.fspath(match) for match in found if not match.is_dir())
        if not matches:
            raise UserError(f"{pattern}: no such file, and no file matches it as a pattern")
        files += matches
    return files


def _lines(path: str) -> Iterator[tuple[int, bytes, str]]:
    """Yields every line that isn't blank: its number, and its bytes or else what is wrong."""
    number = 0
    with _reported(path):
        try:
            with _opened(path) as file:
                while line := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        while line and not line.endswith(b"\n"):
                            line = file.readline(MAX_LINE_BYTES)
                        limit = f"{MAX_LINE_BYTES} bytes"
                        yield number, b"", f"got a line of over {limit}, expected {limit} at most"
                        continue
                    if number == 1:
                        line = line.removeprefix(codecs.BOM_UTF8)
                    if line.strip():
                        yield number, line, ""
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield (
                number + 1,
                b"",
                f"got a gzip file that breaks off ({error}), expected a whole one",
            )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Opens a file whose readline takes a limit, and unpacks it if it is a gzip file."""
    with epath.Path(path).open("rb") as file:
        buffered = io.BufferedReader(_Raw(file), _BUFFER_BYTES)
        if buffered.peek(len(_GZIP)).startswith(_GZIP):
            with gzip.GzipFile(fileobj=buffered) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield buffered


class _Raw(io.RawIOBase):
    """Puts io's own buffering over a file that can only `read`, as those of a bucket are."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Makes UserErrors of a file that can't be read; errors of a bucket are of any type."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "://" not in path:
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [repr(error)])[0]
        raise UserError(f"{path}: can't be read: {reason}") from None
