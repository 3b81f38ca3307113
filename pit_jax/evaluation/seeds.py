"""Combines what the reports of several seeds of one configuration measured.

There are three 95% intervals, and each answers another question.

- Over prompts, of one seed, as its own report has it: what would this trained model show on other
  prompts like these?
- Over seeds: what would the mean of ever more seeds show on these prompts? It is Student's, of the
  seeds' values, with one degree of freedom fewer than there are seeds; what is drawn anew for each
  seed, as the responses are, is in the variance between them.
- Over seeds and prompts: what would that mean show on other prompts like these? All seeds are
  judged on the same prompts, so the luck of these is common to all seeds and not in the variance
  between them. To each side the interval reaches as far as the root of two squares: how far that
  over seeds reaches, and how far those over prompts reach, in the mean of their squares. This takes
  all of a seed's luck with prompts for common, so it is too wide rather than too narrow.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.evaluation import scoring
from pit_jax.evaluation.judges import ExactJudge

Report = Mapping[str, Any]
Row = dict[str, Any]
Interval = tuple[float, float]

_TAIL = 0.025

# What a row of each part measures: whether `ci_low` and `ci_high` are its interval over prompts,
# and the lowest and the highest value there can be.
_PERCENT, _SHARE, _POINTS = (0.0, 100.0), (0.0, 1.0), (-100.0, 100.0)
_Measured = Mapping[str, tuple[bool, Interval | None]]
_COMPARISON: _Measured = {
    "delta": (True, _POINTS),
    "win": (False, _PERCENT),
    "lose": (False, _PERCENT),
    "tie": (False, _PERCENT),
}
_LENGTHS: _Measured = {"delta": (True, _POINTS), "longer_wins": (False, _SHARE)}
_ITERATION: _Measured = {
    "delta_vs_original": (True, _POINTS),
    "elo": (False, None),
    "bradley_terry": (False, None),
    "changed": (False, _SHARE),
    "gap": (False, None),
}
_STOP: _Measured = {
    "delta_vs_original": (True, _POINTS),
    "limit": (False, None),
    "iterations": (False, None),
    "tokens": (False, None),
}
_BUDGET: _Measured = {
    "delta": (True, _POINTS),
    "capped": (False, _SHARE),
    **{f"{what}_tokens": (False, None) for what in ("pit", "drawn")},
    "draws": (False, None),
    **{f"{what}_passes": (False, None) for what in ("gap", "reward")},
}
_REWARD_MODEL: _Measured = {
    "accuracy": (True, _SHARE),
    "degeneration": (False, None),
    **{f"mean {pair}": (False, None) for pair in scoring.GAP_PAIRS},
    **{f"{above}>{below}": (False, _SHARE) for above, below in scoring.GAP_INEQUALITIES},
}
_TRANSFER: _Measured = {
    **_COMPARISON,
    **dict.fromkeys(("read", "too_long", "seen"), (False, None)),
}
# The figures of Δ against temperature, which have one layout.
_SWEEPS = ("figure3", "figure5")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Holds one quantity of S seeds.

    Attributes:
      values: of each seed; None where a seed has none.
      prompts: each seed's own 95% interval over prompts, or None.
      n: how many seeds have a value.
      mean: of these.
      seeds: 95% interval of the mean over seeds. None for fewer than two seeds, and where all are
        equal, which says nothing of how much seeds differ.
      both: 95% interval of the mean over seeds and prompts. None where that over seeds is, and
        where a seed has none over prompts.
    """

    values: tuple[float | None, ...]
    prompts: tuple[Interval | None, ...]
    n: int
    mean: float
    seeds: Interval | None
    both: Interval | None


def summarise(
    values: Sequence[float | None],
    prompts: Sequence[Interval | None] = (),
    bounds: Interval | None = None,
) -> Summary:
    """Combines the values of S seeds, of which one at least isn't None.

    Args:
      values: of each seed; None where a seed has none.
      prompts: the 95% interval over prompts of each seed, if there are any.
      bounds: the lowest and the highest value that there can be, at which intervals end.
    """
    prompts = tuple(prompts) or (None,) * len(values)
    found = np.array([value for value in values if value is not None], float)
    if not found.size:
        raise ValueError("values: expected one or more that are not None")
    count, mean = len(found), float(np.mean(found))
    seeds = both = None
    if np.ptp(found) > 0:
        variance = float(np.var(found, ddof=1)) / count
        reach = _quantile(count - 1) * math.sqrt(variance)
        seeds = _within(mean - reach, mean + reach, bounds)
        ends = [p for value, p in zip(values, prompts, strict=True) if value is not None and p]
        if len(ends) == count:
            # Each side by itself: an interval over prompts is narrow towards a bound.
            squares = np.mean((np.array(ends) - found[:, None]) ** 2, axis=0)
            down, up = (math.hypot(reach, math.sqrt(square)) for square in squares)
            both = _within(mean - down, mean + up, bounds)
    return Summary(tuple(values), prompts, count, mean, seeds, both)


