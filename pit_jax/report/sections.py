"""The sections of a report: which tables and figures each part of the results becomes.

Each builder takes the whole results and returns a section, which has no blocks where its part is
absent. `write` documents the results; `page` and `markdown` show the sections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pit_jax.evaluation import scoring
from pit_jax.report import choices, paper, plots
from pit_jax.report.blocks import (
    Block,
    Cell,
    Code,
    Figure,
    Paragraph,
    Response,
    Sample,
    Section,
    Table,
    Tile,
    Tiles,
    Warnings,
)
from pit_jax.report.formatting import (
    NONE,
    comparison_labels,
    count,
    duration,
    known,
    number,
    points,
    share,
    three_digits,
    tone,
    whole,
    with_interval,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

Results = Mapping[str, Any]
Drawings = dict[str, "Drawing"]

_HEADLINES = 4
# The figure of each group of comparisons.
_COMPARISON_FIGURES = {"table1": "comparisons", "table2": "curriculum", "control": "controls"}
_INTERVALS = (
    "Brackets: 95% intervals over prompts; all of the same prompt or dialogue count as one draw."
)


def build(results: Results) -> tuple[list[Section], Drawings]:
    """The sections of a report in order, and its figures by name."""
    drawings: Drawings = {}
    builders: Sequence[Callable[[Results, Drawings], Section]] = (
        _headline,
        _quality,
        _curriculum,
        _iterations,
        _temperature,
        _reward_models,
        _controls,
        _samples,
        choices.section,
        _training,
        _data,
        _reproduce,
    )
    sections = [builder(results, drawings) for builder in builders]
    return [section for section in sections if section.blocks], drawings


def _group(results: Results, name: str) -> list[Mapping[str, Any]]:
    return [row for row in results.get("comparisons", ()) if row["group"] == name]


def _held_out(results: Results) -> str:
    prompts = results.get("num_prompts")
    return "held-out prompts" if prompts is None else f"{count(prompts)} held-out prompts"


def _headline(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    tiles = []
    rows = _group(results, "table1")[:_HEADLINES]
    for row, label in zip(rows, comparison_labels(rows), strict=True):
        verdict = {
            "up": "clearly better",
            "down": "clearly worse",
            "": "no clear difference",
        }[tone(row)]
        low, high = points(row.get("ci_low")), points(row.get("ci_high"))
        note = f"95% interval {low} to {high}, {count(row.get('n'))} prompts: {verdict}"
        tiles.append(Tile(label, f"Δ {points(row['delta'])}", note, tone(row)))
    if tiles:
        blocks.append(Tiles(tiles))
    if results.get("warnings"):
        blocks.append(Warnings(list(results["warnings"])))
    return Section("", blocks)


def _comparison_blocks(
    results: Results, group: str, drawings: Drawings, source: str = ""
) -> list[Block]:
    rows = _group(results, group)
    if not rows:
        return []
    labels = comparison_labels(rows)
    name = _COMPARISON_FIGURES[group]
    drawings[name] = plots.comparisons(
        [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    )
    papers = [paper.delta(row["first"], row["second"]) for row in rows]
    columns = ["Comparison", "Win %", "Lose %", "Tie %", "Δ [95% interval]", "Prompts"]
    cells: list[list[str | Cell]] = []
    for row, label, theirs in zip(rows, labels, papers, strict=True):
        delta = with_interval(points(row["delta"]), row.get("ci_low"), row.get("ci_high"), points)
        rates = [number(row.get(key), 1) for key in ("win", "lose", "tie")]
        cells.append([label, *rates, Cell(delta, tone(row)), count(row.get("n"))])
        if any(papers):
            cells[-1].append(theirs or NONE)
    temperatures = {row.get("temperature") for row in rows}
    (temperature,) = temperatures if len(temperatures) == 1 else (None,)
    caption = (
        f"The first model’s response against the second’s on {_held_out(results)}. "
        f"Judge: {rows[0]['judge']}. "
        + (f"Temperature {temperature:g}. " if known(temperature) else "")
        + f"Δ = win − lose, in points of percent. {_INTERVALS}"
    )
    if any(papers):
        columns.append("Paper’s Δ")
        caption += f" {source}"
    picture = Figure(name, f"Win, tie and lose rates and delta: {', '.join(labels)}")
    return [picture, Table(columns, cells, caption)]


def _quality(results: Results, drawings: Drawings) -> Section:
    source = (
        "Paper: Table 1, temperature 1; synthetic data judged by GPT-4, "
        "HH-RLHF (HH) and OpenAI/Summary by DeBERTa."
    )
    blocks = _comparison_blocks(results, "table1", drawings, source)
    scores = results.get("scores")
    if scores:
        cells = [
            [
                row["name"],
                number(row.get("temperature"), 1),
                with_interval(
                    number(row["mean_score"], 3),
                    row.get("ci_low"),
                    row.get("ci_high"),
                    three_digits,
                ),
                share(row.get("eos_rate")),
                number(row.get("mean_length"), 1),
            ]
            for row in scores
        ]
        columns = ["Responses", "Temperature", "Mean score [95% interval]", "Ended %", "Tokens"]
        caption = (
            f"Mean checker score (0 to 1) of each model’s responses to {_held_out(results)}, the "
            f"share that ended within the window, and their mean length. {_INTERVALS}"
        )
        blocks.append(Table(columns, cells, caption))
    return Section("Quality of the responses", blocks)


def _curriculum(results: Results, drawings: Drawings) -> Section:
    source = "Paper: Table 2, HH-RLHF, judged by DeBERTa."
    blocks = _comparison_blocks(results, "table2", drawings, source)
    rounds = results.get("figure4")
    if rounds:
        regions = _regions(results)
        drawings["rewards"] = plots.rewards_by_step(rounds, regions)
        caption = (
            "Gap reward of a response against its reference during reinforcement learning, by "
            "round; where it is noisy, faint with its running mean."
        )
        if regions:
            low, high = regions
            caption += (
                f" The Similar region, {low:.2f} to {high:.2f}, is bounded by the midpoints "
                "between the reward model’s means for worse, equal and better held-out pairs. "
                + _endings(rounds, regions)
            )
        caption += (
            " Paper (Figure 4): trained by the second round alone the model stays in Similar; "
            "after the first round it breaks through to Better."
        )
        blocks.append(Figure("rewards", "Gap reward against training step, by round", caption))
    return Section("The curriculum", blocks)


def _regions(results: Results) -> tuple[float, float] | None:
    for row in results.get("reward_models", ()):
        means = row.get("means") or {}
        if all(known(means.get(pair)) for pair in scoring.GAP_PAIRS):
            return scoring.reward_regions(means)
    return None


def _endings(rounds: Sequence[Mapping[str, Any]], regions: tuple[float, float]) -> str:
    endings = []
    for run in rounds:
        rewards = [value for value in run["reward"] if known(value)]
        last = rewards[-max(1, len(rewards) // 10) :]
        if last:
            region = scoring.region_of(sum(last) / len(last), regions).capitalize()
            endings.append(f"{run['round']} in {region}")
    return f"At the end (mean of the last tenth): {', '.join(endings)}." if endings else ""


def _iterations(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    groups = results.get("iterations", ())
    if groups:
        drawings["iterations"] = plots.iterations(groups)
        caption = "Mean checker score, Δ against the original response and ELO; shaded: intervals."
        blocks.append(Figure("iterations", "Score, delta and ELO by iteration", caption))
    for group in groups:
        caption = (
            "PIT applied again and again to its own output at temperature "
            f"{group['temperature']:g}, on {_held_out(results)}."
        )
        if group is groups[-1]:
            caption += (
                " Changed: responses that differ from those of the iteration before; r_gap: reward "
                "of the step. ELO is averaged over orders of all comparisons, and its interval is "
                "that of the average. Brackets: 95% intervals over prompts. Paper: Table 3, judged "
                "by DeBERTa; on HH-RLHF its rating pool holds Self-Refine too."
            )
        blocks.append(_iteration_table(group["rows"], caption))
    return Section("Improvement iterations", blocks)


def _iteration_table(rows: Sequence[Mapping[str, Any]], caption: str) -> Table:
    cells: list[list[str | Cell]] = []
    for row in rows:
        low, high = row.get("ci_low"), row.get("ci_high")
        delta = with_interval(points(row.get("delta_vs_original")), low, high, points)
        elo = whole(row.get("elo"))
        cells.append(
            [
                str(row["iteration"]) if row["iteration"] else "Original",
                three_digits(row.get("mean_score")),
                Cell(delta, tone(row)),
                with_interval(elo, row.get("elo_low"), row.get("elo_high"), whole),
                share(row.get("changed")),
                number(row.get("gap")),
                paper.elo(row["iteration"]) or NONE,
            ]
        )
    columns = ["Iteration", "Mean score", "Δ vs original", "ELO", "Changed %", "Mean r_gap"]
    return Table([*columns, "Paper’s ELO"], cells, caption)


def _temperature(results: Results, drawings: Drawings) -> Section:
    figure3 = results.get("figure3")
    if not figure3 or not figure3["series"]:
        return Section("", [])
    drawings["temperatures"] = plots.temperatures(figure3)
    caption = (
        f"Δ between responses improved at each temperature and those they are compared with, on "
        f"{_held_out(results)}; shaded: 95% intervals over prompts. Paper (Figure 3): on "
        "HH-RLHF PIT is best at 0.4 to 0.6 and Self-Refine at 0.6 to 0.8; on its synthetic data "
        "temperature hardly matters to PIT."
    )
    picture = Figure("temperatures", "Delta against the temperature of improvement", caption)
    return Section("The temperature of improvement", [picture])


def _reward_models(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    rows = results.get("reward_models", ())
    if rows:
        cells = [
            [
                row["name"],
                with_interval(
                    share(row.get("accuracy")), row.get("ci_low"), row.get("ci_high"), share
                ),
                count(row.get("n")),
                paper.accuracy(row["name"]) or NONE,
            ]
            for row in rows
        ]
        caption = (
            "How often each reward model prefers the chosen to the rejected response of held-out "
            "pairs; brackets: 95% intervals over prompts. A gap model prefers it when "
            "r(chosen, rejected) > r(rejected, chosen). Paper: Table 4, in percent."
        )
        columns = ["Reward model", "Accuracy % [95% interval]", "Pairs", "Paper’s accuracy"]
        blocks.append(Table(columns, cells, caption))
    gap_rows = [row for row in rows if row.get("inequalities") or row.get("means")]
    if gap_rows:
        blocks.append(_inequality_table(gap_rows))
    figure2 = results.get("figure2")
    if figure2:
        drawings["reward_distributions"] = plots.reward_distributions(figure2)
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
    columns = ["Gap model", *(name.replace(">", " > ") for name in names)]
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
        "the reward moves when only the reference is swapped; near 0, the model ignores it."
    )
    return Table(columns, cells, caption)


def _controls(results: Results, drawings: Drawings) -> Section:
    return Section("Controls", _comparison_blocks(results, "control", drawings))


def _samples(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    for sample in results.get("samples", ()):
        texts = [sample["original"], *sample["iterations"]]
        responses = []
        for step, (text, score) in enumerate(zip(texts, sample["scores"], strict=True)):
            label = f"Iteration {step}" if step else "Original"
            if known(score):
                label += f" · score {score:.2f}"
            if step and text == texts[step - 1]:
                label += " · unchanged"
            responses.append(Response(label, text, revises=step > 0))
        responses.append(Response("Chosen response of the data", sample["chosen"]))
        blocks.append(Sample(sample["prompt"], responses))
    if blocks:
        note = "On the page, words an iteration added are shaded and words it removed struck out."
        blocks.insert(0, Paragraph(f"Outputs of the models, as they are. {note}"))
    return Section("Samples", blocks)


def _training(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    stages = results.get("stages")
    if stages:
        cells = [
            [
                row["name"],
                "; ".join(f"{k} {v:.4g}" for k, v in (row.get("final") or {}).items() if known(v))
                or NONE,
                count(row.get("parameters")),
                count(row.get("steps")),
                count(row.get("tokens")),
                duration(row.get("seconds")),
                count(row.get("tokens_per_second")),
            ]
            for row in stages
        ]
        columns = ["Stage", "At the end", "Parameters", "Steps", "Tokens", "Time", "Tokens/s"]
        if any(known(row.get("mfu")) for row in stages):
            columns.append("MFU %")
            for row, line in zip(stages, cells, strict=True):
                line.append(share(row.get("mfu")))
        device = f" on {results['device']}" if results.get("device") else ""
        caption = f"Training stages in order{device}; metrics of the last record of each."
        blocks.append(Table(columns, cells, caption, labels=2))
    series = [c for c in results.get("curves", ()) if any(map(known, c["values"]))]
    if series:
        drawings["curves"] = plots.curves(series)
        caption = "Training curves; where they are noisy, faint with their running mean."
        blocks.append(Figure("curves", "Training curves by stage and metric", caption))
    return Section("Training", blocks)


def _data(results: Results, drawings: Drawings) -> Section:
    rows = (results.get("data") or {}).get("rows") or ()
    cells = [[str(name), f"{v:,}" if isinstance(v, int) else str(v)] for name, v in rows]
    return Section("Data", [Table(["", "Value"], cells)] if cells else [])


def _reproduce(results: Results, drawings: Drawings) -> Section:
    blocks: list[Block] = []
    if results.get("command"):
        blocks.append(Code(results["command"]))
    facts = [("Seed", results.get("seed")), ("Device", results.get("device"))]
    facts += list((results.get("versions") or {}).items())
    cells = [[str(name), str(value)] for name, value in facts if value is not None]
    if cells:
        blocks.append(Table(["", "Value"], cells))
    if results.get("config_text"):
        blocks.append(Code(results["config_text"], title="Operative configuration"))
    return Section("To run it again", blocks)
