"""The sections of a report: which tables and figures each part of the results becomes.

Each builder takes the whole results and returns a section, which has no blocks where its part is
absent. `write` documents the results; `page` and `markdown` show the sections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pit_jax.report import (
    budgets,
    choices,
    comparisons,
    judging,
    opening,
    plots,
    reward_models,
    transfer,
)
from pit_jax.report.blocks import (
    Block,
    Code,
    Curves,
    Drawings,
    Paragraph,
    Response,
    Results,
    Sample,
    Section,
    Table,
)
from pit_jax.report.formatting import NONE, count, duration, known, number, share

_CURVES = (
    "What each stage recorded as it trained, with the last value. Where a curve is noisy, it is "
    "faint with its running mean. score: mean reward of the responses; kl: how far the model is "
    "from the supervised one, in nats a response; entropy: in nats a token, near 0 where the model "
    "always says the same; held_out_…: on pairs that the stage doesn’t train on."
)


def build(results: Results) -> tuple[list[Section], Drawings]:
    """The sections of a report in order, and its figures by name."""
    drawings: Drawings = {}
    builders: Sequence[Callable[[Results, Drawings], Section]] = (
        opening.section,
        opening.terms,
        comparisons.quality,
        comparisons.curriculum,
        comparisons.iterations,
        budgets.section,
        comparisons.temperature,
        comparisons.supervised,
        reward_models.section,
        comparisons.controls,
        transfer.section,
        judging.section,
        _samples,
        choices.section,
        _training,
        _data,
        _reproduce,
    )
    sections = [builder(results, drawings) for builder in builders]
    return [section for section in sections if section.blocks], drawings


def _samples(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    samples = results.get("samples", ())
    for sample in samples:
        blocks.append(Sample(sample["prompt"].rstrip(), _responses(sample)))
    if blocks:
        text = (
            f"The first {count(len(samples))} prompts of the split, which is in the order of a "
            "hash: nobody picked them. Outputs of the models, as they are. gap: how much better "
            "R_PIT finds a response than the one before it; best: the first of the highest score."
        )
        text += " On the page, words an iteration added are shaded and words it removed struck out."
        blocks.insert(0, Paragraph(text))
    return Section("Samples", blocks)


def _responses(sample: Mapping[str, Any]) -> list[Response]:
    """The original, its iterations, and what the data has, each with what is known of it."""
    texts = [sample["original"], *sample["iterations"]]
    scores = sample["scores"] or [None] * len(texts)
    gaps = [None, *(sample.get("gaps") or [None] * len(sample["iterations"]))]
    numbers = [score for score in scores if known(score)]
    best = scores.index(max(numbers)) if numbers else None
    responses = []
    for step, (text, score, gap) in enumerate(zip(texts, scores, gaps, strict=True)):
        label = f"Iteration {step}" if step else "Original"
        if known(score):
            label += f" · score {score:.2f}"
        if known(gap):
            label += f" · gap {number(gap, sign=True)}"
        if step and text == texts[step - 1]:
            label += " · unchanged"
        label += " · best" * (step == best)
        responses.append(Response(label, text, revises=step > 0, marked=step == best))
    responses.append(Response("Chosen response of the data (y_w)", sample["chosen"]))
    if sample.get("rejected"):
        responses.append(Response("Rejected response of the data (y_l)", sample["rejected"]))
    return responses


def _training(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    found = [curve for curve in results.get("curves", ()) if any(map(known, curve["values"]))]
    told: dict[str, list[str]] = {}
    for curve in found:
        if not curve.get("folded"):
            told.setdefault(curve["stage"], []).append(curve["metric"])
    stages = results.get("stages")
    if stages:
        cells = [
            [
                row["name"],
                _final(row.get("final") or {}, told.get(row["name"], ())),
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
    if found:
        blocks.append(Paragraph(_CURVES))
    for stage in dict.fromkeys(curve["stage"] for curve in found):
        parts: tuple[list, list] = ([], [])
        for curve in found:
            if curve["stage"] == stage:
                parts[bool(curve.get("folded"))].append(curve)
        name = "curves_" + re.sub(r"\W", "_", stage)  # which is that of a file
        drawings[name] = partial(plots.curves, parts[0])
        blocks.append(Curves(name, stage, *parts))
    return Section("Training", blocks)


def _final(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """The last values of those metrics that are shown; of all where none is."""
    there = {name: value for name, value in metrics.items() if known(value)}
    names = [name for name in names if name in there] or list(there)
    return "; ".join(f"{name} {there[name]:.4g}" for name in names) or NONE


def _data(results: Results, drawings: Drawings) -> Section:
    rows = (results.get("data") or {}).get("rows") or ()
    cells = [[str(name), f"{v:,}" if isinstance(v, int) else str(v)] for name, v in rows]
    return Section("Data", [Table(["", "Value"], cells)] if cells else [])


def _reproduce(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    if results.get("command"):
        blocks.append(Code(results["command"]))
    if results.get("config_text"):
        blocks.append(
            Paragraph(
                "The run directory’s config.gin holds the whole configuration below, so that it "
                "alone starts the same run again: give it as --gin_file, with another MODEL_DIR."
            )
        )
    facts = [
        ("Commit of the code", results.get("commit")),
        ("Hash of the data (SHA-256)", results.get("data_digest")),
        ("Seed", results.get("seed")),
        ("Device", results.get("device")),
    ]
    facts += list((results.get("versions") or {}).items())
    cells = [[str(name), str(value)] for name, value in facts if value is not None]
    if cells:
        blocks.append(Table(["", "Value"], cells))
    if results.get("config_text"):
        blocks.append(Code(results["config_text"], title="Operative configuration"))
    return Section("To run it again", blocks)