def _quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t."""
    from scipy import special  # its import takes a while, and most commands need none of it

    return float(special.stdtrit(freedom, 1 - _TAIL))


def _within(low: float, high: float, bounds: Interval | None) -> Interval:
    return (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))


def gather(reports: Sequence[Report]) -> dict[str, Any]:
    """Combines the reports of S seeds, as `evaluation.reports` reads them.

    Rows of the reports are one row where all that names them is equal: texts, temperature,
    iteration. A row that only some seeds have is there for those.

    Returns:
      `comparisons`, `lengths` (of comparisons, at equal length), `scores`, `iterations`, `stops`,
      `budgets` (a row for each comparison), `reward_models`, `transfer`, `transfer_models` (R_PIT
      on each dataset of transfer), `figure3` and `figure5`, each a list of rows: what names the
      row, then a Summary as a dict for each quantity. `figure4` is a list of curves {model, round,
      steps, mean, seeds, ending, regions}: the mean of the seeds' curves, the curves, each as long
      as `steps`, the Summary of the mean of each curve's last tenth, and in which region that lies
      by the seed's own reward model. `regions` has the mean of the regions' bounds, or None.
      `variants` are those of all reports.
    """
    judge = reports[0].get("judge")
    score: _Measured = {
        "mean_score": (True, ExactJudge.bounds if judge == ExactJudge.name else None),
        "eos_rate": (False, _SHARE),
        "mean_length": (False, None),
    }
    regions = [scoring.regions_of(report.get("reward_models", ())) for report in reports]
    known = [each for each in regions if each]
    return {
        "variants": _combined([r.get("variants", ()) for r in reports], {}),
        "comparisons": _combined([r.get("comparisons", ()) for r in reports], _COMPARISON),
        "lengths": _combined([_lengths(r) for r in reports], _LENGTHS),
        "scores": _combined([r.get("scores", ()) for r in reports], score),
        "iterations": _combined(
            [_iterations(r) for r in reports],
            {"mean_score": (False, score["mean_score"][1]), **_ITERATION},
        ),
        "stops": _combined(
            [_stops(r) for r in reports], {"mean_score": (False, score["mean_score"][1]), **_STOP}
        ),
        "budgets": _combined([_budgets(r) for r in reports], _BUDGET),
        "reward_models": _combined([_reward_models(r) for r in reports], _REWARD_MODEL),
        "transfer": _combined([_moved(r) for r in reports], _TRANSFER),
        "transfer_models": _combined([_moved_models(r) for r in reports], _REWARD_MODEL),
        **{name: _combined([_sweep(r, name) for r in reports], _COMPARISON) for name in _SWEEPS},
        "figure4": _curves([report.get("figure4", ()) for report in reports], regions),
        "regions": [float(x) for x in np.mean(known, axis=0)] if known else None,
    }


def _combined(parts: Sequence[Sequence[Row]], measured: _Measured) -> list[Row]:
    """One row for each name that a row of any seed has, with a summary of each quantity."""
    tables = [_named(rows) for rows in parts]
    combined = []
    for name in _ordered(tables):
        rows = [table.get(name, {}) for table in tables]
        first = next(row for row in rows if row)
        row = {key: first[key] for key in first if _names(key, first[key])}
        for quantity, (has_interval, bounds) in measured.items():
            values = [_number(each.get(quantity)) for each in rows]
            if all(value is None for value in values):
                continue
            prompts = [_interval(each) if has_interval else None for each in rows]
            row[quantity] = dataclasses.asdict(summarise(values, prompts, bounds))
        combined.append(row)
    return combined


def _ordered(tables: Sequence[Mapping[Any, Any]]) -> list[Any]:
    """The names of all tables; one that the first lacks follows the one it follows in its own."""
    order: list[Any] = []
    for table in tables:
        place = 0
        for name in table:
            if name not in order:
                order.insert(place, name)
            place = order.index(name) + 1
    return order


def _names(key: str, value: Any) -> bool:
    return isinstance(value, str) or key in ("temperature", "iteration", "step")


def _named(rows: Sequence[Row]) -> dict[Any, Row]:
    """Rows by what names them; of several with one name, each has its number."""
    seen: Counter = Counter()
    named = {}
    for row in rows:
        name = tuple(sorted((k, str(v)) for k, v in row.items() if _names(k, v)))
        named[*name, seen[name]] = row
        seen[name] += 1
    return named


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(row: Row) -> Interval | None:
    low, high = _number(row.get("ci_low")), _number(row.get("ci_high"))
    return None if low is None or high is None else (low, high)


def _lengths(report: Report) -> list[Row]:
    """What comparisons have at equal length, as rows of their names."""
    return [
        {key: value for key, value in row.items() if _names(key, value)} | row["lengths"]
        for row in report.get("comparisons", ())
        if row.get("lengths")
    ]


def _iterations(report: Report) -> list[Row]:
    return [
        {"method": method, "temperature": group["temperature"], **row}
        for group in report.get("iterations", ())
        for part, method in (("rows", "PIT"), ("self_refine", "Self-Refine"))
        for row in group.get(part) or ()
    ]


def _stops(report: Report) -> list[Row]:
    """Rows of stop criteria; a number of iterations names its row, other limits are a seed's."""
    rows = []
    for group in report.get("iterations", ()):
        for row in group.get("stops", ()):
            counts = row["criterion"] == "iterations"
            named = {"iteration": row["limit"], "limit": None} if counts else {}
            rows.append({"temperature": group["temperature"], **row, **named})
    return rows


