"""The section of transfer: PIT on datasets that it wasn't trained on."""

from __future__ import annotations

from pit_jax.report import seed_tables
from pit_jax.report.blocks import Block, Cell, Drawings, Results, Section, Table
from pit_jax.report.formatting import (
    INTERVALS,
    count,
    number,
    points,
    share,
    tone,
    with_interval,
)

TITLE = "Transfer"
_MEANING = (
    "PIT’s improvement against the policy’s own response at temperature {:g}, on the dataset that "
    "all models were trained on and on others."
)
_TOLD = (
    "Too long: pairs that don’t fit the run’s windows, which are left out. Seen: prompts that the "
    "run was trained on."
)


def section(results: Results, drawings: Drawings) -> Section:
    """How much PIT improves the policy's responses on each dataset, and how right R_PIT is."""
    cells: list[list[str | Cell]] = []
    for row in results.get("transfer", ()):
        ends, gap = (row.get("ci_low"), row.get("ci_high")), row["gap_model"]
        accuracy, of_gap = share(gap.get("accuracy")), (gap.get("ci_low"), gap.get("ci_high"))
        cells.append(
            [
                row["trained_on"],
                row["evaluated_on"],
                *(number(row.get(key), 1) for key in ("win", "lose", "tie")),
                Cell(with_interval(points(row.get("delta")), *ends, points), tone(row)),
                count(row.get("n")),
                with_interval(accuracy, *of_gap, share),
                count(gap.get("n")),
                row["judge"],
                f"{count(row['too_long'])} of {count(row['read'])}",
                count(row["seen"]),
            ]
        )
    if not cells:
        return Section(TITLE, [])
    temperature = results["transfer"][0]["temperature"]
    caption = (
        f"{_MEANING.format(temperature)} R_PIT accuracy: how often it ranks held-out pairs right. "
        f"{_TOLD} A judge may differ from row to row. {INTERVALS}"
    )
    columns = ["Trained on", "Evaluated on", "Win %", "Lose %", "Tie %", "Δ [95% interval]"]
    columns += ["Prompts", "R_PIT accuracy % [95% interval]", "Pairs", "Judge", "Too long", "Seen"]
    return Section(TITLE, [Table(columns, cells, caption, labels=2)])


def of_seeds(results: Results) -> list[Block]:
    """The same of several seeds, of what `evaluation.seeds.gather` combined."""
    rows = [row for row in results.get("transfer", ()) if "delta" in row]
    if not rows:
        return []
    columns = ["Trained on", "Evaluated on"]
    named = [([row["trained_on"], row["evaluated_on"], row["judge"]], row) for row in rows]
    delta = seed_tables.table(
        results,
        [*columns, "Judge"],
        named,
        "delta",
        points,
        f"{_MEANING.format(rows[0]['temperature'])} Δ = win − lose, in points of percent. A judge "
        "may differ from row to row.",
    )
    models = results["transfer_models"]
    accuracy = seed_tables.table(
        results,
        columns,
        [([row["trained_on"], row["evaluated_on"]], row) for row in models],
        "accuracy",
        share,
        "How often R_PIT ranks the held-out pairs of each dataset right, in percent.",
    )
    cells: list[list[str | Cell]] = [
        [row["evaluated_on"], *(count(row[key]["mean"]) for key in ("read", "too_long", "seen"))]
        for row in rows
    ]
    heads = ["Evaluated on", "Pairs read", "Too long", "Seen"]
    return [delta, accuracy, Table(heads, cells, f"{_TOLD} Means over seeds.")]
