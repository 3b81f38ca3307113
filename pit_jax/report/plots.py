"""Draws the figures of a report; matplotlib needs no display and is imported on first use.

Every function returns a `matplotlib.figure.Figure` of the page's width, or as wide as a phone with
its panels below each other if it is to be `narrow`; `render` makes bytes of it.
"""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pit_jax.evaluation import scoring
from pit_jax.report.formatting import known, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, NARROW = 9.0, 3.9  # inches
_WRAPPED = 18  # characters of a line of a narrow figure's labels

INK, MUTED, RULE = "#1f2a37", "#6b7683", "#d9dee4"
BLUE, TEAL, AMBER, RED, PLUM = "#2f5f8f", "#3b8b7d", "#c58a2d", "#b4513f", "#75588c"
CYCLE = (BLUE, AMBER, TEAL, RED, PLUM, MUTED)
LINES = ("-", "--", ":")
TONES = {"up": TEAL, "down": RED, "": MUTED}
_OUTCOMES = (("win", "Win", BLUE), ("tie", "Tie", "#cfd5dc"), ("lose", "Lose", "#d08b7c"))
_REGIONS = (("Worse", "#f7e6e2"), ("Similar", "#f3f4f6"), ("Better", "#e1efea"))
_PAIR_LABELS = {
    "wl": "r(chosen, rejected)",
    "ww": "r(chosen, chosen)",
    "ll": "r(rejected, rejected)",
    "lw": "r(rejected, chosen)",
}
_PAIR_COLOURS = {"wl": TEAL, "ww": BLUE, "ll": AMBER, "lw": RED}


@contextlib.contextmanager
def styled():
    """Sets matplotlib up for the figures of a report."""
    import matplotlib
    from matplotlib import rcsetup

    settings = {
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": rcsetup.cycler(color=CYCLE),
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "svg.hashsalt": "pit_jax",
        "text.parse_math": False,  # names are users’, and $ in them is a dollar
    }
    with matplotlib.rc_context(settings):
        yield


