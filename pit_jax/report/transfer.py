"""The section of transfer: PIT on datasets that it wasn't trained on."""

from __future__ import annotations

from pit_jax.report.blocks import Cell, Drawings, Results, Section, Table
from pit_jax.report.formatting import (
    INTERVALS,
    count,
    number,
    points,
    share,
    tone,
    with_interval,
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
        return Section("Transfer", [])
    temperature = results["transfer"][0]["temperature"]
    caption = (
        "PIT’s improvement against the policy’s own response at temperature "
        f"{temperature:g}, and how often R_PIT ranks held-out pairs right, on the dataset that all "
        "models were trained on and on others. Too long: pairs that don’t fit the run’s windows, "
        "which are left out. Seen: prompts that the run was trained on. A judge may differ from "
        f"row to row. {INTERVALS}"
    )
    columns = ["Trained on", "Evaluated on", "Win %", "Lose %", "Tie %", "Δ [95% interval]"]
    columns += ["Prompts", "R_PIT accuracy % [95% interval]", "Pairs", "Judge", "Too long", "Seen"]
    return Section("Transfer", [Table(columns, cells, caption, labels=2)])
