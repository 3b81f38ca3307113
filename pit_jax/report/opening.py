"""What a report opens with: the verdict in words, the headlines, the warnings, and what words mean.

A stranger should know after this page what was compared, on what, who judged it and what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report.blocks import (
    Block,
    Drawings,
    Paragraph,
    Results,
    Section,
    Terms,
    Tile,
    Tiles,
    Warnings,
)
from pit_jax.report.formatting import (
    VERDICTS,
    count,
    judge_of,
    known,
    number,
    points,
    tone,
)

Row = Mapping[str, Any]
Term = tuple[str, str]

_HEADLINES = 4
# The comparisons that the report leads with, in order, by the kinds of their two sides.
_LEADING = (
    ("pit", "original"),
    ("iteration", "original"),
    ("pit", "self_refine"),
    ("pit", "resampled"),
    ("original", "chosen"),
)
# What to call PIT's opponents in a sentence.
_OPPONENTS = {
    "self_refine": "Self-Refine’s",
    "resampled": "a second sample of the policy, which costs about as much",
}


def section(results: Results, drawings: Drawings) -> Section:
    """What is compared, the verdict, headline numbers and warnings."""
    del drawings
    rows = leading(results)
    first, _ = glossary(results)
    blocks: list[Block] = [Terms(first)] if first else []
    if rows and (rows[0]["first"], rows[0]["second"]) in _LEADING[:2]:
        blocks.append(Paragraph(_verdict(results, rows), leads=True))
    tiles = []
    for row in rows[:_HEADLINES]:
        told = f"{count(row.get('n'))} prompts: {VERDICTS[tone(row)]}"
        note = ", ".join([*_interval(row), told])
        tiles.append(Tile(row["name"], f"Δ {points(row['delta'])}", note, tone(row)))
    return Section("", [*blocks, *headlines(tiles, results)])


def headlines(tiles: Sequence[Tile], results: Results) -> list[Block]:
    """Makes of headline numbers and of the warnings a block each, where there are any."""
    found: list[Block] = [Tiles(list(tiles))] if tiles else []
    return [*found, *([Warnings(list(results["warnings"]))] if results.get("warnings") else [])]


def terms(results: Results, drawings: Drawings) -> Section:
    """What the other words mean, which tables and figures use."""
    del drawings
    _, others = glossary(results)
    return Section("What else is compared", [Terms(others)] if others else [])


def leading(results: Results) -> list[Row]:
    """The comparisons to lead with: PIT against the original first, all at one temperature."""
    rows = [row for row in results.get("comparisons", ()) if "delta" in row]
    found = [
        row
        for kinds in _LEADING
        for row in rows
        if (row["first"], row["second"]) == kinds and row["group"] in ("table1", "control")
    ]
    if not found:
        found = [row for row in rows if row["group"] == "table1"]
    return [row for row in found if row.get("temperature") == found[0].get("temperature")]


def claim(who: str, mark: str, source: str) -> str:
    """Says whether `who` improves the original responses, by the tone of the comparison."""
    return {
        "up": f"{who} improves the original responses",
        "down": f"{who} makes the original responses worse",
        "": f"Whether {who} improves the original responses can’t be told from {source}",
    }[mark]


def _verdict(results: Results, rows: Sequence[Row]) -> str:
    """Says in sentences how PIT does against the original, and against its opponents."""
    first, *others = rows
    who = "PIT" if first["first"] == "pit" else first["name"].partition(" vs ")[0]
    said = claim(who, tone(first), "this run")
    temperature = first.get("temperature")
    where = f" at temperature {temperature:g}" if known(temperature) else ""
    prompts = "held-out prompts" if who == "PIT" else "prompts"
    win, lose, tie = (number(first.get(key), 1) for key in ("win", "lose", "tie"))
    judge = judge_of(results)
    prefers = "prefer" if judge.startswith("people") else "prefers"
    text = (
        f"{said}: on {count(first.get('n'))} {prompts}{where}, {judge} {prefers} "
        f"{who}’s response for {win}%, the original for {lose}% and neither for {tie}%, which is "
        f"Δ {', '.join([points(first['delta']) + ' points', *_interval(first)])}."
    )
    found = [(row, _OPPONENTS.get(row["second"])) for row in others if row["first"] == "pit"]
    for mark in ("up", "down", ""):
        against = [name for row, name in found if name and tone(row) == mark]
        if against and mark:
            text += f" PIT’s are {VERDICTS[mark]} than {' and than '.join(against)}."
        elif against:
            text += f" PIT’s don’t differ clearly from {' and from '.join(against)}."
    return text


def _interval(row: Row) -> list[str]:
    """The interval of Δ in words; nothing where there is none."""
    low, high = row.get("ci_low"), row.get("ci_high")
    return [f"95% interval {points(low)} to {points(high)}"] if known(low) and known(high) else []


def glossary(results: Results) -> tuple[list[Term], list[Term]]:
    """What words mean on this run: those to know before the verdict, and the others."""
    rows = results.get("comparisons", ())
    if not rows:
        return [], []
    kinds = {row[side] for row in rows for side in ("first", "second")}
    stages = results.get("subjects") or {}

    def stage(name: str) -> str:
        return f" (stage {stages[name]})" if name in stages else ""

    first: list[Term] = [("Task", results["task"])] if results.get("task") else []
    first += _of_judge(results)
    if "iteration" in kinds:
        first.append(("Original", "The first response of each row of the file."))
        first.append(("Iteration", "The response after so many improvements."))
    elif "original" in kinds:
        text = f"The response of the policy after reinforcement learning{stage('policy')}."
        if "sft" in kinds:
            text += " Compared with SFT it is called RL."
        first.append(("Original", text))
    meanings = {
        "pit": (
            "PIT",
            f"What the PIT model{stage('pit')} makes of the original response by improving it "
            "once, without being told how.",
        ),
        "chosen": (
            "y_w",
            "The response that the data prefers, of the two that it has to each prompt. The "
            "rejected one is y_l.",
        ),
        "sft": (
            "SFT",
            f"The response of the policy before reinforcement learning{stage('sft')}.",
        ),
        "self_refine": (
            "Self-Refine",
            "What the policy itself makes of its response when a prompt asks for feedback and for "
            "a better one: the baseline by prompting.",
        ),
        "resampled": (
            "Policy re-sampled",
            "A second, independent response of the policy: what the same effort gives without PIT.",
        ),
    }
    first += [meanings[kind] for kind in ("pit", "chosen") if kind in kinds]
    others = [meanings[kind] for kind in ("sft", "self_refine", "resampled") if kind in kinds]
    others.append(
        (
            "Δ",
            "The share of prompts on which the first is preferred, less the share on which the "
            "second is, in points: +100 if it always is, 0 if as often, -100 if never. It is clear "
            "where its 95% interval leaves out 0.",
        )
    )
    if "pit" in kinds:
        others.append(
            (
                "R_P and R_PIT",
                f"The reward models. R_P{stage('reward_model')} scores a response by itself; "
                f"R_PIT{stage('gap_model')} scores by how much a response is better than another, "
                "its reference, which is r_gap.",
            )
        )
    return first, others


def _of_judge(results: Results) -> list[Term]:
    name = judge_of(results)
    if name == "the exact checker":
        judge = (
            "The exact checker of the synthetic data: a program that computes the score of a "
            "response, without a model and without mistakes. The higher score is preferred."
        )
        score = results.get("score") or "A number from 0 to 1, computed by the checker."
    elif name.startswith("R_PIT"):
        judge = (
            f"{name}, this run’s own gap reward model, which reads both responses in both orders, "
            "one as an improvement of the other. The one with the higher gap reward is preferred; "
            "where the two are so close that it gives neither more than 55%, they tie."
        )
        score = ""
    elif name.startswith("R_P"):
        judge = (
            f"{name}, this run’s own reward model of single responses. The higher reward is "
            "preferred; where the two are so close that it gives neither more than 55%, they tie."
        )
        score = (
            "The reward that the judge gives to a response: any number, of which differences alone "
            "say something."
        )
    elif name.startswith("language model"):
        judge = (
            f"{name}, which is shown both responses in both orders. One is preferred where both "
            "orders say so."
        )
        score = ""
    elif name.startswith("people"):
        judge = (
            f"{name}, who compared both responses without knowing which was whose. One is "
            "preferred where all of them say so; all else is a tie."
        )
        score = ""
    elif name.startswith("classifier"):
        judge = (
            f"{name}, a reward model that this run didn’t train. The higher score is preferred; "
            "where the two are so close that it gives neither more than 55%, they tie."
        )
        score = (
            "What the classifier gives to a response: any number, of which differences alone say "
            "something."
        )
    else:
        judge, score = f"{name}.", ""
    judge = judge[:1].upper() + judge[1:]
    return [("Judge", judge), *([("Score", score)] if score else [])]
