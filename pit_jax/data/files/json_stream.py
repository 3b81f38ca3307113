"""Cuts JSON that isn't in lines into its objects, reading no more than it needs."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from pit_jax.data.files.json_values import TOO_DEEP, shown

_READ_CHARS = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
# An error that is as near to the end of what has been read may be due to what hasn't.
_NEAR = 16
# Finds where a value ends; what it holds is parsed later, strictly.
_ENDS = json.JSONDecoder(parse_int=str, parse_float=str, strict=False)


class NotJson(Exception):
    """Says that the text can't be cut any further."""


def parts(file: BinaryIO, is_array: bool, max_bytes: int) -> Iterator[bytes]:
    """Yields the text of each value of an array, or of values one after another.

    Args:
      file: JSON in UTF-8, which a byte order mark may open.
      is_array: whether the values are those of one array.
      max_bytes: size that no value may exceed.

    Raises:
      NotJson: where the text isn't what it should be; the message is one line.
    """
    text = _Text(file, max_bytes)
    if is_array:
        text.pass_by("[")
        if text.next() == "]":
            text.pass_by("]")
            is_array = False
        while is_array:
            yield text.value()
            mark = text.next()
            if not mark or mark not in ",]":
                raise text.stopped("after a value, expected ',' or ']'")
            text.pass_by(mark)
            is_array = mark == ","
        if text.next():
            raise text.stopped("after the end of an array, expected nothing")
        return
    while text.next():
        yield text.value()


class _Text:
    """Holds the part of a file that is being parsed, a character for each byte."""

    def __init__(self, file: BinaryIO, max_bytes: int):
        self._file = file
        self._max = max_bytes
        self._text, self._at, self._is_all = "", 0, False
        self._more()
        self._text = self._text.removeprefix(codecs.BOM_UTF8.decode("latin-1"))

    def next(self) -> str:
        """Returns the next character that isn't white space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_all:
                return ""
            self._more()

    def pass_by(self, mark: str) -> None:
        assert self.next() == mark
        self._at += 1

    def value(self) -> bytes:
        """Returns the text of the value that comes next, and passes it by."""
        self.next()
        while True:
            try:
                _, end = _ENDS.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                maybe = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _NEAR
                if not maybe or self._is_all:
                    self._at = min(error.pos, len(self._text))
                    raise self.stopped(f"({error.msg}), expected JSON") from None
            except RecursionError:
                raise NotJson(TOO_DEEP) from None
            else:
                if self._is_all or end < len(self._text):
                    break
            if len(self._text) - self._at > self._max:
                limit = f"{self._max} bytes"
                raise NotJson(f"got a value of over {limit}, expected {limit} at most")
            self._more()
        start, self._at = self._at, end
        return self._text[start:end].encode("latin-1")

    def stopped(self, problem: str) -> NotJson:
        """Makes the error of what comes next, which says if there is more that isn't read."""
        text = self._text[self._at : self._at + 40].encode("latin-1").decode("utf-8", "replace")
        if not text:
            return NotJson(f"got the end of the file {problem}")
        return NotJson(f"got {shown(text)} {problem}; from there on the file isn't read")

    def _more(self) -> None:
        rest = self._text[self._at :]
        # As much again as there is, so that a large value isn't parsed time after time.
        data = self._file.read(max(_READ_CHARS, len(rest)))
        self._text, self._at, self._is_all = rest + data.decode("latin-1"), 0, not data
