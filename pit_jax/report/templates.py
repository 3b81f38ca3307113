"""What a report is made of, and how it becomes a self-contained HTML page or Markdown.

Every string of a block is plain text: it is escaped here, in both formats, and nowhere else.
"""

from __future__ import annotations

import base64
import dataclasses
import difflib
import html
import re
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table cell; `tone` is '', 'up' or 'down'."""

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
    """Running text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image by name; `alt` says in words what it shows."""

    name: str
    alt: str
    caption: str = ""


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
    """A named response; `revises` the one before it, or stands for itself."""

    label: str
    text: str
    revises: bool = False


Block = Table | Paragraph | Figure | Tiles | Warnings | Code | Sample


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading (none when '') and its blocks."""

    title: str
    blocks: Sequence[Block]


STYLE = """
:root{--ink:#1f2a37;--muted:#5d6875;--rule:#d9dee4;--soft:#f6f7f9;--blue:#2f5f8f;
--up:#23705f;--down:#a2412f}
*{box-sizing:border-box}
html{color-scheme:light}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1010px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:0 0 10px}
h2{font-size:20px;line-height:1.3;letter-spacing:-.01em;margin:56px 0 14px;padding-top:18px;
border-top:1px solid var(--rule)}
p{margin:0 0 14px;max-width:72ch}
.lead{font-size:17px;color:var(--muted)}
nav{margin:20px 0 0;font-size:14px;line-height:1.9}
nav a{color:var(--blue);text-decoration:none;margin-right:18px;white-space:nowrap}
nav a:hover{text-decoration:underline}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px;
margin:28px 0 0}
.tile{border:1px solid var(--rule);border-radius:8px;padding:14px 16px}
.tile .label{font-size:13.5px;color:var(--muted)}
.tile .value{font-size:27px;font-weight:650;letter-spacing:-.02em;line-height:1.3;
font-variant-numeric:tabular-nums}
.tile .note{font-size:13px;color:var(--muted);line-height:1.4}
.up{color:var(--up)}.down{color:var(--down)}
.scroll{overflow-x:auto;margin:0 0 8px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums;
line-height:1.35}
th{font-weight:600;font-size:13px;color:var(--muted);text-align:right;padding:7px 0 7px 16px;
border-bottom:1.5px solid var(--ink);vertical-align:bottom}
td{text-align:right;padding:7px 0 7px 16px;border-bottom:1px solid var(--rule);vertical-align:top}
th.l,td.l{text-align:left;padding:7px 16px 7px 0}
th.l+th.l,td.l+td.l{padding-left:0}
td.up,td.down{font-weight:600}
table.facts{width:auto;min-width:340px}
.caption,figcaption{font-size:13.5px;color:var(--muted);line-height:1.5;margin:8px 0 26px;
max-width:82ch}
figure{margin:22px 0 0}
figure img{display:block;width:100%;height:auto}
.warnings{border-left:3px solid #c58a2d;background:#fdf7ec;padding:12px 18px;margin:26px 0 0;
font-size:14.5px}
.warnings ul{margin:0;padding-left:18px}
pre{background:var(--soft);border-radius:6px;padding:12px 16px;font:12.5px/1.5 ui-monospace,
SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow:auto;max-height:520px;
margin:0 0 14px;white-space:pre-wrap;overflow-wrap:anywhere}
details summary{cursor:pointer;font-size:14.5px;color:var(--blue);margin:0 0 10px}
.sample{border:1px solid var(--rule);border-radius:8px;margin:0 0 18px;overflow:hidden;
break-inside:avoid}
.sample .prompt{background:var(--soft);padding:12px 18px;border-bottom:1px solid var(--rule)}
.sample dl{margin:0;padding:6px 18px 12px}
.sample dt{font-size:12.5px;font-weight:600;color:var(--muted);margin:8px 0 0}
.sample dd,.sample .prompt div{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;
font-size:14.5px}
.sample .prompt b{font-size:12.5px;font-weight:600;color:var(--muted)}
ins{background:#dcefe8;text-decoration:none;border-radius:2px}
del{color:#a2412f;background:#fbeae6;border-radius:2px;text-decoration-thickness:1px}
@media print{main{max-width:none;padding:0}nav{display:none}h2{break-after:avoid}
figure,table{break-inside:avoid}}
"""

