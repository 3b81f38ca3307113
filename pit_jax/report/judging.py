"""The section of a judge that is a language model: how far its verdicts can be trusted."""

from __future__ import annotations

from pit_jax.report.blocks import Drawings, Results, Section, Table
from pit_jax.report.formatting import count, share


def section(results: Results, drawings: Drawings) -> Section:
    """How often both orders agree and which place is preferred, and the tokens of the answers."""
    found = results.get("judging")
    if not found:
        return Section("", [])
    answers = max(found["answers"], 1)
    cells = [
        ("Comparisons of different responses", count(found["comparisons"])),
        ("Both orders agree, %", share(found["agreed"] / max(found["comparisons"], 1))),
        ("Answers", count(found["answers"])),
        ("The first response is better, %", share(found["first"] / answers)),
        ("The second response is better, %", share(found["second"] / answers)),
        ("Tie, %", share(found["tie"] / answers)),
        ("No verdict", count(found["none"])),
        ("Tokens read", f"{found['prompt_tokens']:,}"),
        ("Tokens written", f"{found['completion_tokens']:,}"),
    ]
    caption = (
        "Every two responses that differ are shown in both orders. One of them is better where "
        "both orders say so; all else is a tie, and so is an answer without a verdict. Without "
        "position bias the first and the second would be preferred equally often. Tokens are those "
        "of all these answers, whenever they were asked for."
    )
    rows = [list(cell) for cell in cells]
    return Section("The judge", [Table([found["name"].capitalize(), "Value"], rows, caption)])
