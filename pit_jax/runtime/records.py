"""Writes and reads what a stage records as it trains: `metrics.jsonl`, one JSON object a line.

A digest of all lines so far is in every checkpoint, and in the stage's result. A stage that goes on
compares its records with it, and so does who reads those of a complete stage: records that are cut
off or changed are noticed, though nothing is trained on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from io import RawIOBase
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.runtime import processes

NAME = "metrics.jsonl"  # in the stage's folder
ASIDE = ".damaged"  # what a user adds to the file's name to go on without it

_RESERVED_KEYS = ("step", "texts")
_UPLOAD_SECONDS = 60.0


def read_jsonl(
    path: str | os.PathLike[str], written: Mapping[str, Any] = {}, last: int | None = None
) -> list[dict[str, Any]]:
    """Reads the records of a JSONL file; null values come back as nan.

    A last line cut short by a crash, which has no end, is left out. A user who goes on without
    damaged records renames the file to FILE.damaged: then what can be read of that counts.

    Args:
      path: the file.
      written: what `JsonlWriter.written` said of these records; nothing where that isn't known.
      last: the last step whose records count; None for all.

    Raises:
      UserError: the file isn't there, a line is no JSON object with a step, or the records aren't
        those that were written.
    """
    file = epath.Path(path)
    aside = file.with_name(file.name + ASIDE)
    left = None
    if aside.exists():
        left = list(_readable(aside.read_bytes(), math.inf if last is None else last))
    if not file.exists():
        if left is None:
            raise UserError(
                f"{path}: not found, expected what the stage recorded; bring it back from a copy, "
                f"or make an empty file {aside.name} beside it to go on without"
            )
        return left
    records = _up_to(last, _strictly(path, file.read_bytes()))
    found = summary(records)
    if written and found != written and (left is None or found != summary(left)):
        reason = "other values than were written"
        if found["count"] != written["count"]:
            reason = f"got {found['count']} records, expected {written['count']}"
        raise UserError(f"{path}: is damaged, {reason}{_remedy(file)}")
    return records


def summary(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the `count` of records, and the `sha256` of their lines."""
    lines = [_json_line(record).encode() for record in records]
    return {"count": len(lines), "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}


def _remedy(file: epath.Path) -> str:
    return (
        f"; bring it back from a copy, or rename it to {file.name}{ASIDE} to go on with the "
        "records that can be read, which only the curves have"
    )


def _up_to(last: int | None, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if last is None or record.get("step", 0) <= last]


def _readable(data: bytes, last: float) -> Iterator[dict[str, Any]]:
    """Yields the records of damaged data whose steps come after one another, up to the last."""
    step = -1
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            record = _record(line)
            if step < record.get("step", -1) <= last:
                step = record["step"]
                yield record


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    if not isinstance(record.get("step", 0), int):
        raise ValueError("its step is no number")
    if rb"\ud" in line.lower():  # half a character, which no file can have
        json.dumps(record, ensure_ascii=False).encode()
    return {key: math.nan if value is None else value for key, value in record.items()}


def _strictly(path: str | os.PathLike[str], data: bytes) -> list[dict[str, Any]]:
    *lines, torn = data.split(b"\n")
    while not torn and lines and not lines[-1].strip():
        lines.pop()
    lines += [torn] if torn else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except (ValueError, RecursionError) as error:
            if torn and number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: is damaged, expected a JSON object, got {line[:80]!r}"
                + _remedy(epath.Path(path))
            ) from error
    return records


class JsonlWriter:
    """Writes one JSON object a line: `{"step": 10, "loss": 1.5, "texts": {"sample": "..."}}`.

    On a disk every line is written at once; what a full disk refuses waits for the next line, and
    `flush` and `close` raise as long as something waits. In a bucket, where nothing can be
    appended, the file is written anew when `flush` or `close` is called, and by the first `write`
    after a minute. A value that is not finite is stored as null, so that every line is standard
    JSON.

    Args:
      path: the file; it and its folder are made when absent.
      resume_step: the step the run continues from. Records of later steps, which the run will write
        again, are dropped, as is a torn last line. None keeps every whole record; -1 starts afresh.
      written: what `written` returned at that step, with which the file is compared.

    Raises:
      UserError: if the file isn't what was written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resume_step: int | None = None,
        written: Mapping[str, Any] = {},
    ):
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        there = self._path.exists() or written.get("count")
        records = read_jsonl(self._path, written, resume_step) if there else []
        self._lines = [_json_line(record) for record in records]
        self._count = len(records)
        self._digest = hashlib.sha256("".join(self._lines).encode())
        self._file: RawIOBase | None = None
        self._waiting = b""
        self._upload()
        if files.is_local(self._path):
            self._lines = []
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def _upload(self) -> None:
        files.write_whole(self._path, "".join(self._lines))
        self._uploaded, self._changed = time.monotonic(), False

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        for key in _RESERVED_KEYS:
            if key in scalars:
                raise ValueError(f"a scalar may not be named {key!r}: the record itself uses it")
        record: dict[str, Any] = {"step": int(step)}
        record.update((name, float(value)) for name, value in scalars.items())
        if texts:
            record["texts"] = dict(texts)
        line = _json_line(record)
        self._count += 1
        self._digest.update(line.encode())
        if self._file is not None:
            self._waiting += line.encode()
            with contextlib.suppress(OSError):  # `flush` says it, before the next checkpoint
                self._append()
            return
        self._lines.append(line)
        self._changed = True
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self._upload()

    def written(self) -> dict[str, Any]:
        """Returns what `summary` does of all records that the file has or that wait for it."""
        return {"count": self._count, "sha256": self._digest.hexdigest()}

    def _append(self) -> None:
        while self._file is not None and self._waiting:
            with files.named(self._path):
                taken = self._file.write(self._waiting) or 0
            self._waiting = self._waiting[taken:]

    def flush(self) -> None:
        self._append()
        if self._file is not None:  # after a power cut no checkpoint may know of more
            with files.named(self._path):
                os.fsync(self._file.fileno())
        if self._changed:
            self._upload()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()


def _json_line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def open_together(path: epath.Path, step: int, written: Mapping[str, Any]) -> JsonlWriter | None:
    """Opens a JsonlWriter in the first process, and nothing in the others.

    Raises:
      UserError: in all of them, if the file isn't what was written.
    """
    made, problem = None, ""
    if processes.is_first():
        try:
            made = JsonlWriter(path, step, written)
        except UserError as error:
            problem = str(error)
    if processes.any_process(bool(problem)):
        raise UserError(problem or f"{path}: the first process says what is wrong with it")
    return made
