"""The table that compares stop criteria by what they end with and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report.blocks import Block, Cell, Table
from pit_jax.report.formatting import known, number, points, three_digits, tone, with_interval

_CAPTION = (
    "When to stop (section 4.7), on the iterations above, of which a criterion only leaves out the "
    "last ones. Unchanged: a response came back as it was. r_gap: it is below the limit, and the "
    "response before is kept; the limit is the score of a response that is as good as its "
    "reference, plus min_gap of improve. Tokens: that many have been sampled, which is what half "
    "of all iterations take on average. All stop at the last iteration. Iterations and tokens are "
    "means, with what was sampled and rejected, without the tokens that R_PIT reads. Brackets: 95% "
    "intervals over prompts."
)


def blocks(groups: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Makes the table of the iterations at each temperature; nothing if none compares criteria."""
    rows = [(group["temperature"], row) for group in groups for row in group.get("stops", ())]
    if not rows:
        return []
    scored = any(known(row.get("mean_score")) for _, row in rows)
    cells: list[list[str | Cell]] = []
    for temperature, row in rows:
        low, high = row.get("ci_low"), row.get("ci_high")
        delta = with_interval(points(row["delta_vs_original"]), low, high, points)
        cells.append(
            [
                number(temperature, 1),
                _named(row),
                number(row["iterations"]),
                number(row["tokens"], 1),
                *([three_digits(row.get("mean_score"))] if scored else []),
                Cell(delta, tone(row)),
            ]
        )
    columns = ["Temperature", "Stops", "Iterations", "Tokens"] + ["Mean score"] * scored
    return [Table([*columns, "Δ vs original"], cells, _CAPTION, labels=2)]


def _named(row: Mapping[str, Any]) -> str:
    criterion, limit = row["criterion"], row["limit"]
    if criterion == "gap":
        return f"r_gap < {limit:.2f}"
    if criterion == "iterations":
        return f"after {limit} iteration{'s' if limit > 1 else ''}"
    return f"at {limit} tokens" if criterion == "tokens" else "unchanged"