def _budgets(report: Report) -> list[Row]:
    """A row for each comparison at a budget, with what the budget is."""
    return [
        {**{key: value for key, value in row.items() if key != "comparisons"}, **compared}
        for row in report.get("budgets", ())
        for compared in row["comparisons"]
    ]


def _moved(report: Report) -> list[Row]:
    """The rows of transfer, which their data doesn't name: it may be another for each seed."""
    rows = report.get("transfer", ())
    return [{k: v for k, v in row.items() if k != "data_digest"} for row in rows]


def _moved_models(report: Report) -> list[Row]:
    """A row of R_PIT on each dataset of transfer."""
    return [
        {**row["gap_model"], **{key: row[key] for key in ("trained_on", "evaluated_on")}}
        for row in report.get("transfer", ())
    ]


def _reward_models(report: Report) -> list[Row]:
    rows = []
    for row in report.get("reward_models", ()):
        means = {f"mean {pair}": v for pair, v in (row.get("means") or {}).items()}
        rows.append({**row, **means, **(row.get("inequalities") or {})})
    return rows


def _sweep(report: Report, figure: str) -> list[Row]:
    """A figure of Δ against temperature as rows."""
    found = report.get(figure) or {"temperatures": (), "series": {}, "intervals": {}}
    rows = []
    for name, deltas in found["series"].items():
        ends = zip(found["temperatures"], deltas, found["intervals"][name], strict=True)
        for temperature, delta, (low, high) in ends:
            row = {"name": name, "temperature": temperature, "delta": delta}
            rows.append({**row, "ci_low": low, "ci_high": high})
    return rows


def _curves(parts: Sequence[Sequence[Row]], regions: Sequence[Interval | None]) -> list[Row]:
    """Figure 4: the mean of the seeds' curves at each step that all have which have the curve."""
    tables = [_named(curves) for curves in parts]
    combined = []
    for name in _ordered(tables):
        found = [table.get(name) for table in tables]
        points = [
            {s: v for s, v in zip(c["steps"], c["reward"], strict=True) if _number(v) is not None}
            if c
            else {}
            for c in found
        ]
        there = [each for each in points if each]
        if not there:
            continue
        steps = sorted(set.intersection(*map(set, there)))
        first = next(curve for curve in found if curve)
        endings = [_ending(list(each.values())) for each in points]
        combined.append(
            {
                **{k: v for k, v in first.items() if _names(k, v) or k == "start"},
                "steps": steps,
                "mean": [float(np.mean([each[s] for each in there])) for s in steps],
                "seeds": [[each[s] for s in steps] if each else None for each in points],
                "ending": dataclasses.asdict(summarise(endings)),
                "regions": [
                    scoring.region_of(end, bounds) if bounds and end is not None else None
                    for end, bounds in zip(endings, regions, strict=True)
                ],
            }
        )
    return combined


def _ending(rewards: Sequence[float]) -> float | None:
    """The mean of the last tenth of a curve."""
    return float(np.mean(rewards[-max(1, len(rewards) // 10) :])) if rewards else None
