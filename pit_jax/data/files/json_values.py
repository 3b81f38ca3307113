"""Parses JSON objects strictly, and shows any value as a short line."""

from __future__ import annotations

import codecs
import collections
import json
import math
import re
import reprlib
from typing import Any

MAX_DEPTH = 100

_MAX_DIGITS = 100
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def json_object(line: bytes) -> dict[str, Any]:
    """Parses UTF-8 text as a JSON object that Python, JSON and UTF-8 all hold without loss.

    Whatever is returned can be written as JSON again. So no key is repeated, no number is NaN,
    infinite or beyond what a float holds, no text has half a surrogate pair, and brackets are
    nested no deeper than MAX_DEPTH.

    Raises:
      ValueError: if the text is anything else; the message is one line.
    """
    try:
        text = line.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"got byte 0x{line[error.start]:02x} at position {error.start}, expected UTF-8 text"
        ) from None
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(_not_json(text, error)) from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(record, dict):
        raise ValueError(f"got {shown(record)}, expected a JSON object")
    if line.count(b"{") + line.count(b"[") > MAX_DEPTH:
        check_depth(record)
    if _SURROGATE.search(line):
        _check_text(record)
    return record


def check_depth(value: Any) -> None:
    """Raises ValueError for brackets that are nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for one in level
            if isinstance(one, (dict, list))
            for part in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    if any(isinstance(one, (dict, list)) for one in level):
        raise ValueError(TOO_DEEP)


def check_columns(record: dict[str, Any]) -> None:
    """Raises ValueError for a table of columns: lists of values, or pandas' objects of row numbers.

    A list of objects is no column, since the turns of a dialogue are such a list.
    """
    values = list(record.values())
    lists = all(
        isinstance(value, list) and not any(isinstance(one, dict) for one in value)
        for value in values
    )
    numbered = all(
        isinstance(value, dict) and value and all(key.isdecimal() for key in value)
        for value in values
    )
    rows = all(key.isdecimal() for key in record) and isinstance(values[0] if values else 0, dict)
    if values and (lists or numbered or rows):
        raise ValueError(
            f"got a table of columns {shown(list(record))}, expected an object for each row, as "
            "pandas writes them with to_json(path, orient='records', lines=True)"
        )


def printable(text: str) -> str:
    """Writes control and other unprintable characters of a text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """Shows a value as a short line, however large or deep it is."""
    return _BRIEF.repr(value)[:80]


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60
TOO_DEEP = f"got brackets nested too deeply, expected a JSON object of at most {MAX_DEPTH} levels"


def _not_json(text: str, error: json.JSONDecodeError) -> str:
    if text.startswith(codecs.BOM_UTF8.decode()):
        return (
            "got a byte order mark, as where files were joined, expected one at the start of a "
            "file at most"
        )
    if error.msg == "Extra data" and "\r" in text[: error.pos]:
        return "got lines that end with CR alone, expected LF or CR LF after each JSON object"
    return f"got {shown(text)} ({error.msg}, column {error.colno}), expected a JSON object"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"got the key {shown(twice)} twice, expected every key once")
    return record


def _no_constant(name: str) -> Any:
    raise ValueError(f"got the number {name}, which JSON doesn't have, expected a JSON object")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"got a number of {len(digits)} digits, expected {_MAX_DIGITS} at most")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"got the number {shown(digits)[1:-1]}, expected one that a float holds")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates,
    parse_constant=_no_constant,
    parse_int=_integer,
    parse_float=_float,
)


def _check_text(record: dict[str, Any]) -> None:
    for key, value in record.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(
                f"got half a surrogate pair, \\u{ord(half):04x}, under {shown(key)}, expected "
                "text that UTF-8 can hold"
            ) from None
