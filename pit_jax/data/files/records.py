"""Reads objects from files of every kind, each with its place, whatever users bring.

What a file holds is told from how it begins, never from its name:

- JSON lines: an object a line;
- JSON: an array of objects, or objects over several lines, one after another;
- parquet, and Arrow or Feather files and streams (with the extra `tables`).

Any of the first two, and an Arrow stream, may be packed with gzip, zstd (with the extra `tables`),
bzip2 or xz, also more than once. A folder that `datasets` saved is read as its Arrow files are, and
`hf://datasets/ID` through `datasets` itself. Files are read piece by piece, whatever their size.

Nothing is repaired, and nothing that is wrong with a file is lost: it is a Record with a problem in
place of a value. Blank lines hold nothing and have no Record. A byte order mark that opens a file,
and CR before a line's end, are not part of its text.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import dataclasses
import glob
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.files import json_stream, tables
from pit_jax.data.files.json_values import check_columns, json_object
from pit_jax.errors import UserError

MAX_LINE_BYTES = 16 << 20
MAX_LISTED = 10

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 4096
_MAX_PACKED = 4
_PACKERS: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"\x28\xb5\x2f\xfd": ("zstd", tables.unpacked_zstd),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", lzma.LZMAFile),
}
# How files begin that can't be read -> what they are, and what is expected in their place.
_ICONV = "UTF-8, which `iconv -f UTF-16 -t UTF-8` makes of it"
_REFUSED = {
    rb"\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]": ("UTF-16", _ICONV),
    rb"\xff\xfe\0\0|\0\0\xfe\xff": ("UTF-32", _ICONV.replace("16", "32")),
    rb"PK\x03\x04": ("a zip archive", "the files in it"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", "the files in it"),
    rb"(?s).{257}ustar": ("a tar archive", "the files in it"),
    rb"version https://git-lfs": ("a pointer of Git LFS", "the file, which `git lfs pull` fetches"),
    rb"(?i)\s*<(!doctype|html|\?xml)": ("a web page", "the file that it links to"),
    rb"FEA1": ("a Feather file of version 1", "version 2, or parquet"),
}
# White space is that of JSON, which has none such as a form feed.
_ARRAY = re.compile(rb"[ \t\r\n]*\[(?:[ \t\r]*\n|[ \t\r\n]*[{\]])")
_OBJECTS = re.compile(rb'[ \t\r\n]*\{[ \t\r]*\n[ \t\r\n]*["}]')
_CSV = re.compile(rb'\s*"?[A-Za-z_][\w .-]*"?(?:[,;\t]"?[A-Za-z_][\w .-]*"?)+\r?(?:\n|\Z)')


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """Holds one object of a file, or what is wrong at its place.

    Attributes:
      path: the file, as it was named or found.
      number: its line; its row where a file isn't of lines. Both count from 1.
      value: the object, or None.
      problem: empty for an object; else one line, `got …, expected …`.
      in_rows: whether `number` counts rows.
    """

    path: str
    number: int
    value: dict[str, Any] | None
    problem: str = ""
    in_rows: bool = False

    @property
    def place(self) -> str:
        return f"{self.path}:{'row ' if self.in_rows else ''}{self.number}"


class Problems:
    """Gathers what is wrong with records, for one message about all of them.

    Attributes:
      total: number of problems.
    """

    def __init__(self, noun: str = "malformed lines"):
        self.total = 0
        self._noun = noun
        self._places: dict[str, tuple[str, int]] = {}

    def add(self, place: str, problem: str) -> None:
        """Adds a problem; only the first MAX_LISTED kinds are kept, each with its first place."""
        self.total += 1
        first, count = self._places.get(problem, (place, 0))
        if count or len(self._places) < MAX_LISTED:
            self._places[problem] = first, count + 1

    def lines(self) -> tuple[str, ...]:
        """Returns a line for each kind: `file:line: problem (and 59 more lines alike)`."""
        return tuple(
            f"{place}: {problem}{_alike(count - 1)}"
            for problem, (place, count) in self._places.items()
        )

    def message(self) -> str:
        """Returns the lines, and a last one with the total if there are several."""
        lines = list(self.lines())
        rest = self.total - sum(count for _, count in self._places.values())
        end = f"{self.total} {self._noun} in all"
        if rest:
            lines.append(f"… and {rest} more, {end}")
        elif len(lines) > 1:
            lines.append(end)
        return "\n".join(lines)


def _alike(count: int) -> str:
    return f" (and {count} more {'line' if count == 1 else 'lines'} alike)" if count else ""


def records(paths: str | Sequence[str]) -> Iterator[Record]:
    """Yields the records of files, in their order.

    Args:
      paths: paths or patterns, local or `gs://`; `-` for standard input; a folder that `datasets`
        saved; or `hf://datasets/ID`, as tables.hub_rows describes.

    Raises:
      UserError: for a file that isn't there or can't be opened. Nothing in a file raises.
    """
    return _records(find(paths))


def find(paths: str | Sequence[str]) -> list[str]:
    """Returns the files that paths and patterns name; those of a pattern in the order of names.

    Raises:
      UserError: for a path or pattern without a file, and for a file that is found twice.
    """
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: list[str] = []
    for pattern in map(os.fspath, patterns):
        if pattern == "-" or pattern.startswith(tables.HUB):
            found.append(pattern)
            continue
        with _reported(pattern):
            found += _matches(os.path.expanduser(pattern))
    seen: set[str] = set()
    for path in found:
        if (name := path if "://" in path else os.path.normpath(path)) in seen:
            raise UserError(f"{path}: is named twice, expected every file once")
        seen.add(name)
    return found


def _matches(pattern: str) -> list[str]:
    if "**" in pattern and not files.is_local(pattern):
        raise UserError(f"{pattern}: got a pattern with **, expected one with * for each part")
    if not pattern:
        raise UserError("got an empty path, expected a file or a pattern of files")
    if re.match("(https?|ftp|file|hf)://", pattern):
        raise UserError(f"{pattern}: got a URL, expected a path, gs://… or {tables.HUB}OWNER/NAME")
    path = epath.Path(pattern)
    if path.is_dir():
        if not tables.is_saved(path):
            raise UserError(f"{pattern}: got a folder, expected files, such as *.jsonl in it")
        return [pattern]
    if path.exists():
        return [pattern]
    if "**" in pattern:
        matches = map(epath.Path, glob.iglob(pattern, recursive=True))
    else:
        matches = path.parent.glob(path.name)
    found = sorted({os.fspath(one) for one in matches if one.exists() and not one.is_dir()})
    if not found:
        raise UserError(f"{pattern}: no such file, and no file matches it as a pattern")
    return found


def _records(paths: Sequence[str]) -> Iterator[Record]:
    for path in paths:
        with _reported(path):
            if path.startswith(tables.HUB):
                yield from _rows(path, tables.hub_rows(path))
            elif path == "-":
                yield from _file_records("stdin", sys.stdin.buffer)
            elif epath.Path(path).is_dir():
                yield from _rows(path, tables.saved_rows(epath.Path(path), _Raw))
            else:
                with epath.Path(path).open("rb") as file:
                    yield from _file_records(path, file)


def _file_records(path: str, file: Any) -> Iterator[Record]:
    raw = _Raw(file)
    try:
        raw, names = _unpacked(raw)
        head = raw.head().removeprefix(codecs.BOM_UTF8)
        problem = _refusal(raw.head()) or _refusal_of_csv(head)
    except _BrokenOff as error:
        problem = str(error)
    if problem:
        yield Record(path, 1, None, problem)
    elif kind := tables.kind(raw.head()):
        if names and kind != "arrow stream":
            yield Record(path, 1, None, f"got a packed {kind} file, expected it unpacked")
        else:
            yield from _rows(path, tables.rows(kind, raw))
    elif match := _ARRAY.match(head) or _OBJECTS.match(head):
        yield from _json(path, raw, is_array=match.re is _ARRAY)
    else:
        yield from _lines(path, raw)


def _lines(path: str, raw: _Raw) -> Iterator[Record]:
    number = 0
    file = io.BufferedReader(raw, _BUFFER_BYTES)
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                limit = f"{MAX_LINE_BYTES} bytes"
                problem = f"got a line of over {limit}, expected {limit} at most"
                yield Record(path, number, None, problem)
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _record(path, number, line)
    except _BrokenOff as error:
        yield Record(path, number + 1, None, str(error))


def _json(path: str, raw: _Raw, is_array: bool) -> Iterator[Record]:
    number = 0
    file = io.BufferedReader(raw, _BUFFER_BYTES)
    try:
        for number, text in enumerate(json_stream.parts(file, is_array, MAX_LINE_BYTES), 1):
            yield _record(path, number, text, in_rows=True)
    except (_BrokenOff, json_stream.NotJson) as error:
        yield Record(path, number + 1, None, str(error), in_rows=True)


def _record(path: str, number: int, text: bytes, in_rows: bool = False) -> Record:
    try:
        value = json_object(text)
        check_columns(value)
    except ValueError as error:
        return Record(path, number, None, str(error), in_rows)
    return Record(path, number, value, "", in_rows)


def _rows(path: str, rows: Iterator[dict[str, Any] | ValueError]) -> Iterator[Record]:
    for number, row in enumerate(rows, 1):
        if isinstance(row, ValueError):
            yield Record(path, number, None, str(row), in_rows=True)
        else:
            yield Record(path, number, row, in_rows=True)


def _refusal(head: bytes) -> str:
    """Returns what is wrong with a whole file of this beginning; empty if nothing is."""
    found = [what for pattern, what in _REFUSED.items() if re.match(pattern, head)]
    return f"got {found[-1][0]}, expected {found[-1][1]}" if found else ""


def _refusal_of_csv(head: bytes) -> str:
    if not _CSV.match(head) or b"\n{" in head or b"\n[" in head:
        return ""
    line = head.split(b"\n")[0].decode("utf-8", "replace")
    return f"got a table as text with the columns {line.strip()[:60]!r}, expected JSON lines"


class _BrokenOff(Exception):
    """Says that a packed file breaks off or is damaged."""


def _unpacked(raw: _Raw) -> tuple[_Raw, list[str]]:
    """Returns what is in a file that is packed, and how it was packed, outermost first."""
    names: list[str] = []
    while packer := next(
        (p for magic, p in _PACKERS.items() if raw.head().startswith(magic)), None
    ):
        if len(names) == _MAX_PACKED:
            raise _BrokenOff(f"got a file packed over {_MAX_PACKED} times, expected once at most")
        name, unpack = packer
        names.append(name)
        raw = _Raw(unpack(io.BufferedReader(raw, _BUFFER_BYTES)), name)
    return raw, names


class _Raw(io.RawIOBase):
    """Puts io's own buffering over a file that can only `read`, as those of a bucket are.

    `packing` names how the file was packed if `file` unpacks it.
    """

    def __init__(self, file: Any, packing: str = ""):
        self._file = file
        self._packing = packing
        self._head = b""

    def head(self) -> bytes:
        """Returns how the file begins, which is still to be read after it."""
        while len(self._head) < _HEAD_BYTES and (data := self._next(_HEAD_BYTES)):
            self._head += data
        return self._head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._head[: len(buffer)] or self._next(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def seekable(self) -> bool:
        return hasattr(self._file, "seek") and getattr(self._file, "seekable", lambda: True)()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._head = b""
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def _next(self, size: int) -> bytes:
        if not self._packing:
            return self._file.read(size)
        try:
            # read1 returns what there is before the place where a file breaks off.
            return self._file.read1(size)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = str(error).splitlines()[0]
            raise _BrokenOff(
                f"got a {self._packing} file that breaks off ({reason}), expected a whole one"
            ) from None


@contextlib.contextmanager
def _reported(path: str) -> Iterator[None]:
    """Makes UserErrors of a file that can't be read, or for which a package is missing."""
    with files.reported(path, f"{path}: can't be read"):
        try:
            yield
        except ImportError as error:
            raise UserError(f"{path}: {error}") from None
