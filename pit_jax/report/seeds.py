"""The sections of a report of several seeds, from what `evaluation.seeds.gather` combined.

`build` takes the place of `sections.build` in `write.write_report`. Beside the combined parts the
results have title, description, command, num_prompts, seeds (their numbers), warnings, and `runs`,
one for each seed: [{seed, folder, device, versions, seconds}].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pit_jax.evaluation import scoring
from pit_jax.report import paper, seed_plots
from pit_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Figure,
    Paragraph,
    Section,
    Table,
    Tile,
    Tiles,
    Warnings,
)
from pit_jax.report.formatting import (
    NO_BREAK,
    NONE,
    comparison_labels,
    count,
    duration,
    number,
    points,
    share,
    three_digits,
    tone,
    whole,
)
from pit_jax.report.sections import Drawings, Results

Row = Mapping[str, Any]
Form = Callable[[Any], str]
# The texts of a row's first columns, and the row.
_Named = tuple[Sequence[str], Row]

_HEADLINES = 4
# The title of each group of comparisons, and what the paper's figures beside it are.
_GROUPS = {
    "table1": (
        "Quality of the responses",
        "Paper: Table 1, temperature 1; synthetic data judged by GPT-4, HH-RLHF (HH) and "
        "OpenAI/Summary by DeBERTa.",
    ),
    "table2": ("The curriculum", "Paper: Table 2, HH-RLHF, judged by DeBERTa."),
    "control": ("Controls", ""),
}
_INTERVALS = (
    "A seed’s brackets are its 95% interval over prompts: what that one trained model would show "
    "on other prompts like these. Those of the mean are its 95% interval over seeds (Student’s t): "
    "what the mean of ever more seeds would show on these prompts. All seeds answer the same "
    "prompts; the interval over seeds and prompts adds the luck of these to that of the seeds, and "
    "says what that mean would show on other prompts. One seed, or seeds that are all equal, have "
    "no interval over seeds."
)
# The figure's name here, and the paper's, of each figure of Δ against temperature.
_SWEEPS = {"figure3": ("temperatures", "Figure 3"), "figure5": ("supervised", "Figure 5")}


def build(results: Results) -> tuple[list[Section], Drawings]:
    """The sections in order, and the figures by name."""
    drawings: Drawings = {}
    groups = list(dict.fromkeys(row["group"] for row in results["comparisons"]))
    # Controls stand at the end, as in the report of one run.
    groups.sort(key=lambda group: group == "control")
    sections = [_headline(results), Section("The intervals", [Paragraph(_INTERVALS)])]
    for group in groups:
        blocks = _comparisons(results, group, drawings)
        if group == "table1":
            blocks += _scores(results)
        if group == "table2":
            blocks += _rewards_by_step(results, drawings)
        sections.append(Section(_GROUPS.get(group, (group, ""))[0], blocks))
    if "table2" not in groups:
        sections.append(Section("The curriculum", _rewards_by_step(results, drawings)))
    sections += [
        Section("Improvement iterations", _iterations(results, drawings)),
        Section("The temperature of improvement", _sweeps(results, drawings)),
        Section("Reward models", _reward_models(results)),
        Section("The runs", _runs(results)),
    ]
    return [section for section in sections if section.blocks], drawings


def tables(results: Results) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The main tables for a terminal: columns and rows of text, without the seeds' intervals."""
    seeds = results["seeds"]
    rows = results["comparisons"]
    yield _brief("comparison", zip(comparison_labels(rows), rows), "delta", points, seeds)
    rows = results["scores"]
    yield _brief(
        "mean score", zip(comparison_labels(rows), rows), "mean_score", three_digits, seeds
    )
    named = [(_iteration_label(row), row) for row in results["iterations"]]
    for title, key, form in (
        ("mean score by iteration", "mean_score", three_digits),
        ("delta by iteration", "delta_vs_original", points),
        ("elo by iteration", "elo", whole),
    ):
        yield _brief(title, named, key, form, seeds)
    named = [(row["name"], row) for row in results["reward_models"]]
    yield _brief("reward model, accuracy %", named, "accuracy", share, seeds)