# Model output is shown in the page: even text that got past the escaping could load or run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def to_html(
    title: str, description: str, sections: Sequence[Section], images: Mapping[str, bytes]
) -> str:
    """One page that needs no other file; `images` are SVG by figure name."""
    links, body = [], []
    for number, section in enumerate(sections):
        if section.title:
            heading = html.escape(section.title)
            links.append(f'<a href="#s{number}">{heading}</a>')
            body.append(f'<section id="s{number}"><h2>{heading}</h2>')
        else:
            body.append("<section>")
        body.extend(_html_block(block, images) for block in section.blocks)
        body.append("</section>")
    lead = f'<p class="lead">{html.escape(description)}</p>' if description else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{html.escape(title)}</h1>{lead}<nav>{' '.join(links)}</nav></header>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _html_block(block: Block, images: Mapping[str, bytes]) -> str:
    match block:
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Table():
            return _html_table(block)
        case Figure():
            data = base64.b64encode(images[block.name]).decode("ascii")
            source = f"data:image/svg+xml;base64,{data}"
            caption = f"<figcaption>{html.escape(block.caption)}</figcaption>"
            return f'<figure><img alt="{html.escape(block.alt)}" src="{source}">{caption}</figure>'
        case Tiles():
            return f'<div class="tiles">{"".join(map(_html_tile, block.tiles))}</div>'
        case Warnings():
            items = "".join(f"<li>{html.escape(text)}</li>" for text in block.texts)
            return f'<div class="warnings"><ul>{items}</ul></div>'
        case Code():
            code = f"<pre>{html.escape(block.text)}</pre>"
            summary = f"<summary>{html.escape(block.title)}</summary>"
            return f"<details>{summary}{code}</details>" if block.title else code
        case Sample():
            return _html_sample(block)
    raise TypeError(f"expected a block of a report, got {type(block).__name__}")


def _html_tile(tile: Tile) -> str:
    return (
        f'<div class="tile"><div class="label">{html.escape(tile.label)}</div>'
        f'<div class="value {tile.tone}">{html.escape(tile.value)}</div>'
        f'<div class="note">{html.escape(tile.note)}</div></div>'
    )


def _html_table(table: Table) -> str:
    def cell(tag: str, index: int, content: str | Cell) -> str:
        content = Cell(content) if isinstance(content, str) else content
        names = " ".join(filter(None, ["l" if index < table.labels else "", content.tone]))
        kind = f' class="{names}"' if names else ""
        return f"<{tag}{kind}>{html.escape(content.text)}</{tag}>"

    head = "".join(cell("th", i, name) for i, name in enumerate(table.columns))
    rows = "".join(
        f"<tr>{''.join(cell('td', i, content) for i, content in enumerate(row))}</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    kind = ' class="facts"' if len(table.columns) == 2 else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{caption}"
    )


def _html_sample(sample: Sample) -> str:
    items = []
    previous = ""
    for response in sample.responses:
        if response.revises:
            text = _marked_changes(previous, response.text)
        else:
            text = html.escape(response.text)
        items.append(f"<dt>{html.escape(response.label)}</dt><dd>{text}</dd>")
        previous = response.text
    return (
        f'<article class="sample"><div class="prompt"><b>Prompt</b>'
        f"<div>{html.escape(sample.prompt)}</div></div><dl>{''.join(items)}</dl></article>"
    )


def _marked_changes(before: str, after: str) -> str:
    """`after` with its new words in <ins> and the words it lost in <del>; all of it escaped."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        removed, added = html.escape("".join(old[i:j])), html.escape("".join(new[k:m]))
        if kind == "equal":
            parts.append(added)
            continue
        if removed.strip():
            parts.append(f"<del>{removed}</del>")
        if added.strip():
            parts.append(f"<ins>{added}</ins>")
        else:
            parts.append(added)
    return "".join(parts)


def to_markdown(
    title: str, description: str, sections: Sequence[Section], image_paths: Mapping[str, str]
) -> str:
    """The same report as Markdown; figures are linked by the paths given."""
    parts = [f"# {_md(title)}"]
    if description:
        parts.append(_md(description))
    for section in sections:
        if section.title:
            parts.append(f"## {_md(section.title)}")
        parts.extend(_markdown_block(block, image_paths) for block in section.blocks)
    return "\n\n".join(parts) + "\n"


def _markdown_block(block: Block, image_paths: Mapping[str, str]) -> str:
    match block:
        case Paragraph():
            return _md(block.text)
        case Table():
            return _markdown_table(block)
        case Figure():
            image = f"![{_md(block.alt)}]({image_paths[block.name]})"
            return f"{image}\n\n{_md(block.caption)}" if block.caption else image
        case Tiles():
            return "\n".join(
                f"- **{_md(tile.label)}: {_md(tile.value)}** ({_md(tile.note)})"
                for tile in block.tiles
            )
        case Warnings():
            return "\n".join(f"- **Warning:** {_md(text)}" for text in block.texts)
        case Code():
            code = _fenced(block.text)
            return f"{_md(block.title)}:\n\n{code}" if block.title else code
        case Sample():
            labelled = [("Prompt", block.prompt), *((r.label, r.text) for r in block.responses)]
            return "\n\n".join(f"**{_md(label)}**\n\n{_fenced(text)}" for label, text in labelled)
    raise TypeError(f"expected a block of a report, got {type(block).__name__}")


def _markdown_table(table: Table) -> str:
    rule = ["---" if i < table.labels else "---:" for i in range(len(table.columns))]
    texts = [[c.text if isinstance(c, Cell) else c for c in row] for row in table.rows]
    lines = [[_md(name) for name in table.columns], rule, *([_md(t) for t in r] for r in texts)]
    drawn = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{drawn}\n\n{_md(table.caption)}" if table.caption else drawn


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
