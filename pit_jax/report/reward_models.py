"""The section of the reward models: Table 4 and Figure 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pit_jax.evaluation import scoring
from pit_jax.report import paper, plots
from pit_jax.report.blocks import Block, Drawings, Figure, Results, Section, Table
from pit_jax.report.formatting import NO_BREAK, count, judge_of, number, share, with_interval
from pit_jax.report.variants import table_of


def section(results: Results, drawings: Drawings) -> Section:
    """How often each reward model agrees with the data, and what Equation 1 asks of a gap."""
    blocks: list[Block] = []
    rows = results.get("reward_models", ())
    if rows:
        more, theirs = paper.columns("accuracy", [paper.accuracy(row["name"]) for row in rows])
        cells = [
            [
                row["name"],
                with_interval(
                    share(row.get("accuracy")), row.get("ci_low"), row.get("ci_high"), share
                ),
                count(row.get("n")),
                *of_paper,
            ]
            for row, of_paper in zip(rows, theirs, strict=True)
        ]
        caption = (
            "How often each reward model prefers the chosen to the rejected response of held-out "
            "pairs; brackets: 95% intervals over prompts. A gap model prefers it when "
            "r(chosen, rejected) > r(rejected, chosen). Guessing agrees with 50%."
        )
        if more:
            caption += f" {paper.TABLE_4}"
        if rows[-1].get("name") == judge_of(results):
            caption += " The last row is the judge; a tie of it doesn’t agree."
        columns = ["Reward model", "Accuracy % [95% interval]", "Pairs", *more]
        blocks.append(Table(columns, cells, caption))
        blocks += table_of(results, "reward_models")
    gap_rows = [row for row in rows if row.get("inequalities") or row.get("means")]
    if gap_rows:
        blocks.append(_inequality_table(gap_rows))
    figure2 = results.get("figure2")
    if figure2:
        drawings["reward_distributions"] = partial(plots.reward_distributions, figure2)
        caption = (
            "Gap reward of the four pairs of chosen and rejected response, "
            f"{count(len(figure2['wl']))} held-out examples each; r(a, b) scores a as an "
            "improvement of b. Paper (Figure 2): on its synthetic data r(chosen, rejected) lies "
            "highest, r(rejected, chosen) lowest, and equal responses between them, below zero."
        )
        alt = "Densities of the gap reward for four kinds of pair"
        blocks.append(Figure("reward_distributions", alt, caption))
    return Section("Reward models", blocks)


def _inequality_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = [f"{above}>{below}" for above, below in scoring.GAP_INEQUALITIES]
    columns = ["Gap model", *(name.replace(">", f"{NO_BREAK}>{NO_BREAK}") for name in names)]
    columns += [*(f"mean {pair}" for pair in scoring.GAP_PAIRS), "Reference moves"]
    cells = [
        [
            row["name"],
            *(share((row.get("inequalities") or {}).get(name)) for name in names),
            *(number((row.get("means") or {}).get(pair)) for pair in scoring.GAP_PAIRS),
            number(row.get("degeneration")),
        ]
        for row in rows
    ]
    caption = (
        "Share of held-out pairs (%) that meet each inequality of Equation 1, and mean rewards; wl "
        "is the chosen response (w) scored against the rejected one (l). Reference moves: how far "
        "the reward moves when only the reference is swapped; near 0, the model ignores it. A "
        "difference of R_P’s scores, which Appendix C sets aside without figures, meets all five "
        "inequalities of a pair or none, and moves by 1."
    )
    return Table(columns, cells, caption)