def canvas(
    height: float, rows: int = 1, columns: int = 1, *, narrow: bool = False, **options
) -> tuple[Figure, np.ndarray]:
    """Makes a figure of the page's width, or a narrow one, and its axes [panels].

    Args:
      height: inches; of a narrow figure, those of each panel.
      rows, columns: how many panels; a narrow figure has them below each other.
      narrow: whether the figure is as wide as a phone.
      **options: of `Figure.subplots`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if narrow:
        rows, columns, height = rows * columns, 1, height * rows * columns
        options.pop("width_ratios", None)
    figure = Figure(figsize=(NARROW if narrow else WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def render(figure: Figure, file_format: str) -> bytes:
    """The figure as bytes of `svg` or `png`, the same for the same data.

    A PNG is white; an SVG has no ground of its own, so that it fits a dark page too.
    """
    buffer = io.BytesIO()
    vector = file_format == "svg"
    metadata, ground = ({"Date": None}, "none") if vector else (None, "white")
    with styled():
        figure.savefig(buffer, format=file_format, dpi=160, facecolor=ground, metadata=metadata)
    return buffer.getvalue()


def wrapped(labels: Sequence[str], narrow: bool) -> list[str]:
    """The labels, over several lines where the figure is narrow."""
    return [textwrap.fill(label, _WRAPPED) if narrow else label for label in labels]


def comparisons(rows: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> Figure:
    """Draws win, tie and lose rates, and delta with its interval, a line for each comparison.

    Args:
      rows: label, win, tie, lose, delta, ci_low, ci_high (percent).
      narrow: whether the figure is as wide as a phone.
    """
    with styled():
        height = 1.15 + (0.52 if narrow else 0.36) * len(rows)
        figure, (rates, deltas) = canvas(
            height, columns=2, sharey=True, width_ratios=(1.15, 1), narrow=narrow
        )
        y = np.arange(len(rows))
        left = np.zeros(len(rows))
        for key, label, colour in _OUTCOMES:
            width = np.array([row.get(key) or 0 for row in rows], float)
            rates.barh(y, width, left=left, height=0.62, color=colour, label=label)
            for place, (start, share) in enumerate(zip(left, width, strict=True)):
                if share >= (15 if narrow else 8):
                    ink = "white" if key == "win" else INK
                    middle = start + share / 2
                    rates.text(
                        middle, place, f"{share:.0f}", color=ink, ha="center", va="center", size=8.5
                    )
            left += width
        rates.set_yticks(y, wrapped([row["label"] for row in rows], narrow))
        rates.set_ylim(len(rows) - 0.5, -0.5)
        rates.set(xlim=(0, 100), xlabel="Share of prompts (%)")
        rates.grid(visible=False)
        rates.tick_params(axis="y", length=0)
        rates.legend(
            ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, borderaxespad=0.4
        )

        deltas.axvline(0, color=MUTED, linewidth=0.9)
        for place, row in enumerate(rows):
            low, high = row.get("ci_low"), row.get("ci_high")
            colour = TONES[tone(row)]
            if known(low) and known(high):
                deltas.plot([low, high], [place, place], color=colour, linewidth=2)
            if known(row.get("delta")):
                deltas.plot(row["delta"], place, "o", color=colour, markersize=6)
        deltas.grid(visible=False, axis="y")
        deltas.tick_params(axis="y", length=0)
        deltas.set_xlabel("Δ = win − lose (points)" + ", 95% interval" * (not narrow))
        deltas.margins(x=0.08)
        return figure


def iterations(groups: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> Figure:
    """Mean score, delta against the original and ELO by iteration, a line for each temperature.

    Without mean scores, as of a judge that has none, two panels are left.
    Self-Refine's lines are dashed and start at the same original.
    """
    panels = [
        ("delta_vs_original", "ci_low", "ci_high", "Δ vs original (points)"),
        ("elo", "elo_low", "elo_high", "ELO"),
    ]
    if any("mean_score" in row for group in groups for row in group["rows"]):
        panels.insert(0, ("mean_score", "", "", "Mean score"))
    lines = []
    for index, group in enumerate(groups):
        name, colour = f"T = {group['temperature']:g}", CYCLE[index % len(CYCLE)]
        refined = group.get("self_refine")
        lines.append((f"PIT, {name}" if refined else name, colour, "-", group["rows"]))
        if refined:
            rows = [*group["rows"][:1], *refined]
            lines.append((f"Self-Refine, {name}", colour, "--", rows))
    with styled():
        height = 2.4 if narrow else 3.0 if len(lines) == len(groups) else 3.4
        figure, axes = canvas(height, columns=len(panels), narrow=narrow)
        for axis, (key, low, high, title) in zip(axes, panels, strict=True):
            for name, colour, style, every in lines:
                rows = [row for row in every if key in row]
                x = [row["iteration"] for row in rows]
                y = np.array([row[key] for row in rows], float)
                axis.plot(x, y, "o" + style, color=colour, markersize=4, label=name)
                if low:
                    bounds = np.array([[row[low], row[high]] for row in rows], float)
                    axis.fill_between(x, *bounds.T, color=colour, alpha=0.13, linewidth=0)
            axis.set(xlabel="Iteration (0 = original)", title=title)
            _integer_ticks(axis)
        if len(lines) == len(groups):
            axes[0].legend()
        else:
            legend_below(figure, axes[0], columns=2 if narrow else 4)
        return figure


def reward_distributions(series: Mapping[str, Sequence[float]], *, narrow: bool = False) -> Figure:
    """Draws Figure 2: densities of a gap reward for the four pairs of chosen and rejected."""
    finite = {name: [v for v in series.get(name, ()) if known(v)] for name in _PAIR_LABELS}
    present = {name: values for name, values in finite.items() if values}
    edges, densities = scoring.density_histograms(present)
    with styled():
        figure, (axis,) = canvas(3.4, narrow=narrow)
        for name, density in densities.items():
            colour = _PAIR_COLOURS[name]
            axis.stairs(density, edges, fill=True, color=colour, alpha=0.16)
            axis.stairs(density, edges, color=colour, linewidth=1.6, label=_PAIR_LABELS[name])
            axis.axvline(float(np.mean(present[name])), color=colour, linewidth=1, linestyle=":")
        axis.set(xlabel="Gap reward (dotted: mean)", ylabel="Density")
        axis.set_ylim(bottom=0)
        if narrow:
            legend_below(figure, axis, columns=2)
        else:
            _legend_above(axis, columns=4)
        return figure


def temperatures(figure3: Mapping[str, Any], *, narrow: bool = False) -> Figure:
    """Figures 3 and 5: delta against the temperature of improvement, a line a comparison."""
    x = figure3["temperatures"]
    with styled():
        figure, (axis,) = canvas(3.4, narrow=narrow)
        axis.axhline(0, color=MUTED, linewidth=0.9)
        for index, (name, deltas) in enumerate(figure3["series"].items()):
            colour = CYCLE[index % len(CYCLE)]
            axis.plot(x, np.array(deltas, float), "o-", color=colour, markersize=4.5, label=name)
            low, high = np.array(figure3["intervals"][name], float).T
            axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        axis.set(xlabel="Temperature of improvement", ylabel="Δ = win − lose (points)")
        axis.set_xticks(x)
        _legend_above(axis, columns=1 if narrow else 3 if len(figure3["series"]) < 4 else 2)
        return figure


def has_several_models(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether the rounds of Figure 4 are those of several models."""
    return len({run.get("model") for run in rounds}) > 1


