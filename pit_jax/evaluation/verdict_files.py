"""Writes the sheet on which a person judges, and reads sheets and what the page has exported.

Both are CSV with a header. Of its columns four are read, in any order: `comparison`, its number
from 1; `verdict`, which is A, B or tie; `annotator`, a name in one row or in all; and `page`, which
says what the numbers stand for. A spreadsheet may have put semicolons or tabs between them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence

from etils import epath

from pit_jax import files
from pit_jax.data.files.json_values import printable, shown
from pit_jax.errors import UserError

TIE = "tie"
COLUMNS = ("comparison", "verdict", "annotator", "page")
_SHEET = ("comparison", "prompt", "A", "B", "verdict", "annotator", "page")
_MOST_NAME = 80
# What a spreadsheet would take for a formula, which a response may begin with.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_LARGEST_CELL = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Holds what one person has said.

    Attributes:
      path: the file.
      annotator: the person's name.
      verdicts: `A`, `B` or `tie` by the number of the comparison, from 1.
      blank: the lines of comparisons without a verdict, by their numbers.
    """

    path: str
    annotator: str
    verdicts: dict[int, str]
    blank: dict[int, int]


def empty(page: str, comparisons: Sequence[tuple[str, str, str]]) -> str:
    """Returns a sheet without verdicts.

    A text that a spreadsheet would take for a formula has an apostrophe before it, so that it is
    shown and not computed.

    Args:
      page: what the numbers of comparisons belong to.
      comparisons: the prompt and the responses A and B of each.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_SHEET)
    for number, texts in enumerate(comparisons, 1):
        writer.writerow([number, *map(_as_text, texts), "", "", page])
    return "\ufeff" + file.getvalue()  # without which Excel takes UTF-8 for another encoding


def _as_text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def read(path: str, page: str, count: int, ties: bool) -> Sheet:
    """Reads what one person has said; comparisons may be missing.

    Args:
      path: the file, on a disk or in a bucket.
      page: the page that it has to be of.
      count: how many comparisons the page has.
      ties: whether a tie is a verdict.

    Raises:
      UserError: with file and line, for what is no sheet of the page or can't be read.
    """
    with files.reported(path, f"can't read {path}"):
        content = epath.Path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: isn't UTF-8, expected CSV in UTF-8") from None
    verdicts: dict[int, str] = {}
    blank: dict[int, int] = {}
    said_by = ""
    for line, row in _rows(path, text):
        place = f"{path}:{line}"
        if row["page"] != page:
            raise UserError(
                f"{place}: is of another page, {shown(row['page'])}, expected {shown(page)}"
            )
        number = _number(place, row["comparison"], count)
        if number in verdicts or number in blank:
            raise UserError(f"{place}: has comparison {number} again, expected each once")
        if said := _verdict(place, row["verdict"], ties):
            verdicts[number] = said
        else:
            blank[number] = line
        name = printable(" ".join(row["annotator"].split()))
        if name and said_by and name != said_by:
            raise UserError(f"{place}: is by {shown(name)}, expected {shown(said_by)} as before")
        said_by = said_by or name
    if not said_by or len(said_by) > _MOST_NAME:
        raise UserError(
            f"{path}: got {shown(said_by)}, expected a name of up to {_MOST_NAME} characters in "
            "its column annotator, in one row or in all"
        )
    return Sheet(path, said_by, verdicts, blank)


def _rows(path: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the line of each row that isn't empty, and its four columns."""
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    csv.field_size_limit(_LARGEST_CELL)  # a response may be long; the limit is the module's own
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not names:
                names = [name.lower() for name in stripped]
                _check_header(path, names)
            elif any(stripped):
                if len(stripped) != len(names):
                    raise UserError(
                        f"{path}:{line}: got {len(stripped)} cells, expected {len(names)} as in "
                        "the header"
                    )
                row = dict(zip(names, stripped))
                yield line, {name: row[name] for name in COLUMNS}
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: isn't CSV: {error}") from None
    if not names:
        raise UserError(f"{path}: is empty, expected CSV with the columns {', '.join(COLUMNS)}")


def _check_header(path: str, names: Sequence[str]) -> None:
    for name in COLUMNS:
        if names.count(name) != 1:
            raise UserError(
                f"{path}:1: has {names.count(name)} columns {name}, expected one of each of "
                f"{', '.join(COLUMNS)}"
            )


def _number(place: str, text: str, count: int) -> int:
    # Not by int(), which takes '1_0' and other digits than these too.
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= count):
        raise UserError(
            f"{place}: comparison {shown(text)} isn't on the page, expected 1 to {count}"
        )
    return int(text)


def _verdict(place: str, text: str, ties: bool) -> str:
    """Returns A, B, tie or, where nothing is said yet, an empty text."""
    choices = ["A", "B", TIE] if ties else ["A", "B"]
    for choice in ("", *choices):
        if text.lower() == choice.lower():
            return choice
    expected = ", ".join(choices[:-1]) + f" or {choices[-1]}"
    raise UserError(f"{place}: got the verdict {shown(text)}, expected {expected}")
