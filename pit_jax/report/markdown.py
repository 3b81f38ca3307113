"""A report as Markdown. Every string of a block is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pit_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Curves,
    Figure,
    Paragraph,
    Sample,
    Section,
    Table,
    Terms,
    Tiles,
    Warnings,
)


def to_markdown(
    title: str, description: str, sections: Sequence[Section], image_paths: Mapping[str, str]
) -> str:
    """The report as Markdown; `image_paths` are links to its figures by their names."""
    parts = [f"# {_escaped(title)}"]
    if description:
        parts.append(_escaped(description))
    for section in sections:
        if section.title:
            parts.append(f"## {_escaped(section.title)}")
        parts.extend(_block(block, image_paths) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _block(block: Block, image_paths: Mapping[str, str]) -> str:
    match block:
        case Paragraph():
            return f"**{_escaped(block.text)}**" if block.leads else _escaped(block.text)
        case Table():
            return _table(block)
        case Curves():
            image = f"![{_escaped(block.alt)}]({image_paths[block.name]})"
            return f"### {_escaped(block.title)}\n\n{image}"
        case Figure():
            image = f"![{_escaped(block.alt)}]({image_paths[block.name]})"
            return f"{image}\n\n{_escaped(block.caption)}" if block.caption else image
        case Terms():
            return "\n".join(
                f"- **{_escaped(word)}**: {_escaped(meaning)}" for word, meaning in block.terms
            )
        case Tiles():
            return "\n".join(
                f"- **{_escaped(tile.label)}: {_escaped(tile.value)}** ({_escaped(tile.note)})"
                for tile in block.tiles
            )
        case Warnings():
            return "\n".join(f"- **Warning:** {_escaped(text)}" for text in block.texts)
        case Code():
            code = _fenced(block.text)
            return f"{_escaped(block.title)}:\n\n{code}" if block.title else code
        case Sample():
            labelled = [("Prompt", block.prompt), *((r.label, r.text) for r in block.responses)]
            return "\n\n".join(
                f"**{_escaped(label)}**\n\n{_fenced(text)}" for label, text in labelled
            )
    raise TypeError(f"expected a block of a report, got {type(block).__name__}")


def _table(table: Table) -> str:
    rule = ["---" if i < table.labels else "---:" for i in range(len(table.columns))]
    texts = [[c.text if isinstance(c, Cell) else c for c in row] for row in table.rows]
    lines = [
        [_escaped(name) for name in table.columns],
        rule,
        *([_escaped(t) for t in r] for r in texts),
    ]
    drawn = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{drawn}\n\n{_escaped(table.caption)}" if table.caption else drawn


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
