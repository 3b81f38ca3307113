"""The section that compares PIT with best-of-n and re-sampling at equal budgets of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report import seed_tables
from pit_jax.report.blocks import Block, Cell, Drawings, Paragraph, Results, Section, Table
from pit_jax.report.formatting import (
    INTERVALS,
    MAIN_OF_BUDGETS,
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
# What a row costs, as the results and the columns have it.
_COSTS = {
    "pit_tokens": "PIT’s tokens",
    "drawn_tokens": "Tokens of n draws",
    "draws": "n",
    "gap_passes": "Passes of R_PIT",
    "reward_passes": "Passes of R_P",
}
_MEANING = (
    "K improvements of PIT beside draws of the policy that cost no more. A prompt’s budget is what "
    "was sampled for PIT, the original response and K improvements with their ends; of the "
    "policy’s draws, the original first, as many are taken as fit in it, n on average. Best-of-n: "
    "of these draws, the one that R_P scores highest. Re-sampled: the last of them. PIT, best: the "
    "best by gap of the original and K improvements; PIT, last: the last one."
)
_SPENT = (
    "What K improvements and n draws take, as means over prompts. What is left of a budget stays "
    "unused, so best-of-n has somewhat fewer tokens than PIT. Passes: how often a reward model "
    "reads a response for the choice, a cost beside the tokens; PIT, last needs none."
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
        if compared["name"] == MAIN_OF_BUDGETS
    ]
    names = [compared["name"] for compared in rows[0]["comparisons"]]
    deltas: list[list[str | Cell]] = []
    for label, row in zip(_labels(rows), rows, strict=True):
        line: list[str | Cell] = [label]
        for compared in row["comparisons"]:
            ends = compared.get("ci_low"), compared.get("ci_high")
            delta = with_interval(points(compared["delta"]), *ends, points)
            line.append(Cell(delta, tone(compared)))
        deltas.append(line)
    caption = f"{_caption(results)} Δ = win − lose, in points of percent. {INTERVALS}"
    # A line doesn't break within Best-of-n.
    columns = ["Iterations", *(f"Δ: {name}".replace("-", "\u2011") for name in names)]
    labelled = zip(_labels(rows), rows, strict=True)
    capped = [f"{share(row['capped'])}% at {label}" for label, row in labelled if row["capped"]]
    spent = _SPENT
    if capped:
        spent += f" Prompts with tokens for more draws than best_of allows: {', '.join(capped)}."
    costs = [{key: row[key] for key in _COSTS} for row in rows]
    verdict = Paragraph(_verdict(results, marks, rows[0]["temperature"]))
    tables = [Table(columns, deltas, caption), _cost_table(_labels(rows), costs, spent)]
    return Section(TITLE, [verdict, *tables])


def of_seeds(results: Results) -> list[Block]:
    """The same of several seeds, of what `evaluation.seeds.gather` combined."""
    rows = [row for row in results.get("budgets", ()) if "delta" in row]
    if not rows:
        return []
    first = rows[0]["temperature"]
    order = [list(dict.fromkeys(row[key] for row in rows)) for key in ("temperature", "name")]
    # Of each comparison one K after the other.
    rows.sort(key=lambda row: (order[0].index(row["temperature"]), order[1].index(row["name"])))
    marks = []
    for row in rows:
        if row["name"] == MAIN_OF_BUDGETS and row["temperature"] == first:
            low, high = row["delta"]["both"] or (None, None)
            marks.append((row["iteration"], tone({"ci_low": low, "ci_high": high})))
    labels = _labels(rows)
    named = [([row["name"], label], row) for row, label in zip(rows, labels, strict=True)]
    columns = ["Comparison", "Iterations"]
    deltas = seed_tables.table(results, columns, named, "delta", points, _caption(results))
    costs = {
        label: {key: row[key]["mean"] for key in _COSTS}
        for label, row in zip(labels, rows, strict=True)
    }
    spent = _cost_table(list(costs), list(costs.values()), f"{_SPENT} Means over seeds.")
    return [Paragraph(_verdict(results, marks, first)), deltas, spent]


def _labels(rows: Sequence[Row]) -> list[str]:
    """Names the rows' numbers of improvements, with the temperature where they differ in it."""
    if len({row["temperature"] for row in rows}) == 1:
        return [f"K = {row['iteration']}" for row in rows]
    return [f"K = {row['iteration']}, T = {row['temperature']:g}" for row in rows]


def _cost_table(labels: Sequence[str], costs: Sequence[Row], caption: str) -> Table:
    cells = [
        [label, *(number(row[key], 1) for key in _COSTS)]
        for label, row in zip(labels, costs, strict=True)
    ]
    return Table(["Iterations", *_COSTS.values()], cells, caption)


def _caption(results: Results) -> str:
    text = f"{_MEANING} On {held_out(results)}. Judge: {judge_of(results)}."
    if choice := _own_choice(results):
        text += (
            f" It also chooses {choice[0]}, so {choice[1]} is judged by what chose it: circular, "
            "and in its favour."
        )
    return text


def _own_choice(results: Results) -> tuple[str, str] | None:
    """What the judge itself chooses among, and what is so chosen; None for another judge."""
    subjects = results.get("subjects") or {}
    choices = {
        f"R_P ({subjects.get('reward_model', 'rm_policy')})": ("among the draws", "best-of-n"),
        f"R_PIT ({subjects.get('gap_model', 'rm_gap')})": ("PIT’s best", "it"),
    }
    return choices.get(judge_of(results))


def _verdict(results: Results, marks: Sequence[tuple[int, str]], temperature: float) -> str:
    """Says at which numbers of improvements PIT is better, worse or neither."""
    said = []
    for mark in ("up", "down", ""):
        if where := [k for k, each in marks if each == mark]:
            said.append(f"{VERDICTS[mark]} at K = {_listed(where)}")
    judged = f"temperature {temperature:g}, judged by {judge_of(results)}"
    choice = _own_choice(results)
    circular = f", which also chooses {choice[0]}" if choice else ""
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
