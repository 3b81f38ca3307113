"""What a report is made of: sections of blocks, which `page` and `markdown` show.

Every string of a block is plain text, which they escape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Results = Mapping[str, Any]


class Draw(Protocol):
    """Draws a figure; a narrow one is as wide as a phone, with its panels below each other."""

    def __call__(self, *, narrow: bool = False) -> Drawing: ...


# How to draw each figure, by its name.
Drawings = dict[str, Draw]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure of a table, in the colour of its `tone`: 'up', 'down' or, for none, ''."""

    text: str
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first `labels` columns are text, aligned left, the others figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    labels: int = 1


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Running text; it `leads` where it is what to read if nothing else is."""

    text: str
    leads: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image by name; `alt` says in words what it shows."""

    name: str
    alt: str
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Curves:
    """Small curves side by side, those of `folded` folded away.

    A curve has metric, steps and values. The page draws them itself; in Markdown the figure `name`
    stands for those of `shown`.
    """

    name: str
    title: str
    shown: Sequence[Mapping[str, Any]]
    folded: Sequence[Mapping[str, Any]]

    @property
    def alt(self) -> str:
        """In words what they show."""
        return f"{self.title}: {', '.join(curve['metric'] for curve in self.shown)} by step"


@dataclasses.dataclass(frozen=True)
class Terms:
    """What words mean: (word, meaning) of each."""

    terms: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Headline numbers side by side."""

    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Warnings:
    """What a reader must know first."""

    texts: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Code:
    """Preformatted text; folded away when it has a title."""

    text: str
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and responses to it, in order; one marked `revises` shows what it changed."""

    prompt: str
    responses: Sequence[Response]


@dataclasses.dataclass(frozen=True)
class Response:
    """A named response; `revises` the one before it, or stands for itself.

    One that is `marked` is the best of a sample's.
    """

    label: str
    text: str
    revises: bool = False
    marked: bool = False


Block = Table | Paragraph | Figure | Curves | Terms | Tiles | Warnings | Code | Sample


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading (none when '') and its blocks."""

    title: str
    blocks: Sequence[Block]
