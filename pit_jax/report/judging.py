"""The section of the judge: how far the verdicts of a model, or of people, can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.report.blocks import Drawings, Results, Section, Table
from pit_jax.report.formatting import NONE, count, number, share, with_interval


def section(results: Results, drawings: Drawings) -> Section:
    """What a language model answered in both orders, or people to a blind page; who agrees."""
    blocks = [_answers(results["judging"])] if results.get("judging") else []
    if results.get("people"):
        blocks.append(_agreement(results["agreement"], results["people"]))
        blocks.append(_places(results["people"]))
    rows = [row for row in results.get("ground_truth", ()) if row["n"]]
    if rows:
        blocks.append(_ground_truth(rows))
    return Section("The judge", blocks)


_KAPPA = "Cohen’s kappa is 1 for full agreement and 0 for that of chance."


def _ground_truth(rows: Sequence[Mapping[str, Any]]) -> Table:
    caption = (
        "How far models as judges agree with the exact checker, on the comparisons of Table 1 "
        "whose responses differ: they agree where both say win, both lose or both tie. "
        f"{_KAPPA} A reward model that a "
        "policy was trained by is no fair judge of it: this says how far it would have been. "
        "Brackets: 95% intervals over prompts."
    )
    return _accords("Judge", rows, caption)


def _accords(
    who: str, rows: Sequence[Mapping[str, Any]], caption: str, kappa_of: str = "Cohen’s kappa"
) -> Table:
    cells = []
    for row in rows:
        accuracy = with_interval(share(row["accuracy"]), row["ci_low"], row["ci_high"], share)
        ends = row["kappa_low"], row["kappa_high"]
        kappa = with_interval(number(row["kappa"]), *ends, number)
        cells.append([row["name"], accuracy, kappa, count(row["n"])])
    return Table([who, "Agrees %", kappa_of, "Comparisons"], cells, caption)


def _agreement(rows: Sequence[Mapping[str, Any]], people: Mapping[str, Any]) -> Table:
    caption = (
        f"People were asked “{people['question']}” on {count(people['asked'])} pairs of responses, "
        "each pair in an order that was drawn, and didn’t know which was whose; "
        f"pairs of equal responses tie unasked: {count(people['alike'])}. All agree on "
        f"{count(people['agreed'])} of the {count(people['judged'])} that all have judged. A "
        "response is better only where all say so; all else is a tie. Two agree where both prefer "
        f"the same response or both tie. {_KAPPA}"
    )
    several = len(people["annotators"]) > 2
    if several:
        caption += (
            " The last row has how often two of all people agree on average, and Fleiss’s kappa, "
            "which is that of all together."
        )
    caption += " Brackets: 95% intervals over prompts."
    return _accords("People", rows, caption, "Kappa" if several else "Cohen’s kappa")


def _places(people: Mapping[str, Any]) -> Table:
    cells = [
        [
            row["name"],
            *(count(row[key]) for key in ("first", "second")),
            count(row["tie"]) if people["ties"] else NONE,
        ]
        for row in people["annotators"]
    ]
    caption = (
        "How often each person preferred what stood at A, or at B. The order was drawn, so that "
        "without position bias both would be as frequent."
    )
    return Table(["Person", "A is better", "B is better", "Tie"], cells, caption)


def _answers(found: Mapping[str, Any]) -> Table:
    """How often both orders agree and which place is preferred, and the tokens of the answers."""
    answers = max(found["answers"], 1)
    cells = [
        ("Comparisons of different responses", count(found["comparisons"])),
        ("Both orders agree, %", share(found["agreed"] / max(found["comparisons"], 1))),
        *_swapped(found),
        *_marked(found),
        ("Unjudged, for want of an answer", count(found.get("unjudged", 0))),
        ("Answers", count(found["answers"])),
        ("The first response is better, %", share(found["first"] / answers)),
        ("The second response is better, %", share(found["second"] / answers)),
        ("Tie, %", share(found["tie"] / answers)),
        ("No verdict", count(found["none"])),
        ("Tokens read", f"{found['prompt_tokens']:,}"),
        ("Tokens written", f"{found['completion_tokens']:,}"),
        *_costs(found),
    ]
    caption = (
        "Every two responses that differ are shown in both orders. One of them is better where "
        "both orders say so; all else is a tie, and so is an answer without a verdict and a "
        "comparison without an answer. Without "
        "position bias the first and the second would be preferred equally often, and no verdict "
        "would swap with the order, which is where the response that is shown first, or the one "
        "shown second, is preferred in both. Brackets: 95% intervals over prompts. Tokens are "
        "those of all these answers, whenever they were asked for, and of no request without one."
    )
    rows = [list(cell) for cell in cells]
    return Table([found["name"].capitalize(), "Value"], rows, caption)


def _marked(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The responses that may speak to the judge; nothing where there are none."""
    if not found.get("marked"):
        return []
    return [
        ("Comparisons of a response with a verdict in it", count(found["marked"])),
        ("… where the verdict swaps with the order", count(found["marked_swapped"])),
    ]


def _costs(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The cost, where there are prices, and the answers that are in no count of tokens."""
    rows = []
    if found.get("cost") is not None:
        rows.append(("Cost", f"{found['cost']:,.4f}"))
    if found.get("uncounted"):
        rows.append(("Answers whose tokens the API didn’t count", count(found["uncounted"])))
    return rows


def _swapped(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How often the verdict follows the place; a report from before that was counted has none."""
    if not found.get("both"):
        return []
    swapped = (found["first_twice"] + found["second_twice"]) / found["both"]
    ends = found["swapped_low"], found["swapped_high"]
    return [
        ("The verdict swaps with the order, %", with_interval(share(swapped), *ends, share)),
        ("… for the first response", count(found["first_twice"])),
        ("… for the second response", count(found["second_twice"])),
    ]
