"""The table that compares stop criteria by what they end with and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report import seed_tables
from pit_jax.report.blocks import Block, Cell, Results, Table
from pit_jax.report.formatting import known, number, points, three_digits, tone, with_interval

_CRITERIA = (
    "When to stop (section 4.7), on the iterations above, of which a criterion only leaves out the "
    "last ones. Unchanged: a response came back as it was. r_gap: it is below the limit, and the "
    "response before is kept; the limit is the score of a response that is as good as its "
    "reference, plus min_gap of improve. Tokens: that many have been sampled, which is what half "
    "of all iterations take on average. All stop at the last iteration. Iterations and tokens are "
    "means, with what was sampled and rejected and the ends of responses, without the tokens that "
    "R_PIT reads."
)
_CAPTION = f"{_CRITERIA} Brackets: 95% intervals over prompts."
_SEEDS = (
    f"Δ against the original response by stop criterion. {_CRITERIA} A limit of r_gap or tokens is "
    "each seed’s own, and those of all seeds are listed."
)
# What a criterion costs, with its decimals.
_COSTS = (("iterations", 2), ("tokens", 1))


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


def of_seeds(results: Results) -> list[Block]:
    """Makes the table of several seeds, of what `evaluation.seeds.gather` combined."""
    rows = results.get("stops", ())
    if not rows:
        return []
    named = []
    for row in rows:
        limits = [v for v in (row.get("limit") or {"values": ()})["values"] if v is not None]
        label = _named({**row, "limit": row.get("iteration")}, limits)
        means = [number(row[key]["mean"], digits) for key, digits in _COSTS]
        named.append(([label, number(row["temperature"], 1), *means], row))
    columns = ["Stops", "T", "Iterations", "Tokens"]
    key = "delta_vs_original"
    return [seed_tables.table(results, columns, named, key, points, _SEEDS)]


def _named(row: Mapping[str, Any], limits: Sequence[float] = ()) -> str:
    """Names a criterion, with the limits of several seeds where these are given."""
    criterion = row["criterion"]
    shown = limits or [row["limit"]]
    if criterion == "gap":
        return f"r_gap < {', '.join(f'{limit:.2f}' for limit in shown)}"
    if criterion == "iterations":
        return f"after {row['limit']} iteration{'s' if row['limit'] > 1 else ''}"
    if criterion == "tokens":
        return f"at {', '.join(f'{limit:.0f}' for limit in shown)} tokens"
    return "unchanged"
