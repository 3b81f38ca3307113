"""A report as one HTML page that needs no other file, drawn by `templates/report.html.j2`.

The template escapes every string of a block, so that output of a model is shown as text.
"""

from __future__ import annotations

import base64
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

import jinja2

from pit_jax.report.blocks import Block, Section


def to_html(
    title: str, description: str, sections: Sequence[Section], images: Mapping[str, bytes]
) -> str:
    """The page; `images` are SVG by figure name."""
    sources = {name: _data_uri(image) for name, image in images.items()}
    return _template().render(
        title=title, description=description, sections=sections, sources=sources
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pit_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["kind"] = _kind
    environment.filters["changes"] = _changes
    return environment.get_template("report.html.j2")


def _kind(block: Block) -> str:
    return type(block).__name__


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


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
