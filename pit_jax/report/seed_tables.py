"""The tables of a report of several seeds: a quantity of each row, seed by seed.

A row is one of `evaluation.seeds.gather`: what names it, and for each quantity an
`evaluation.seeds.Summary` as a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pit_jax.report import paper
from pit_jax.report.blocks import Cell, Results, Table
from pit_jax.report.formatting import (
    MAIN_OF_BUDGETS,
    NO_BREAK,
    NONE,
    comparison_labels,
    number,
    points,
    share,
    three_digits,
    tone,
    whole,
)

Row = Mapping[str, Any]
Form = Callable[[Any], str]
# The texts of a row's first columns, and the row.
Named = tuple[Sequence[str], Row]


def table(
    results: Results,
    columns: Sequence[str],
    named: Sequence[Named],
    key: str,
    form: Form,
    caption: str,
    papers: Sequence[Mapping[str, str]] = (),
    quantity: str = "",
) -> Table:
    """One quantity of each row, seed by seed; the rows are (labels, row).

    `papers` are the paper's figures of that `quantity` beside each row, by dataset.
    """
    there = [(labels, row[key]) for labels, row in named if key in row]
    with_prompts = any(any(summary["prompts"]) for _, summary in there)
    partial = any(summary["n"] < len(results["seeds"]) for _, summary in there)
    heads = [*columns, *(f"Seed {seed}" for seed in results["seeds"]), "Mean [over seeds]"]
    heads += ["[Over seeds and prompts]"] if with_prompts else []
    heads += ["Seeds"] if partial else []
    rows: list[list[str | Cell]] = []
    for labels, summary in there:
        row: list[str | Cell] = [*labels, *cells(summary, form, form is points)]
        row += [NONE] * (len(columns) + len(results["seeds"]) + 1 + with_prompts - len(row))
        rows.append([*row, str(summary["n"])] if partial else row)
    if any(papers):
        more, theirs = paper.columns(quantity, papers)
        heads += more
        rows = [[*row, *of_paper] for row, of_paper in zip(rows, theirs, strict=True)]
    return Table(heads, rows, caption, labels=len(columns))


def _bracket(interval: Sequence[float] | None, form: Form) -> str:
    return f"[{form(interval[0])},{NO_BREAK}{form(interval[1])}]" if interval else ""


def cell(value: Any, interval: Sequence[float] | None, form: Form, coloured: bool = False) -> Cell:
    """A value and its interval, which may stand on two lines."""
    text = f"{form(value)} {_bracket(interval, form)}".rstrip()
    low, high = interval or (None, None)
    return Cell(text, tone({"ci_low": low, "ci_high": high}) if coloured else "")


def cells(summary: Row, form: Form, coloured: bool = False) -> list[Cell]:
    """Each seed with its own interval; the mean over seeds; the interval over both."""
    cells = [
        cell(value, interval, form)
        for value, interval in zip(summary["values"], summary["prompts"], strict=True)
    ]
    both = summary["both"]
    cells.append(cell(summary["mean"], summary["seeds"], form, coloured))
    if any(summary["prompts"]):
        low, high = both or (None, None)
        mark = tone({"ci_low": low, "ci_high": high}) if coloured else ""
        cells.append(Cell(_bracket(both, form) or NONE, mark))
    return cells


def with_temperatures(title: str, rows: Sequence[Row]) -> tuple[list[str], list[Named]]:
    """Columns and labels of rows: their names, and their temperatures where these differ."""
    if len({row.get("temperature") for row in rows}) == 1:
        return [title], [([row["name"]], row) for row in rows]
    labels = [[row["name"], number(row.get("temperature"), 1)] for row in rows]
    return [title, "T"], list(zip(labels, rows, strict=True))


def iterated(row: Row) -> str:
    """Names the line of improvements in a row that a row is of."""
    return f"{row['method']} T={row['temperature']:g}"


def for_terminal(results: Results) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Makes the main tables for a terminal, (columns, rows), without the seeds' own intervals."""
    seeds = results["seeds"]
    rows = results["comparisons"]
    yield _brief("comparison", zip(comparison_labels(rows), rows), "delta", points, seeds)
    rows = results["scores"]
    yield _brief(
        "mean score", zip(comparison_labels(rows), rows), "mean_score", three_digits, seeds
    )
    named = [(f"{iterated(row)}, {row['iteration']}", row) for row in results["iterations"]]
    for title, key, form in (
        ("mean score by iteration", "mean_score", three_digits),
        ("delta by iteration", "delta_vs_original", points),
        ("elo by iteration", "elo", whole),
        ("bradley-terry by iteration", "bradley_terry", whole),
    ):
        yield _brief(title, named, key, form, seeds)
    named = [
        (
            f"{row['criterion']} {row.get('iteration', '')}".strip()
            + f", T={row['temperature']:g}",
            row,
        )
        for row in results["stops"]
    ]
    yield _brief("delta by stop criterion", named, "delta_vs_original", points, seeds)
    named = [
        (f"{row['name']}, K={row['iteration']}, T={row['temperature']:g}", row)
        for row in results["budgets"]
        if row["name"] == MAIN_OF_BUDGETS
    ]
    yield _brief("at equal tokens", named, "delta", points, seeds)
    named = [(row["name"], row) for row in results["reward_models"]]
    yield _brief("reward model, accuracy %", named, "accuracy", share, seeds)
    for title, part, key, form in (
        ("delta of PIT on", "transfer", "delta", points),
        ("R_PIT right % on", "transfer_models", "accuracy", share),
    ):
        named = [(row["evaluated_on"], row) for row in results[part]]
        yield _brief(title, named, key, form, seeds)


def _brief(title, named, key: str, form: Form, seeds) -> tuple[list[str], list[list[str]]]:
    there = [(label, row[key]) for label, row in named if key in row]
    columns = [title, *(f"seed {seed}" for seed in seeds), "mean", "over seeds"]
    intervals = ["seeds"]
    if any(summary["both"] for _, summary in there):
        columns.append("over seeds and prompts")
        intervals.append("both")
    rows = [
        [
            label,
            *(form(value) for value in summary["values"]),
            form(summary["mean"]),
            *(_bracket(summary[interval], form) or NONE for interval in intervals),
        ]
        for label, summary in there
    ]
    return columns, rows
