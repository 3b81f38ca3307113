"""The sections that compare responses: Tables 1 to 3, Figures 3 to 5, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pit_jax.evaluation import scoring
from pit_jax.report import paper, plots, robustness, stopping
from pit_jax.report.blocks import Block, Cell, Drawings, Figure, Results, Section, Table
from pit_jax.report.formatting import (
    INTERVALS,
    NO_BREAK,
    comparison_labels,
    count,
    held_out,
    judge_of,
    known,
    number,
    points,
    score_of,
    share,
    three_digits,
    tone,
    whole,
    with_interval,
)
from pit_jax.report.variants import table_of

# The figure of each group of comparisons.
_FIGURES = {
    "table1": "comparisons",
    "table2": "curriculum",
    "control": "controls",
    "figure5": "supervised_comparisons",
}


def group_of(results: Results, name: str) -> list[Mapping[str, Any]]:
    """Returns the comparisons of a group."""
    return [row for row in results.get("comparisons", ()) if row["group"] == name]


def quality(results: Results, drawings: Drawings) -> Section:
    """Table 1, and the mean score of each model."""
    blocks = _comparison_blocks(results, "table1", drawings, paper.TABLE_1)
    if scores := results.get("scores"):
        blocks.append(_score_table(results, scores))
    return Section("Quality of the responses", blocks)


def _score_table(results: Results, scores: Sequence[Mapping[str, Any]]) -> Table:
    scored = any(known(row.get("mean_score")) for row in scores)
    cells = []
    for row in scores:
        cells.append([row["name"], number(row.get("temperature"), 1)])
        if scored:
            mean, low, high = (row.get(key) for key in ("mean_score", "ci_low", "ci_high"))
            cells[-1].append(with_interval(number(mean, 3), low, high, three_digits))
        cells[-1] += [share(row.get("eos_rate")), number(row.get("mean_length"), 1)]
    columns = ["Responses", "Temperature", "Mean score [95% interval]", "Ended %", "Tokens"]
    caption = (
        f"Mean {score_of(results)} of each model’s responses to {held_out(results)}, the "
        f"share that ended within the window, and their mean length. {INTERVALS}"
    )
    if not scored:
        columns.remove("Mean score [95% interval]")
        caption = (
            f"Share of each model’s responses to {held_out(results)} that ended within the "
            "window, and their mean length."
        )
    return Table(columns, cells, caption)


def curriculum(results: Results, drawings: Drawings) -> Section:
    """Table 2, and the gap reward during reinforcement learning (Figure 4)."""
    blocks = _comparison_blocks(results, "table2", drawings, paper.TABLE_2)
    blocks += table_of(results, "table2")
    rounds = results.get("figure4")
    if rounds:
        regions = scoring.regions_of(results.get("reward_models", ()))
        drawings["rewards"] = partial(plots.rewards_by_step, rounds, regions)
        caption = (
            "Gap reward of a response against its reference during reinforcement learning, by "
            "round; where it is noisy, faint with its running mean."
        )
        if plots.has_several_models(rounds):
            caption += (
                " Steps count from where references first come from the policy after RL; before "
                "that they are from the data or others. A model without such a round ends at 0, "
                "where a second round would begin."
            )
        if regions:
            low, high = regions
            caption += (
                f" The Similar region, {low:.2f} to {high:.2f}, is bounded by the midpoints "
                "between the reward model’s means for worse, equal and better held-out pairs. "
                + _endings(rounds, regions)
            )
        caption += f" {paper.FIGURE_4}"
        blocks.append(Figure("rewards", "Gap reward against training step, by round", caption))
    return Section("The curriculum", blocks)


def _endings(rounds: Sequence[Mapping[str, Any]], regions: tuple[float, float]) -> str:
    """Says in which region each line ends, and where the first one's second round begins."""

    def region(curve: Mapping[str, Any], ends: bool) -> str:
        rewards = [value for value in curve["reward"] if known(value)]
        tenth = max(1, len(rewards) // 10)
        values = rewards[-tenth:] if ends else rewards[:tenth]
        return scoring.region_of(sum(values) / len(values), regions).capitalize()

    names = plots.line_names(rounds)
    drawn = [(n, c) for n, c in zip(names, rounds, strict=True) if any(map(known, c["reward"]))]
    if not drawn:
        return ""
    # A model's last round stands for it.
    endings = [f"{name} in {region(curve, True)}" for name, curve in dict(drawn).items()]
    text = f"At the end (mean of the last tenth): {', '.join(endings)}."
    of_first = [c for n, c in drawn if n == names[0] and min(c["steps"]) > c.get("start", 0)]
    if of_first and plots.has_several_models(rounds):
        where = region(of_first[0], False)
        text += f" {names[0]} begins its second round in {where} (mean of the first tenth)."
    return text


def iterations(results: Results, drawings: Drawings) -> Section:
    """Table 3, with a figure of it."""
    blocks: list[Block] = []
    groups = results.get("iterations", ())
    refined = any(group.get("self_refine") for group in groups)
    if groups:
        drawings["iterations"] = partial(plots.iterations, groups)
        scored = any("mean_score" in row for group in groups for row in group["rows"])
        caption = f"Mean {score_of(results)}, " * scored
        caption += "Δ against the original response and ELO; shaded: intervals."
        if refined:
            caption += " Dashed: Self-Refine."
        alt = "Score, delta and ELO by iteration" if scored else "Delta and ELO by iteration"
        blocks.append(Figure("iterations", alt, caption))
    for group in groups:
        methods = "PIT and Self-Refine, each" if group.get("self_refine") else "PIT"
        caption = (
            f"{methods} applied again and again to its own output at temperature "
            f"{group['temperature']:g}, on {held_out(results)}."
        )
        table, with_papers = _iteration_table(group)
        if group is groups[0]:
            caption += (
                " Changed: responses that differ from those of the iteration before; r_gap: how "
                "much better R_PIT finds the response than the one before it. ELO, as in the "
                "paper’s Table 3, rates all responses of this table by comparing each with each; "
                "it is averaged over orders of the comparisons, and its interval is that of the "
                "average. Bradley–Terry: ratings by maximum likelihood on the same scale, on which "
                "no order bears; a tie is half a win. Brackets: 95% intervals over prompts."
            )
        if with_papers:
            caption += f" {paper.TABLE_3}"
        blocks.append(dataclasses.replace(table, caption=caption))
    blocks += stopping.blocks(groups)
    return Section("Improvement iterations", blocks)


def _iteration_table(group: Mapping[str, Any]) -> tuple[Table, bool]:
    """The table of one temperature, and whether it has the paper's figures."""
    refined = group.get("self_refine", ())
    rows = [(f"PIT{NO_BREAK}" if refined else "", "pit", row) for row in group["rows"]]
    rows += [(f"Self\u2011Refine{NO_BREAK}", "self_refine", row) for row in refined]
    ranked = any(known(row.get("rank")) for _, _, row in rows)
    scored = any(known(row.get("mean_score")) for _, _, row in rows)
    more, theirs = paper.columns(
        "ELO",
        [paper.elo(row["iteration"], method, group["temperature"]) for _, method, row in rows],
    )
    fitted = any(known(row.get("bradley_terry")) for _, _, row in rows)
    cells: list[list[str | Cell]] = []
    for (label, _, row), of_paper in zip(rows, theirs, strict=True):
        low, high = row.get("ci_low"), row.get("ci_high")
        delta = with_interval(points(row.get("delta_vs_original")), low, high, points)
        elo = whole(row.get("elo"))
        cells.append(
            [
                f"{label}{row['iteration']}" if row["iteration"] else "Original",
                *([three_digits(row.get("mean_score"))] if scored else []),
                Cell(delta, tone(row)),
                with_interval(elo, row.get("elo_low"), row.get("elo_high"), whole),
                *([whole(row.get("rank"))] if ranked else []),
                *([_bradley_terry(row)] if fitted else []),
                share(row.get("changed")),
                number(row.get("gap")),
                *of_paper,
            ]
        )
    columns = ["Iteration", *(["Mean score"] if scored else []), "Δ vs original", "ELO"]
    columns += ["Rank"] * ranked + ["Bradley–Terry"] * fitted
    return Table([*columns, "Changed %", "Mean r_gap", *more], cells), bool(more)


def _bradley_terry(row: Mapping[str, Any]) -> str:
    low, high = row.get("bradley_terry_low"), row.get("bradley_terry_high")
    return with_interval(whole(row.get("bradley_terry")), low, high, whole)


def temperature(results: Results, drawings: Drawings) -> Section:
    """Figure 3."""
    figure3 = results.get("figure3")
    if not figure3 or not figure3["series"]:
        return Section("", [])
    caption = (
        f"Δ between responses improved at each temperature and those they are compared with, on "
        f"{held_out(results)}; shaded: 95% intervals over prompts. Paper (Figure 3): on "
        "HH-RLHF PIT is best at 0.4 to 0.6 and Self-Refine at 0.6 to 0.8; on its synthetic data "
        "temperature hardly matters to PIT. There PIT beats Self-Refine at every temperature, and "
        "on HH-RLHF at every one but 0.8, where they tie."
    )
    picture = Figure("temperatures", "Delta against the temperature of improvement", caption)
    blocks = _by_temperature(figure3, picture, drawings)
    return Section("The temperature of improvement", blocks)


def _by_temperature(figure: Mapping[str, Any], picture: Figure, drawings: Drawings) -> list[Block]:
    """A figure of Δ against temperature and its numbers; of one temperature the numbers alone."""
    temperatures = figure["temperatures"]
    several = len(temperatures) > 1
    cells: list[list[str | Cell]] = []
    for name, deltas in figure["series"].items():
        line: list[str | Cell] = [name]
        for delta, (low, high) in zip(deltas, figure["intervals"][name], strict=True):
            text = points(delta) if several else with_interval(points(delta), low, high, points)
            line.append(Cell(text, tone({"ci_low": low, "ci_high": high})))
        cells.append(line)
    columns = ["Δ of", *(f"T = {temperature:g}" for temperature in temperatures)]
    if not several:
        told = picture.caption.replace("shaded", "brackets").replace("each temperature", "T")
        return [Table(columns, cells, told)]
    drawings[picture.name] = partial(plots.temperatures, figure)
    told = (
        "The figure in numbers, by the temperature T of the improvement; bold: the interval leaves "
        "out 0."
    )
    return [picture, Table(columns, cells, told)]


def supervised(results: Results, drawings: Drawings) -> Section:
    """Figure 5 (Appendix K): PIT models after supervised fine-tuning alone."""
    blocks = _comparison_blocks(results, "figure5", drawings)
    blocks += table_of(results, "figure5")
    figure5 = results.get("figure5")
    if figure5 and figure5["series"]:
        caption = (
            "Δ between what each supervised PIT model makes of the SFT policy’s response at each "
            "temperature and that response itself, sampled at temperature 1, on "
            f"{held_out(results)}; shaded: 95% intervals over prompts. CoT: the model reflects "
            "before it responds. Paper (Figure 5, Appendix K): on its synthetic data, judged by "
            "GPT-4 on 128 examples, PIT (SFT, CoT) does worse than PIT (SFT); it has these curves "
            "as a plot only, without figures."
        )
        alt = "Delta of supervised PIT models against temperature"
        blocks += _by_temperature(figure5, Figure("supervised", alt, caption), drawings)
    return Section("Supervised PIT models", blocks)


def controls(results: Results, drawings: Drawings) -> Section:
    """Comparisons with what takes as many samples or steps as PIT."""
    blocks = _comparison_blocks(results, "control", drawings)
    return Section("Controls", [*blocks, *table_of(results, "control")])


def _comparison_blocks(
    results: Results, group: str, drawings: Drawings, source: str = ""
) -> list[Block]:
    rows = group_of(results, group)
    if not rows:
        return []
    labels = comparison_labels(rows)
    name = _FIGURES[group]
    drawings[name] = partial(
        plots.comparisons,
        [{**row, "label": label} for row, label in zip(rows, labels, strict=True)],
    )
    papers = [paper.delta(row["first"], row["second"], row.get("temperature")) for row in rows]
    more, theirs = paper.columns("Δ", papers)
    columns = ["Comparison", "Win %", "Lose %", "Tie %", "Δ [95% interval]", "Prompts", *more]
    cells: list[list[str | Cell]] = []
    for row, label, of_paper in zip(rows, labels, theirs, strict=True):
        delta = with_interval(points(row["delta"]), row.get("ci_low"), row.get("ci_high"), points)
        rates = [number(row.get(key), 1) for key in ("win", "lose", "tie")]
        cells.append([label, *rates, Cell(delta, tone(row)), count(row.get("n")), *of_paper])
    temperatures = {row.get("temperature") for row in rows}
    (temperature,) = temperatures if len(temperatures) == 1 else (None,)
    caption = (
        f"The first model’s response against the second’s on {held_out(results)}. "
        f"Judge: {judge_of({'judge': rows[0]['judge']})}. "
        + (f"Temperature {temperature:g}. " if known(temperature) else "")
        + f"Δ = win − lose, in points of percent. {INTERVALS}"
    )
    if more:
        caption += f" {source}"
    picture = Figure(name, f"Win, tie and lose rates and delta: {', '.join(labels)}")
    return [picture, Table(columns, cells, caption), *robustness.blocks(rows, labels)]
