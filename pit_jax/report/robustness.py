"""The table of whether comparisons hold: by the signs of prompts, and at equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report.blocks import Block, Cell, Table
from pit_jax.report.formatting import NONE, count, known, points, share, tone, with_interval

_CAPTION = (
    "The same comparisons, tested in other ways. Won, lost, tied: prompts with more wins than "
    "losses, fewer, and as many. p: of an exact two-sided sign test of these prompts, not "
    "corrected for the number of comparisons. Longer wins: how often the longer response (in "
    "characters) is the better one where lengths and verdicts differ. Δ at equal length: by a "
    "logistic regression of the verdicts on the difference in length, as AlpacaEval’s "
    "length-controlled win rate (Dubois et al., 2024). Brackets: 95% intervals over prompts; none "
    "where too few verdicts differ."
)


def blocks(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Block]:
    """Makes the table of the comparisons that have a sign test; nothing if none has.

    Args:
      rows: comparisons of the results.
      labels: what to call each.
    """
    cells = [_line(row, label) for row, label in zip(rows, labels, strict=True) if _tested(row)]
    columns = ["Comparison", "Won", "Lost", "Tied", "Sign test p", "Longer wins %"]
    return [Table([*columns, "Δ at equal length"], cells, _CAPTION)] if cells else []


def probability(value: Any) -> str:
    """Writes a p-value to three decimals, and what is below them as '<0.001'."""
    if not known(value):
        return NONE
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _tested(row: Mapping[str, Any]) -> bool:
    return bool(row.get("sign_test"))


def _line(row: Mapping[str, Any], label: str) -> list[str | Cell]:
    signs, lengths = row["sign_test"], row.get("lengths") or {}
    longer = share(lengths.get("longer_wins"))
    delta = points(lengths.get("delta"))
    return [
        label,
        *(count(signs[key]) for key in ("wins", "losses", "ties")),
        probability(signs["p"]),
        with_interval(longer, lengths.get("longer_low"), lengths.get("longer_high"), share),
        Cell(
            with_interval(delta, lengths.get("ci_low"), lengths.get("ci_high"), points),
            tone(lengths),
        ),
    ]
