"""What a reader of some results must know first: where they say less than they seem to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pit_jax.report.blocks import Results
from pit_jax.report.formatting import count, known, points, share

_WEAK = 0.6  # an accuracy; guessing has a half
_IGNORES = 0.1  # by how much of a reward its reference moves it
_ENDED = 0.9
_FEW = 100  # prompts
# A model of fewer parameters doesn't follow a prompt that asks for feedback.
_MINIATURE = 300e6
_SINGLE = ("R_P", "R_PIT")


def cautions(results: Results) -> list[str]:
    """Lists in sentences what weakens the results of a run.

    These are: a stage that went on with other settings than it began with, or whose records were
    damaged; a reward model or judge that hardly agrees with the data, or a gap model that ignores
    its reference; Self-Refine where the policy is too small for it or it makes responses worse; and
    responses that didn't end within the window.
    """
    of_stages = _changes(results), _records(results)
    found = (*of_stages, _reward_models(results), _self_refine(results), _unended(results))
    return [*itertools.chain(*found)]


def few_prompts(results: Results) -> list[str]:
    """Says that there are too few prompts to tell responses apart, if so."""
    n = results.get("num_prompts") or 0
    if not 0 < n < _FEW:
        return []
    return [f"responses are compared on {n} prompts only: small differences can't be told"]


def _changes(results: Results) -> Iterator[str]:
    for row in results.get("stages", ()):
        by_name: dict[str, list[Mapping[str, Any]]] = {}
        for change in row.get("changes", ()):
            by_name.setdefault(change["name"].rpartition(".")[2], []).append(change)
        for name, found in by_name.items():
            parts = [f"{each['from']} up to step {count(each['step'])}" for each in found]
            yield (
                f"{row['name']} was trained with {name} {', '.join(parts)} and {found[-1]['to']} "
                "from then on; config.gin has the last value alone"
            )


def _records(results: Results) -> Iterator[str]:
    for row in results.get("stages", ()):
        if row.get("damaged"):
            yield f"the records of {row['name']} were damaged: its curves show those that were left"


def _reward_models(results: Results) -> Iterator[str]:
    judge = next((row["judge"] for row in results.get("comparisons", ())), "")
    for row in results.get("reward_models", ()):
        accuracy = row.get("accuracy")
        if row["name"] == judge and known(accuracy) and accuracy < _WEAK:
            yield (
                f"the judge, {judge}, agrees with the data on {share(accuracy)}% of "
                f"{count(row.get('n'))} held-out pairs, where guessing has 50% and a tie doesn't "
                "agree: its verdicts say little"
            )
        if row["name"] not in _SINGLE:
            continue
        if known(accuracy) and accuracy < _WEAK:
            yield (
                f"{row['name']} is weak: it agrees with the data on {share(accuracy)}% of "
                f"{count(row.get('n'))} held-out pairs, where guessing has 50%. What is trained by "
                "it, or judged by it, learns or shows little of what the data prefers"
            )
        moves = row.get("degeneration")
        if known(moves) and abs(moves) < _IGNORES:
            yield (
                f"{row['name']} hardly looks at its reference (reference moves {moves:.2f}): it "
                "scores a response, not an improvement"
            )


def _self_refine(results: Results) -> Iterator[str]:
    rows = [
        row
        for row in results.get("comparisons", ())
        if (row["first"], row["second"]) == ("self_refine", "original")
    ]
    if not rows:
        return
    policy = (results.get("subjects") or {}).get("policy")
    size = _parameters(results, policy)
    worse = known(rows[0].get("ci_high")) and rows[0]["ci_high"] < 0
    small = known(size) and size < _MINIATURE
    if not (worse or small):
        return
    text = "Self-Refine is out of its depth here: "
    if worse:
        text += f"it makes the policy's responses worse (Δ {points(rows[0]['delta'])})"
        text += ", and " if small else ""
    if small:
        text += f"a policy of {count(size)} parameters doesn't follow a prompt that asks for "
        text += "feedback"
    yield (
        f"{text}. That PIT beats it says little; see how PIT does against a second sample of the "
        "policy, in Controls"
    )


def _parameters(results: Results, stage: Any) -> Any:
    rows: list[Mapping[str, Any]] = list(results.get("stages", ()))
    return next((row.get("parameters") for row in rows if row["name"] == stage), None)


def _unended(results: Results) -> Iterator[str]:
    for row in results.get("scores", ()):
        ended = row.get("eos_rate")
        if known(ended) and ended < _ENDED:
            yield (
                f"{100 * (1 - ended):.0f}% of the responses of {row['name']} at temperature "
                f"{row['temperature']:g} were cut off at the end of the window, and are judged as "
                "they are"
            )
