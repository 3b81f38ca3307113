"""The sections of a report: which tables and figures each part of the results becomes.

Each builder takes the whole results and returns a section, which has no blocks where its part is
absent. `write` documents the results; `page` and `markdown` show the sections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pit_jax.report import choices, comparisons, judging, plots, reward_models
from pit_jax.report.blocks import (
    Block,
    Code,
    Drawings,
    Figure,
    Paragraph,
    Response,
    Results,
    Sample,
    Section,
    Table,
    Tile,
    Tiles,
    Warnings,
)
from pit_jax.report.formatting import (
    NONE,
    VERDICTS,
    comparison_labels,
    count,
    duration,
    known,
    points,
    share,
    tone,
)

_HEADLINES = 4


def build(results: Results) -> tuple[list[Section], Drawings]:
    """The sections of a report in order, and its figures by name."""
    drawings: Drawings = {}
    builders: Sequence[Callable[[Results, Drawings], Section]] = (
        _headline,
        comparisons.quality,
        comparisons.curriculum,
        comparisons.iterations,
        comparisons.temperature,
        comparisons.supervised,
        reward_models.section,
        comparisons.controls,
        judging.section,
        _samples,
        choices.section,
        _training,
        _data,
        _reproduce,
    )
    sections = [builder(results, drawings) for builder in builders]
    return [section for section in sections if section.blocks], drawings


def _headline(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    tiles = []
    rows = comparisons.group_of(results, "table1")[:_HEADLINES]
    for row, label in zip(rows, comparison_labels(rows), strict=True):
        low, high = points(row.get("ci_low")), points(row.get("ci_high"))
        note = f"95% interval {low} to {high}, {count(row.get('n'))} prompts: {VERDICTS[tone(row)]}"
        tiles.append(Tile(label, f"Δ {points(row['delta'])}", note, tone(row)))
    if tiles:
        blocks.append(Tiles(tiles))
    if results.get("warnings"):
        blocks.append(Warnings(list(results["warnings"])))
    return Section("", blocks)


def _samples(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    for sample in results.get("samples", ()):
        texts = [sample["original"], *sample["iterations"]]
        responses = []
        scores = sample["scores"] or [None] * len(texts)
        for step, (text, score) in enumerate(zip(texts, scores, strict=True)):
            label = f"Iteration {step}" if step else "Original"
            if known(score):
                label += f" · score {score:.2f}"
            if step and text == texts[step - 1]:
                label += " · unchanged"
            responses.append(Response(label, text, revises=step > 0))
        responses.append(Response("Chosen response of the data", sample["chosen"]))
        blocks.append(Sample(sample["prompt"], responses))
    if blocks:
        note = "On the page, words an iteration added are shaded and words it removed struck out."
        blocks.insert(0, Paragraph(f"Outputs of the models, as they are. {note}"))
    return Section("Samples", blocks)


def _training(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    stages = results.get("stages")
    if stages:
        cells = [
            [
                row["name"],
                "; ".join(f"{k} {v:.4g}" for k, v in (row.get("final") or {}).items() if known(v))
                or NONE,
                count(row.get("parameters")),
                count(row.get("steps")),
                count(row.get("tokens")),
                duration(row.get("seconds")),
                count(row.get("tokens_per_second")),
            ]
            for row in stages
        ]
        columns = ["Stage", "At the end", "Parameters", "Steps", "Tokens", "Time", "Tokens/s"]
        if any(known(row.get("mfu")) for row in stages):
            columns.append("MFU %")
            for row, line in zip(stages, cells, strict=True):
                line.append(share(row.get("mfu")))
        device = f" on {results['device']}" if results.get("device") else ""
        caption = f"Training stages in order{device}; metrics of the last record of each."
        blocks.append(Table(columns, cells, caption, labels=2))
    series = [c for c in results.get("curves", ()) if any(map(known, c["values"]))]
    if series:
        drawings["curves"] = plots.curves(series)
        caption = "Training curves; where they are noisy, faint with their running mean."
        blocks.append(Figure("curves", "Training curves by stage and metric", caption))
    return Section("Training", blocks)


def _data(results: Results, drawings: Drawings) -> Section:
    rows = (results.get("data") or {}).get("rows") or ()
    cells = [[str(name), f"{v:,}" if isinstance(v, int) else str(v)] for name, v in rows]
    return Section("Data", [Table(["", "Value"], cells)] if cells else [])


def _reproduce(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    if results.get("command"):
        blocks.append(Code(results["command"]))
    facts = [("Seed", results.get("seed")), ("Device", results.get("device"))]
    facts += list((results.get("versions") or {}).items())
    cells = [[str(name), str(value)] for name, value in facts if value is not None]
    if cells:
        blocks.append(Table(["", "Value"], cells))
    if results.get("config_text"):
        blocks.append(Code(results["config_text"], title="Operative configuration"))
    return Section("To run it again", blocks)
