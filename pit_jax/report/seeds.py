"""The sections of a report of several seeds, from what `evaluation.seeds.gather` combined.

`build` takes the place of `sections.build` in `write.write_report`. Beside the combined parts the
results have title, description, command, num_prompts, seeds (their numbers), warnings, and `runs`,
one for each seed: [{seed, folder, commit, data_digest, device, versions, seconds}].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pit_jax.evaluation import scoring
from pit_jax.report import budgets, opening, paper, plots, seed_plots, seed_tables, stopping
from pit_jax.report import transfer as moved
from pit_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Drawings,
    Figure,
    Paragraph,
    Results,
    Section,
    Table,
    Terms,
    Tile,
)
from pit_jax.report.formatting import (
    NONE,
    VERDICTS,
    comparison_labels,
    duration,
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
)
from pit_jax.report.variants import table_of

Row = Mapping[str, Any]

_HEADLINES = 4
_HASH = 12  # characters of a hash that are shown
# Where the paper's figures beside each group of comparisons are from.
_SOURCES = {"table1": paper.TABLE_1, "table2": paper.TABLE_2, "figure5": "", "control": ""}
_INTERVALS = (
    ("Over prompts", "A seed’s own: what that one trained model would show on other prompts."),
    (
        "Over seeds",
        "What the mean of ever more seeds would show on these prompts (Student’s t). There is none "
        "for one seed, or where all seeds are equal. With few seeds it is wide, as it should be.",
    ),
    (
        "Over seeds and prompts",
        "What that mean would show on other prompts. All seeds answer the same prompts, so their "
        "luck with these isn’t seen between seeds; this interval adds it.",
    ),
)
_METHODS = {"PIT": "pit", "Self-Refine": "self_refine"}
# The figure's name here, and the paper's, of each figure of Δ against temperature.
_SWEEPS = {"figure3": ("temperatures", "Figure 3"), "figure5": ("supervised", "Figure 5")}


def build(results: Results) -> tuple[list[Section], Drawings]:
    """The sections in order, and the figures by name."""
    drawings: Drawings = {}

    def group(name: str) -> list[Block]:
        return [*_comparisons(results, name, drawings), *table_of(results, name)]

    others = {row["group"] for row in results["comparisons"]} - set(_SOURCES)
    sections = [
        _headline(results),
        opening.terms(results, drawings),
        Section("The three intervals, each of 95%", [Terms(_INTERVALS)]),
        Section("Quality of the responses", [*group("table1"), *_scores(results)]),
        Section("The curriculum", [*group("table2"), *_rewards_by_step(results, drawings)]),
        Section("Improvement iterations", _iterations(results, drawings)),
        Section(budgets.TITLE, budgets.of_seeds(results)),
        Section("The temperature of improvement", _sweep(results, drawings, "figure3")),
        Section(
            "Supervised PIT models", [*group("figure5"), *_sweep(results, drawings, "figure5")]
        ),
        Section("Reward models", _reward_models(results)),
        Section(moved.TITLE, moved.of_seeds(results)),
        Section("Controls", group("control")),
        *(Section(name, group(name)) for name in sorted(others)),
        Section("The runs", _runs(results)),
    ]
    return [section for section in sections if section.blocks], drawings


def _headline(results: Results) -> Section:
    rows = opening.leading(results)
    first, _ = opening.glossary(results)
    blocks: list[Block] = [Terms(first)] if first else []
    if rows and (rows[0]["first"], rows[0]["second"]) == ("pit", "original"):
        blocks.append(Paragraph(_verdict(results, rows[0]), leads=True))
    tiles = []
    for row in rows[:_HEADLINES]:
        delta = row["delta"]
        note = "seeds " + ", ".join(points(value) for value in delta["values"])
        if delta["both"]:
            low, high = delta["both"]
            note += (
                f"; 95% interval over seeds and prompts {points(low)} to {points(high)}: "
                f"{VERDICTS[_mark(delta)]}"
            )
        tiles.append(Tile(row["name"], f"Δ {points(delta['mean'])}", note, _mark(delta)))
    return Section("", [*blocks, *opening.headlines(tiles, results)])


def _mark(delta: Row) -> str:
    low, high = delta["both"] or (None, None)
    return tone({"ci_low": low, "ci_high": high})


def _verdict(results: Results, row: Row) -> str:
    """Says in a sentence how PIT does against the original over all seeds."""
    delta, seeds = row["delta"], results["seeds"]
    said = opening.claim("PIT", _mark(delta), "these seeds")
    text = (
        f"{said}: trained from {len(seeds)} seed{'s' * (len(seeds) > 1)} and judged by "
        f"{judge_of(results)} at temperature {row['temperature']:g}, it has a mean Δ of "
        f"{points(delta['mean'])} points"
    )
    if delta["both"]:
        low, high = map(points, delta["both"])
        text += f", 95% interval over seeds and prompts {low} to {high}"
    found = [value for value in delta["values"] if known(value)]
    return f"{text}. Seed by seed it is {', '.join(map(points, found))}."


def _comparisons(results: Results, group: str, drawings: Drawings) -> list[Block]:
    rows = [row for row in results["comparisons"] if row["group"] == group and "delta" in row]
    if not rows:
        return []
    labels = comparison_labels(rows)
    deltas = [row["delta"] for row in rows]
    drawings[group] = partial(seed_plots.comparisons, labels, deltas)
    papers = [paper.delta(row["first"], row["second"], row.get("temperature")) for row in rows]
    caption = (
        "Δ = win − lose of the first model’s responses against the second’s, in points of percent, "
        f"on {held_out(results)}. Judge: {judge_of(results)}."
    )
    if any(papers):
        caption += f" {_SOURCES.get(group, '')}".rstrip()
    columns, named = seed_tables.with_temperatures("Comparison", rows)
    picture = Figure(
        group,
        f"Delta of each seed and their mean: {', '.join(labels)}",
        "Dots: seeds; diamonds: their mean, with the 95% interval over seeds (thick) and over "
        "seeds and prompts (thin), both cut off at ±100, beyond which no Δ lies.",
    )
    return [
        picture,
        seed_tables.table(results, columns, named, "delta", points, caption, papers, "Δ"),
        *_at_equal_length(results, group),
    ]


def _at_equal_length(results: Results, group: str) -> list[Block]:
    rows = [row for row in results.get("lengths", ()) if row["group"] == group]
    if not any("delta" in row for row in rows):
        return []
    columns, named = seed_tables.with_temperatures("Comparison", rows)
    caption = (
        "Δ at equal length, by a logistic regression of the verdicts on the difference in length; "
        "an interval over prompts is missing where too few verdicts differ."
    )
    return [seed_tables.table(results, columns, named, "delta", points, caption)]


def _scores(results: Results) -> list[Block]:
    rows = [row for row in results["scores"] if "mean_score" in row]
    if not rows:
        return []
    columns, named = seed_tables.with_temperatures("Responses", rows)
    caption = f"Mean {score_of(results)} of each model’s responses to {held_out(results)}."
    return [seed_tables.table(results, columns, named, "mean_score", three_digits, caption)]


def _rewards_by_step(results: Results, drawings: Drawings) -> list[Block]:
    curves = results["figure4"]
    if not curves:
        return []
    several = plots.has_several_models(curves)
    steps = "Step of the second round, which begins at 0" if several else "Step"
    panel = seed_plots.Panel("Reward", steps, "Gap reward", _reward_lines(curves))
    drawings["rewards"] = partial(seed_plots.lines, [panel], results["regions"])
    caption = "Gap reward during reinforcement learning. Thin lines: seeds; thick: their mean."
    if results["regions"]:
        low, high = results["regions"]
        caption += (
            f" The Similar region, {low:.2f} to {high:.2f}, has the mean of the seeds’ own bounds."
        )
    rows: list[list[str | Cell]] = []
    for curve in curves:
        ending = curve["ending"]
        ends = zip(ending["values"], curve["regions"], strict=True)
        cells = [f"{number(value)} {region or ''}".rstrip() for value, region in ends]
        mean = seed_tables.cell(ending["mean"], ending["seeds"], number)
        rows.append([_curve_label(curve), *cells, mean])
    columns = ["Round", *(f"Seed {seed}" for seed in results["seeds"]), "Mean [over seeds]"]
    note = (
        "Mean gap reward of the last tenth of a round, and the region that it lies in by the "
        f"seed’s own reward model. {paper.FIGURE_4}"
    )
    picture = Figure("rewards", "Gap reward against training step, by round and seed", caption)
    return [picture, Table(columns, rows, note)]


def _curve_label(curve: Row) -> str:
    return " · ".join(curve[key] for key in ("model", "round") if key in curve)


def _reward_lines(curves: Sequence[Row]) -> list[seed_plots.Line]:
    """A line for each round of one model; of several, for each, whose rounds follow each other."""
    lines: dict[str, list[Row]] = {}
    for name, curve in zip(plots.line_names(curves), curves, strict=True):
        lines.setdefault(name, []).append(curve)
    several = plots.has_several_models(curves)
    found: list[seed_plots.Line] = []
    for name, rounds in lines.items():
        start = rounds[0].get("start", 0) if several else 0
        steps = [step - start for curve in rounds for step in curve["steps"]]
        means = [value for curve in rounds for value in curve["mean"]]
        seeds = [
            [v for curve in rounds for v in curve["seeds"][i] or [None] * len(curve["steps"])]
            for i in range(len(curves[0]["seeds"]))
        ]
        found.append((name, steps, means, seeds))
    return found


def _iterations(results: Results, drawings: Drawings) -> list[Block]:
    rows = results["iterations"]
    if not rows:
        return []
    lines = {(row["method"], row["temperature"]): f"{seed_tables.iterated(row)}" for row in rows}
    panels = []
    for key, title in (
        ("mean_score", "Mean score"),
        ("delta_vs_original", "Δ vs original (points)"),
        ("elo", "ELO"),
    ):
        if not any(key in row for row in rows):
            continue
        series = []
        for (method, temperature), name in lines.items():
            points_ = [
                (row["iteration"], row[key])
                for row in rows
                if (row["method"], row["temperature"]) == (method, temperature) and key in row
            ]
            series.append((name, *_line(points_)))
        panels.append(seed_plots.Panel(title, "Iteration (0 = original)", "", series))
    drawings["iterations"] = partial(seed_plots.lines, panels)
    caption = "Thin lines: seeds; thick: their mean."
    alt = "Score, delta and ELO by iteration and seed"
    blocks: list[Block] = [Figure("iterations", alt, caption)]
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    for temperature in temperatures:
        note = (
            f"Improvements in a row at temperature {temperature:g}: the mean with its interval "
            f"over seeds, and beside it the values of seeds {_listed(results['seeds'])}."
        )
        if temperature == paper.BEST_TEMPERATURE:
            note += f" {paper.TABLE_3}"
        there = [row for row in rows if row["temperature"] == temperature]
        blocks.append(_iteration_table(there, note))
    return [*blocks, *stopping.of_seeds(results)]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _line(summaries: Sequence[tuple[float, Row]]):
    """x, the means and each seed's values of points in order."""
    x = [place for place, _ in summaries]
    means = [summary["mean"] for _, summary in summaries]
    return x, means, list(zip(*(summary["values"] for _, summary in summaries), strict=True))