def _brief(title, named, key: str, form: Form, seeds) -> tuple[list[str], list[list[str]]]:
    there = [(label, row[key]) for label, row in named if key in row]
    columns = [title, *(f"seed {seed}" for seed in seeds), "mean", "over seeds"]
    intervals = ["seeds"]
    if any(summary["both"] for _, summary in there):
        columns.append("over seeds and prompts")
        intervals.append("both")
    rows = [
        [
            label,
            *(form(value) for value in summary["values"]),
            form(summary["mean"]),
            *(_bracket(summary[interval], form) or NONE for interval in intervals),
        ]
        for label, summary in there
    ]
    return columns, rows


def _bracket(interval: Sequence[float] | None, form: Form) -> str:
    return f"[{form(interval[0])},{NO_BREAK}{form(interval[1])}]" if interval else ""


def _cell(value: Any, interval: Sequence[float] | None, form: Form, coloured: bool = False) -> Cell:
    """A value and its interval, which may stand on two lines."""
    text = f"{form(value)} {_bracket(interval, form)}".rstrip()
    low, high = interval or (None, None)
    return Cell(text, tone({"ci_low": low, "ci_high": high}) if coloured else "")


def _cells(summary: Row, form: Form, coloured: bool = False) -> list[Cell]:
    """Each seed with its own interval; the mean over seeds; the interval over both."""
    cells = [
        _cell(value, interval, form)
        for value, interval in zip(summary["values"], summary["prompts"], strict=True)
    ]
    both = summary["both"]
    cells.append(_cell(summary["mean"], summary["seeds"], form, coloured))
    if any(summary["prompts"]):
        low, high = both or (None, None)
        mark = tone({"ci_low": low, "ci_high": high}) if coloured else ""
        cells.append(Cell(_bracket(both, form) or NONE, mark))
    return cells


def _table(
    results: Results,
    columns: Sequence[str],
    named: Sequence[_Named],
    key: str,
    form: Form,
    caption: str,
    papers: Sequence[str] = (),
    paper_column: str = "",
) -> Table:
    """One quantity of each row, seed by seed; the rows are (labels, row)."""
    there = [(labels, row[key]) for labels, row in named if key in row]
    with_prompts = any(any(summary["prompts"]) for _, summary in there)
    partial = any(summary["n"] < len(results["seeds"]) for _, summary in there)
    heads = [*columns, *(f"Seed {seed}" for seed in results["seeds"]), "Mean [over seeds]"]
    heads += ["[Over seeds and prompts]"] if with_prompts else []
    heads += ["Seeds"] if partial else []
    rows: list[list[str | Cell]] = []
    for labels, summary in there:
        row: list[str | Cell] = [*labels, *_cells(summary, form, form is points)]
        row += [NONE] * (len(columns) + len(results["seeds"]) + 1 + with_prompts - len(row))
        rows.append([*row, str(summary["n"])] if partial else row)
    if any(papers):
        heads.append(paper_column)
        rows = [[*row, text or NONE] for row, text in zip(rows, papers, strict=True)]
    return Table(heads, rows, caption, labels=len(columns))


def _headline(results: Results) -> Section:
    rows = [row for row in results["comparisons"] if row["group"] == "table1" and "delta" in row]
    tiles = []
    rows = rows[:_HEADLINES]
    for row, label in zip(rows, comparison_labels(rows), strict=True):
        delta = row["delta"]
        low, high = delta["both"] or (None, None)
        mark = tone({"ci_low": low, "ci_high": high})
        verdict = {"up": "clearly better", "down": "clearly worse", "": "no clear difference"}[mark]
        note = "seeds " + ", ".join(points(value) for value in delta["values"])
        if delta["both"]:
            note += (
                f"; 95% interval over seeds and prompts {points(low)} to {points(high)}: {verdict}"
            )
        tiles.append(Tile(label, f"Δ {points(delta['mean'])}", note, mark))
    blocks: list[Block] = [Tiles(tiles)] if tiles else []
    if results.get("warnings"):
        blocks.append(Warnings(list(results["warnings"])))
    return Section("", blocks)


