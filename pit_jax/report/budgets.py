"""The section that compares PIT with best-of-n and re-sampling at equal budgets of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report import seed_tables
from pit_jax.report.blocks import Block, Cell, Drawings, Paragraph, Results, Section, Table
from pit_jax.report.formatting import (
    INTERVALS,
    VERDICTS,
    held_out,
    judge_of,
    number,
    points,
    share,
    tone,
    with_interval,
)

Row = Mapping[str, Any]

TITLE = "More draws in place of improvements"
# The comparison that the verdict is about.
_MAIN = "PIT, best vs Best-of-n"
_COSTS = ("pit_tokens", "drawn_tokens", "draws", "gap_passes", "reward_passes")
_COLUMNS = ("T", "K", "PIT tokens", "Drawn tokens", "n", "R_PIT passes", "R_P passes")
_MEANING = (
    "K improvements of PIT beside draws of the policy that cost no more. A prompt’s budget is what "
    "was sampled for PIT, the original response and K improvements with their ends; of the "
    "policy’s draws, the original first, as many are taken as fit in it, n on average. What is "
    "left of the budget stays unused, so best-of-n has somewhat fewer tokens than PIT. Best-of-n: "
    "of these draws, the one that R_P scores highest. Re-sampled: the last of them. PIT, best: the "
    "best by gap of the original and K improvements; PIT, last: the last one. Passes: how often a "
    "reward model reads a response to choose the answer; PIT, last needs none. Tokens, n and "
    "passes are means over prompts."
)


def section(results: Results, drawings: Drawings) -> Section:
    """A sentence on whether PIT is better than more draws, and the table of budgets."""
    del drawings
    rows = results.get("budgets") or ()
    if not rows:
        return Section(TITLE, [])
    marks = [
        (row["iteration"], tone(compared))
        for row in rows
        if row["temperature"] == rows[0]["temperature"]
        for compared in row["comparisons"]
        if compared["name"] == _MAIN
    ]
    names = [compared["name"] for compared in rows[0]["comparisons"]]
    cells: list[list[str | Cell]] = []
    for row in rows:
        line: list[str | Cell] = [number(row["temperature"], 1), str(row["iteration"])]
        line += [number(row[key], 1) for key in _COSTS]
        for compared in row["comparisons"]:
            ends = compared.get("ci_low"), compared.get("ci_high")
            delta = with_interval(points(compared["delta"]), *ends, points)
            line.append(Cell(delta, tone(compared)))
        cells.append(line)
    capped = [f"{share(r['capped'])}% at K = {r['iteration']}" for r in rows if r["capped"]]
    caption = _caption(results) + f" Δ = win − lose, in points of percent. {INTERVALS}"
    if capped:
        caption += f" Prompts with tokens for more draws than best_of allows: {', '.join(capped)}."
    columns = [*_COLUMNS, *(f"Δ: {name}" for name in names)]
    verdict = Paragraph(_verdict(results, marks, rows[0]["temperature"]))
    return Section(TITLE, [verdict, Table(columns, cells, caption, labels=2)])


def of_seeds(results: Results) -> list[Block]:
    """The same of several seeds, of what `evaluation.seeds.gather` combined."""
    rows = [row for row in results.get("budgets", ()) if "delta" in row]
    if not rows:
        return []
    first = rows[0]["temperature"]
    marks = []
    for row in rows:
        if row["name"] == _MAIN and row["temperature"] == first:
            low, high = row["delta"]["both"] or (None, None)
            marks.append((row["iteration"], tone({"ci_low": low, "ci_high": high})))
    named = [
        ([row["name"], number(row["temperature"], 1), str(row["iteration"])], row) for row in rows
    ]
    deltas = seed_tables.table(
        results, ["Comparison", "T", "K"], named, "delta", points, _caption(results)
    )
    costs = {(row["temperature"], row["iteration"]): row for row in rows}
    cells: list[list[str | Cell]] = [
        [number(t, 1), str(k), *(number(row[key]["mean"], 1) for key in _COSTS)]
        for (t, k), row in costs.items()
    ]
    note = "What K improvements and n draws take, as means over prompts and seeds."
    verdict = Paragraph(_verdict(results, marks, first))
    return [verdict, deltas, Table(_COLUMNS, cells, note, labels=2)]


def _caption(results: Results) -> str:
    text = f"{_MEANING} On {held_out(results)}. Judge: {judge_of(results)}."
    if _circular(results):
        text += (
            " R_P also chooses among the draws, so best-of-n is judged by what chose it: circular, "
            "and in its favour."
        )
    return text


def _circular(results: Results) -> bool:
    return judge_of(results).startswith("R_P")


def _verdict(results: Results, marks: Sequence[tuple[int, str]], temperature: float) -> str:
    """Says at which numbers of improvements PIT is better, worse or neither."""
    said = []
    for mark in ("up", "down", ""):
        if where := [k for k, each in marks if each == mark]:
            said.append(f"{VERDICTS[mark]} at K = {_listed(where)}")
    judged = f"temperature {temperature:g}, judged by {judge_of(results)}"
    circular = ", which also chooses among the draws" * _circular(results)
    return (
        "PIT’s best response by gap against best-of-n, the policy’s own draws for no more sampled "
        f"tokens: {'; '.join(said)} ({judged}{circular})."
    )


def _listed(numbers: Sequence[int]) -> str:
    """Writes rising numbers: '1 to 5' if none between is missing, else '1, 3 and 4'."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    *before, last = map(str, numbers)
    return f"{', '.join(before)} and {last}" if before else last