def _iteration_table(rows: Sequence[Row], caption: str) -> Table:
    shown = [
        ("Mean score", "mean_score", three_digits),
        ("Δ vs original", "delta_vs_original", points),
        ("ELO", "elo", whole),
    ]
    if any("bradley_terry" in row for row in rows):
        shown.append(("Bradley–Terry", "bradley_terry", whole))
    more, theirs = paper.columns(
        "ELO",
        [paper.elo(row["iteration"], _METHODS[row["method"]], row["temperature"]) for row in rows],
    )
    cells: list[list[str | Cell]] = []
    for row, of_paper in zip(rows, theirs, strict=True):
        name = f"{row['method']} {row['iteration']}" if row["iteration"] else "Original"
        line: list[str | Cell] = [name]
        for _, key, form in shown:
            summary = row.get(key)
            line += (
                [
                    seed_tables.cell(summary["mean"], summary["seeds"], form, form is points),
                    ", ".join(form(value) for value in summary["values"]),
                ]
                if summary
                else [NONE, NONE]
            )
        cells.append([*line, *of_paper])
    columns = [column for title, _, _ in shown for column in (title, "by seed")]
    return Table(["Iteration", *columns, *more], cells, caption)


def _sweep(results: Results, drawings: Drawings, figure: str) -> list[Block]:
    rows = [row for row in results[figure] if "delta" in row]
    if not rows:
        return []
    drawing, title = _SWEEPS[figure]
    series = [
        (name, *_line([(r["temperature"], r["delta"]) for r in rows if r["name"] == name]))
        for name in dict.fromkeys(row["name"] for row in rows)
    ]
    axes = ("Temperature of improvement", "Δ = win − lose (points)")
    columns, named = seed_tables.with_temperatures("Comparison", rows)
    note = f"{title}: Δ by temperature T of the improvement, on {held_out(results)}."
    table = seed_tables.table(results, columns, named, "delta", points, note)
    if len({row["temperature"] for row in rows}) == 1:
        return [table]
    drawings[drawing] = partial(seed_plots.lines, [seed_plots.Panel("", *axes, series)])
    alt = f"{title}: delta against the temperature of improvement, by seed"
    caption = f"{title}. Thin lines: seeds; thick: their mean."
    return [Figure(drawing, alt, caption), table]


