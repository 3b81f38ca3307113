"""Draws the figures of a report of several seeds: each seed faint, their mean plain."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pit_jax.report import plots
from pit_jax.report.formatting import known, tone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A line of a panel: name, x [N], means [N] and the values of each seed [S][N], None for a seed that
# has none.
Line = tuple[str, Sequence[float], Sequence[float], Sequence[Sequence[float | None] | None]]

# Of so many points each is marked.
_FEW = 12


@dataclasses.dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]


def comparisons(
    labels: Sequence[str], deltas: Sequence[Mapping[str, Any]], *, narrow: bool = False
) -> Figure:
    """Draws Δ of each seed, and of their mean with its intervals, a row for each comparison.

    Args:
      labels: of the rows.
      deltas: their `evaluation.seeds.Summary` as dicts.
      narrow: whether the figure is as wide as a phone.
    """
    with plots.styled():
        height = 0.9 + (0.52 if narrow else 0.36) * len(labels)
        figure, (axis,) = plots.canvas(height, narrow=narrow)
        axis.axvline(0, color=plots.MUTED, linewidth=0.9)
        for place, delta in enumerate(deltas):
            both, seeds = delta["both"], delta["seeds"]
            low, high = both or (None, None)
            colour = plots.TONES[tone({"ci_low": low, "ci_high": high})]
            if both:
                axis.plot(both, [place] * 2, color=colour, linewidth=1)
            if seeds:
                axis.plot(seeds, [place] * 2, color=colour, linewidth=3.2, solid_capstyle="butt")
            found = [value for value in delta["values"] if known(value)]
            axis.plot(found, [place] * len(found), "o", color=plots.INK, alpha=0.45, markersize=5)
            axis.plot(
                delta["mean"], place, "D", color=colour, markersize=7, markeredgecolor="white"
            )
        axis.set_yticks(range(len(labels)), plots.wrapped(labels, narrow))
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("Δ = win − lose (points)")
        axis.margins(x=0.04)
        return figure


def lines(
    panels: Sequence[Panel], regions: tuple[float, float] | None = None, *, narrow: bool = False
) -> Figure:
    """Draws panels side by side, whose lines have one colour for each name.

    Args:
      panels: one or more, with lines of the same names.
      regions: bounds of Figure 4's Similar region, to shade in a single panel.
      narrow: whether the figure is as wide as a phone.
    """
    with plots.styled():
        most = max(len(panel.lines) for panel in panels)
        height = 3.0 + 0.2 * -(-most // 3)
        figure, axes = plots.canvas(height, columns=len(panels), narrow=narrow)
        for axis, panel in zip(axes, panels, strict=True):
            for index, (name, x, means, seeds) in enumerate(panel.lines):
                more, place = divmod(index, len(plots.CYCLE))
                colour, style = plots.CYCLE[place], plots.LINES[more % len(plots.LINES)]
                for values in seeds:
                    if values is not None:
                        y = np.array(values, float)
                        axis.plot(
                            x, y, color=colour, alpha=0.4 if most <= 3 else 0.22, linewidth=0.8
                        )
                marker = "o" if len(x) <= _FEW else None
                axis.plot(x, means, style, marker=marker, color=colour, markersize=4, label=name)
            if all(len(x) <= _FEW for _, x, *_ in panel.lines):
                axis.set_xticks(sorted({place for _, x, *_ in panel.lines for place in x}))
            axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if regions is not None:
            plots.shade_regions(axes[0], *regions)
        plots.legend_below(figure, axes[0], columns=1 if narrow else 3)
        return figure