def _comparisons(results: Results, group: str, drawings: Drawings) -> list[Block]:
    rows = [row for row in results["comparisons"] if row["group"] == group and "delta" in row]
    if not rows:
        return []
    labels = comparison_labels(rows)
    drawings[group] = seed_plots.comparisons(labels, [row["delta"] for row in rows])
    papers = [paper.delta(row["first"], row["second"]) for row in rows]
    caption = (
        "Δ = win − lose of the first model’s responses against the second’s, in points of percent, "
        f"on {_prompts(results)}. Judge: {results['judge']}."
    )
    if any(papers):
        caption += f" {_GROUPS.get(group, ('', ''))[1]}".rstrip()
    columns, named = _with_temperatures("Comparison", rows)
    picture = Figure(
        group,
        f"Delta of each seed and their mean: {', '.join(labels)}",
        "Dots: seeds; diamonds: their mean, with the 95% interval over seeds (thick) and over "
        "seeds and prompts (thin), both cut off at ±100, beyond which no Δ lies.",
    )
    return [picture, _table(results, columns, named, "delta", points, caption, papers, "Paper’s Δ")]


def _prompts(results: Results) -> str:
    return f"{count(results.get('num_prompts'))} held-out prompts"


def _with_temperatures(title: str, rows: Sequence[Row]) -> tuple[list[str], list[_Named]]:
    """Columns and labels of rows: their names, and their temperatures where these differ."""
    if len({row.get("temperature") for row in rows}) == 1:
        return [title], [([row["name"]], row) for row in rows]
    labels = [[row["name"], number(row.get("temperature"), 1)] for row in rows]
    return [title, "T"], list(zip(labels, rows, strict=True))


def _scores(results: Results) -> list[Block]:
    if not results["scores"]:
        return []
    columns, named = _with_temperatures("Responses", results["scores"])
    caption = (
        f"Mean score of each model’s responses to {_prompts(results)}, by the {results['judge']}."
    )
    return [_table(results, columns, named, "mean_score", three_digits, caption)]


def _rewards_by_step(results: Results, drawings: Drawings) -> list[Block]:
    curves = results["figure4"]
    if not curves:
        return []
    drawings["rewards"] = seed_plots.lines(
        [seed_plots.Panel("Reward", "Step", "Gap reward", _reward_lines(curves))],
        results["regions"],
    )
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
        mean = _cell(ending["mean"], ending["seeds"], number)
        rows.append([_curve_label(curve), *cells, mean])
    columns = ["Round", *(f"Seed {seed}" for seed in results["seeds"]), "Mean [over seeds]"]
    note = (
        "Mean gap reward of the last tenth of a round, and the region that it lies in by the "
        "seed’s own reward model. Paper (Figure 4): trained by the second round alone the model "
        "stays in Similar; after the first round it breaks through to Better."
    )
    picture = Figure("rewards", "Gap reward against training step, by round and seed", caption)
    return [picture, Table(columns, rows, note)]


def _curve_label(curve: Row) -> str:
    return " · ".join(curve[key] for key in ("model", "round") if key in curve)


def _reward_lines(curves: Sequence[Row]) -> list[seed_plots.Line]:
    """A line for each model, whose rounds follow each other; without models, for each round."""
    models: dict[str, list[Row]] = {}
    for curve in curves:
        models.setdefault(curve.get("model") or curve["round"], []).append(curve)
    lines: list[seed_plots.Line] = []
    for name, rounds in models.items():
        steps = [step for curve in rounds for step in curve["steps"]]
        means = [value for curve in rounds for value in curve["mean"]]
        seeds = [
            [
                value
                for curve in rounds
                for value in curve["seeds"][i] or [None] * len(curve["steps"])
            ]
            for i in range(len(curves[0]["seeds"]))
        ]
        lines.append((name, steps, means, seeds))
    return lines


def _iteration_label(row: Row) -> str:
    return f"{_series(row)}, {row['iteration']}"


def _series(row: Row) -> str:
    """What tells the rows of one temperature, and of one method if they have one, from others."""
    names = [value for value in row.values() if isinstance(value, str)]
    return " ".join([*names, f"T={row['temperature']:g}"])


