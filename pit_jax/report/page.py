"""A report as one HTML page that needs no other file, drawn by `templates/report.html.j2`.

The template escapes every string of a block, so that output of a model is shown as text.
"""

from __future__ import annotations

import base64
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from pit_jax.report import plots
from pit_jax.report.blocks import Block, Section
from pit_jax.report.formatting import known

# The size of a small curve's drawing, and how many points it has at most.
_CURVE_WIDTH, _CURVE_HEIGHT, _CURVE_POINTS = 300, 84, 300
# Longer texts are folded, and so many of their characters are seen then.
_LONG, _OPENING = 900, 320


def to_html(
    title: str,
    description: str,
    sections: Sequence[Section],
    images: Mapping[str, tuple[bytes, bytes]],
) -> str:
    """The page; `images` are SVG by figure name: for wide screens, for narrow ones."""
    sources = {name: tuple(map(_data_uri, both)) for name, both in images.items()}
    return _template().render(
        title=title, description=description, sections=sections, sources=sources
    )


@functools.cache
def environment() -> jinja2.Environment:
    """Where the templates are, which escape every text."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pit_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _template() -> jinja2.Template:
    found = environment()
    found.filters["kind"] = _kind
    found.filters["changes"] = _changes
    found.filters["drawn"] = _drawn
    found.filters["opening"] = _opening
    return found.get_template("report.html.j2")


def _kind(block: Block) -> str:
    return type(block).__name__


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _drawn(curve: Mapping[str, Any]) -> dict[str, Any]:
    """A small curve: the points of its lines, the last and the extreme values, and its steps."""
    points = [(s, v) for s, v in zip(curve["steps"], curve["values"], strict=True) if known(v)]
    if not points:
        return {"lines": []}
    x, y = np.array(points, float).T
    means = plots.smoothed(y)
    low, high = float(y.min()), float(y.max())
    across = (x - x[0]) / (np.ptp(x) or 1) * (_CURVE_WIDTH - 6) + 3

    def line(values: np.ndarray) -> str:
        down = (high - values) / ((high - low) or 1) * (_CURVE_HEIGHT - 8) + 4
        every = -(-len(values) // _CURVE_POINTS)
        pairs = zip(across[::every], down[::every], strict=True)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)

    lines = [("plain", line(y))] if means is None else [("faint", line(y)), ("plain", line(means))]
    values = {"last": float(y[-1]), "low": low, "high": high}
    texts = {name: f"{value:.3g}" for name, value in values.items()}
    size = {"width": _CURVE_WIDTH, "height": _CURVE_HEIGHT}
    size["single"] = len(y) == 1
    return {"lines": lines, "first": f"{x[0]:,.0f}", "end": f"{x[-1]:,.0f}", **texts, **size}


def _opening(text: str) -> str:
    """Where a text is long: its first words, to stand for it while it is folded; else ''."""
    return text[:_OPENING].rsplit(maxsplit=1)[0] if len(text) > _LONG else ""


def _changes(before: str, after: str) -> Iterator[tuple[str, str]]:
    """The words and white space of `after` and the words it lost, in order, as (tag, text).

    The tag of new words is `ins`, that of lost ones `del`, and that of all else is empty.
    """
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        lost, text = "".join(old[i:j]), "".join(new[k:m])
        changed = kind != "equal"
        if changed and lost.strip():
            yield "del", lost
        if text:
            yield "ins" if changed and text.strip() else "", text