def _reward_models(results: Results) -> list[Block]:
    rows = results["reward_models"]
    if not rows:
        return []
    papers = [paper.accuracy(row["name"]) for row in rows if "accuracy" in row]
    named = [([row["name"]], row) for row in rows]
    caption = (
        "How often each reward model prefers the chosen to the rejected response, in percent. "
        f"Guessing agrees with 50%. {paper.TABLE_4}"
    )
    columns = ["Reward model"]
    blocks: list[Block] = [
        seed_tables.table(results, columns, named, "accuracy", share, caption, papers, "accuracy"),
        *table_of(results, "reward_models"),
    ]
    details = [
        *((f"{a}>{b}", f"{a} > {b}, %", share) for a, b in scoring.GAP_INEQUALITIES),
        *((f"mean {pair}", f"mean {pair}", number) for pair in scoring.GAP_PAIRS),
        ("degeneration", "reference moves", number),
    ]
    cells: list[list[str | Cell]] = [
        [row["name"], label, *seed_tables.cells(row[key], form)]
        for row in rows
        for key, label, form in details
        if key in row
    ]
    if cells:
        heads = [f"Seed {seed}" for seed in results["seeds"]]
        columns = ["Gap model", "Figure 2 and Equation 1", *heads, "Mean [over seeds]"]
        note = (
            "Share of held-out pairs that meet each inequality of Equation 1, and the means of the "
            "distributions of Figure 2; wl is the chosen response (w) scored against the rejected "
            "one (l). Reference moves: how far the reward moves when only the reference is swapped."
        )
        blocks.append(Table(columns, cells, note, labels=2))
    return blocks


def _runs(results: Results) -> list[Block]:
    cells: list[list[str | Cell]] = [
        [
            str(run["seed"]),
            run["folder"],
            (run.get("commit") or NONE)[:_HASH],
            (run.get("data_digest") or NONE)[:_HASH],
            ", ".join(f"{k} {v}" for k, v in (run.get("versions") or {}).items()),
            run.get("device") or NONE,
            duration(run.get("seconds")),
        ]
        for run in results["runs"]
    ]
    columns = ["Seed", "Run directory", "Commit", "Hash of the data", "Versions", "Device"]
    caption = "Each run’s own report has its whole configuration, and these hashes in full."
    blocks: list[Block] = [Table([*columns, "Training"], cells, caption, labels=5)]
    if results.get("command"):
        blocks.append(Code(results["command"]))
    return blocks