def _iterations(results: Results, drawings: Drawings) -> list[Block]:
    groups: dict[str, list[Row]] = {}
    for row in results["iterations"]:
        groups.setdefault(_series(row), []).append(row)
    if not groups:
        return []
    panels = []
    for key, title in (
        ("mean_score", "Mean score"),
        ("delta_vs_original", "Δ vs original (points)"),
        ("elo", "ELO"),
    ):
        series = [
            (name, *_line([(row["iteration"], row[key]) for row in rows if key in row]))
            for name, rows in groups.items()
        ]
        panels.append(seed_plots.Panel(title, "Iteration (0 = original)", "", series))
    drawings["iterations"] = seed_plots.lines(panels)
    caption = "Thin lines: seeds; thick: their mean."
    alt = "Score, delta and ELO by iteration and seed"
    blocks: list[Block] = [Figure("iterations", alt, caption)]
    for name, rows in groups.items():
        note = (
            f"Improvements in a row ({name}): the mean with its interval over seeds, and beside it "
            f"the values of seeds {', '.join(map(str, results['seeds']))}."
        )
        if name == list(groups)[-1]:
            note += " Paper: Table 3, judged by DeBERTa."
        blocks.append(_iteration_table(rows, note))
    return blocks


def _line(summaries: Sequence[tuple[float, Row]]):
    """x, the means and each seed's values of points in order."""
    x = [place for place, _ in summaries]
    means = [summary["mean"] for _, summary in summaries]
    return x, means, list(zip(*(summary["values"] for _, summary in summaries), strict=True))


def _iteration_table(rows: Sequence[Row], caption: str) -> Table:
    shown = (("mean_score", three_digits), ("delta_vs_original", points), ("elo", whole))
    cells: list[list[str | Cell]] = []
    for row in rows:
        line: list[str | Cell] = [str(row["iteration"]) if row["iteration"] else "Original"]
        for key, form in shown:
            summary = row.get(key)
            line += (
                [
                    _cell(summary["mean"], summary["seeds"], form, form is points),
                    ", ".join(form(value) for value in summary["values"]),
                ]
                if summary
                else [NONE, NONE]
            )
        cells.append([*line, paper.elo(row["iteration"]) or NONE])
    columns = ["Iteration", "Mean score", "by seed", "Δ vs original", "by seed", "ELO", "by seed"]
    return Table([*columns, "Paper’s ELO"], cells, caption)


def _sweeps(results: Results, drawings: Drawings) -> list[Block]:
    blocks: list[Block] = []
    for figure, (drawing, title) in _SWEEPS.items():
        rows = [row for row in results[figure] if "delta" in row]
        if not rows:
            continue
        names = list(dict.fromkeys(row["name"] for row in rows))
        series = [
            (name, *_line([(r["temperature"], r["delta"]) for r in rows if r["name"] == name]))
            for name in names
        ]
        axes = ("Temperature of improvement", "Δ = win − lose (points)")
        drawings[drawing] = seed_plots.lines([seed_plots.Panel("", *axes, series)])
        alt = f"{title}: delta against the temperature of improvement, by seed"
        caption = f"{title}. Thin lines: seeds; thick: their mean."
        blocks.append(Figure(drawing, alt, caption))
        columns, named = _with_temperatures("Comparison", rows)
        note = f"Δ by temperature T, on {_prompts(results)}."
        blocks.append(_table(results, columns, named, "delta", points, note))
    return blocks


def _reward_models(results: Results) -> list[Block]:
    rows = results["reward_models"]
    if not rows:
        return []
    papers = [paper.accuracy(row["name"]) for row in rows if "accuracy" in row]
    named = [([row["name"]], row) for row in rows]
    caption = (
        "How often each reward model prefers the chosen to the rejected response, in percent. "
        "Paper: Table 4, in percent."
    )
    columns = ["Reward model"]
    blocks: list[Block] = [
        _table(results, columns, named, "accuracy", share, caption, papers, "Paper’s accuracy")
    ]
    details = [
        *((f"{a}>{b}", f"{a} > {b}, %", share) for a, b in scoring.GAP_INEQUALITIES),
        *((f"mean {pair}", f"mean {pair}", number) for pair in scoring.GAP_PAIRS),
        ("degeneration", "reference moves", number),
    ]
    cells: list[list[str | Cell]] = [
        [row["name"], label, *_cells(row[key], form)]
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
            ", ".join(f"{k} {v}" for k, v in (run.get("versions") or {}).items()),
            run.get("device") or NONE,
            duration(run.get("seconds")),
        ]
        for run in results["runs"]
    ]
    columns = ["Seed", "Run directory", "Versions", "Device", "Training"]
    blocks: list[Block] = [Table(columns, cells, labels=3)]
    if results.get("command"):
        blocks.append(Code(results["command"]))
    return blocks
