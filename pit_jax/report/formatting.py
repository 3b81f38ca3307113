"""Writes numbers of the results as the text of tables; a value that is missing is a dash."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.evaluation.judges import told

NONE = "–"
# Keeps an interval, or a figure and its data set, on one line of a narrow column.
NO_BREAK = "\u00a0"
INTERVALS = (
    "Brackets: 95% intervals over prompts; all of the same prompt or dialogue count as one draw."
)
# The comparison at equal budgets that a verdict is about, and a terminal shows; a page has all.
MAIN_OF_BUDGETS = "PIT, best vs Best-of-n"
# What a tone says of a comparison's first model.
VERDICTS = {"up": "clearly better", "down": "clearly worse", "": "no clear difference"}


def known(value: Any) -> bool:
    """Returns whether a value is there and is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Writes a number to `digits` decimals, with its sign if asked for."""
    return f"{value:{'+' if sign else ''}.{digits}f}" if known(value) else NONE


def share(value: Any) -> str:
    """Writes a share between 0 and 1 in percent."""
    return f"{100 * value:.1f}" if known(value) else NONE


def count(value: Any) -> str:
    """Writes 1234 as '1,234', and large numbers as '1.23M'."""
    if not known(value):
        return NONE
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """Writes seconds in the unit that reads best."""
    if not known(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def tone(row: Mapping[str, Any]) -> str:
    """Returns 'up' or 'down' where a row's interval lies on one side of zero."""
    low, high = row.get("ci_low", math.nan), row.get("ci_high", math.nan)
    if not (known(low) and known(high)):
        return ""
    return "up" if low > 0 else "down" if high < 0 else ""


def comparison_labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of comparisons, with the temperature where the rows differ in it."""
    if len({row.get("temperature") for row in rows}) == 1:
        return [row["name"] for row in rows]
    return [f"{row['name']} (T={row['temperature']:g})" for row in rows]


def with_interval(value: str, low: Any, high: Any, form: Callable[[Any], str]) -> str:
    """Writes 'value [low, high]' without line breaks, or the value alone without an interval."""
    if not (known(low) and known(high)):
        return value
    return f"{value}{NO_BREAK}[{form(low)},{NO_BREAK}{form(high)}]"


def points(value: Any) -> str:
    """Writes a signed number of percentage points."""
    return number(value, 1, sign=True)


def three_digits(value: Any) -> str:
    """Writes a number to three decimals."""
    return number(value, 3)


def whole(value: Any) -> str:
    """Writes a number without decimals."""
    return number(value, 0)


def held_out(results: Mapping[str, Any]) -> str:
    """Says on how many prompts the results are, which a run has held out and a file hasn't."""
    n = results.get("num_prompts")
    prompts = "held-out " * bool({"seed", "seeds"} & results.keys()) + "prompt"
    return f"{prompts}s" if n is None else f"{count(n)} {prompts}{'s' * (n != 1)}"


def judge_of(results: Mapping[str, Any]) -> str:
    """Names the judge of results, as captions do."""
    name = results.get("judge")
    if not name:
        name = next((row["judge"] for row in results.get("comparisons", ())), "judge")
    return told(name)


def score_of(results: Mapping[str, Any]) -> str:
    """Says what a score is and by which judge, as captions do."""
    judge = judge_of(results)
    if judge == "the exact checker":
        return "score by the exact checker (0 to 1)"
    return f"{'reward' if judge.startswith('R_P') else 'score'} by {judge}"
