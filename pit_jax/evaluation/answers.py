"""Keeps the answers of a language model in a file, so that no request is sent twice."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import BinaryIO

from etils import epath

from pit_jax import files
from pit_jax.evaluation.endpoint import Answer

_UPLOAD_SECONDS = 60.0


class Answers:
    """Holds answers by the digests of their requests, one JSON object a line.

    On a disk every answer is in the file once it is added, and a process that is killed loses none.
    In a bucket, where nothing can be appended, the file is written anew a minute after the last
    time, and by `close`. Lines that are no answers, such as the last one of a disk that was full,
    are ignored.

    Args:
      path: the file, which need not be there yet.

    Raises:
      UserError: if it can't be read.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self._found: dict[str, Answer] = {}
        self._file: BinaryIO | None = None
        self._uploaded = time.monotonic()
        self._content = b""
        with files.reported(path, f"can't read {path}"):
            if path.exists():
                self._content = path.read_bytes()
        for line in self._content.split(b"\n"):
            try:
                found = json.loads(line)
                request = found.pop("request")
                self._found[request] = Answer(**found)
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
                continue

    def __contains__(self, request: str) -> bool:
        return request in self._found

    def __getitem__(self, request: str) -> Answer:
        return self._found[request]

    def add(self, request: str, answer: Answer) -> None:
        """Keeps an answer.

        Raises:
          UserError: if the file can't be written.
        """
        self._found[request] = answer
        line = json.dumps({"request": request, **dataclasses.asdict(answer)}).encode() + b"\n"
        if self._content and not self._content.endswith(b"\n"):
            line = b"\n" + line  # a damaged line ends here
        with files.reported(self.path, f"can't write {self.path}"):
            if not files.is_local(self.path):
                self._content += line
                if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
                    self.close()
                return
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "ab")  # noqa: SIM115
            self._file.write(line)
            self._file.flush()
            self._content = b""

    def close(self) -> None:
        """Writes what isn't in the file yet.

        Raises:
          UserError: if it can't be written.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        elif not files.is_local(self.path) and self._content:
            with files.reported(self.path, f"can't write {self.path}"):
                files.write_whole(self.path, self._content)
            self._uploaded = time.monotonic()