def line_names(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the line that each round of Figure 4 is a part of: its model, if there are several."""
    several = has_several_models(rounds)
    return [str(run.get("model")) if several else run["round"] for run in rounds]


def rewards_by_step(
    rounds: Sequence[Mapping[str, Any]],
    regions: tuple[float, float] | None,
    *,
    narrow: bool = False,
) -> Figure:
    """Figure 4: reward against step for each round of RL, over the regions of `reward_regions`.

    Each round of a single model has its colour; of several models each has one, and their steps
    count from where their second rounds begin.
    """
    several = has_several_models(rounds)
    with styled():
        figure, (axis,) = canvas(3.5, narrow=narrow)
        axis.set(xlabel="Step", ylabel="Gap reward", title="Reward")
        if several:
            axis.set_xlabel("Step of the second round, which begins at 0")
            axis.axvline(0, color=MUTED, linewidth=0.9)
        labels: dict[str, int] = {}
        for name, run in zip(line_names(rounds), rounds, strict=True):
            label = None if name in labels else name
            index = labels.setdefault(name, len(labels))
            start = run.get("start", 0) if several else 0
            steps = [step - start for step in run["steps"]]
            line = (CYCLE[index % len(CYCLE)], LINES[index // len(CYCLE) % len(LINES)])
            _draw_smoothed(axis, steps, run["reward"], *line, label)
        if regions is not None:
            shade_regions(axis, *regions)
        legend_below(figure, axis, columns=1 if narrow else 3)
        return figure


def curves(series: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> Figure:
    """Small multiples: a panel for each metric of a stage."""
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    with styled():
        height = 2.05 if narrow else 0.2 + 2.05 * rows
        figure, axes = canvas(height, rows=rows, columns=columns, narrow=narrow)
        for axis, curve in zip(axes, series, strict=False):
            _draw_smoothed(axis, curve["steps"], curve["values"], BLUE, "-", None)
            axis.set_title(curve["metric"], fontsize=9)
            axis.tick_params(labelsize=8)
        for axis in axes[len(series) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(series) - columns) : len(series)]:
            axis.set_xlabel("Step")
        return figure


def smoothed(values: np.ndarray) -> np.ndarray | None:
    """The running mean of values [N] over a twentieth of them to each side; None for few values.

    The window is cut off at the end; at the start, where curves are steep, it shrinks on both
    sides, so that the mean isn't drawn towards what comes later.
    """
    window = len(values) // 20
    if window < 2:
        return None
    total = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    reach = np.minimum(window, centre)
    low, high = centre - reach, np.minimum(centre + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _draw_smoothed(axis: Axes, steps, values, colour: str, style: str, label: str | None) -> None:
    """The values, and over many noisy ones their running mean."""
    points = [(s, v) for s, v in zip(steps, values, strict=True) if known(v)]
    if not points:
        return
    x, y = np.array(points, float).T
    means = smoothed(y)
    if means is None:
        marker = "o" if len(x) == 1 else None
        axis.plot(x, y, style, color=colour, label=label, marker=marker)
        return
    axis.plot(x, y, color=colour, alpha=0.28, linewidth=0.8)
    axis.plot(x, means, style, color=colour, label=label)


def shade_regions(axis: Axes, low: float, high: float) -> None:
    """Shades Figure 4's regions, which these bounds part, and names them."""
    bottom, top = axis.get_ylim()
    margin = 0.6 * (high - low)
    bottom, top = min(bottom, low - margin), max(top, high + margin)
    axis.set_ylim(bottom, top)
    bounds = (bottom, low, high, top)
    for index, (name, colour) in enumerate(_REGIONS):
        axis.axhspan(bounds[index], bounds[index + 1], color=colour, zorder=0, linewidth=0)
        middle = (bounds[index] + bounds[index + 1]) / 2
        axis.annotate(
            name,
            (1, middle),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            ha="left",
            va="center",
            color=MUTED,
            fontsize=9,
        )
    axis.grid(visible=False)


def _integer_ticks(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend_above(axis: Axes, columns: int) -> None:
    axis.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def legend_below(figure: Figure, axis: Axes, columns: int = 3) -> None:
    """Puts the legend of an axis below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        length = 3 if columns > 2 else 2
        place = "outside lower left"
        figure.legend(handles, labels, loc=place, ncols=columns, handlelength=length)


def lengths(fields: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws a histogram of token counts for each field, with its window.

    Args:
      fields: name -> edges, counts, window; the last bin holds all that is longer.
    """
    with styled():
        figure, axes = canvas(2.6, columns=len(fields))
        for axis, (name, field) in zip(axes, fields.items(), strict=True):
            edges = np.array(field["edges"])
            axis.bar(edges[:-1], field["counts"], np.diff(edges), align="edge", color=BLUE)
            axis.axvline(field["window"], color=RED, linewidth=1.2, label="window")
            axis.set(title=name, xlabel="Tokens")
            axis.grid(visible=False, axis="x")
        axes[0].set_ylabel("Examples")
        axes[0].legend()
        return figure
