"""differences.png: a forest plot, how far each candidate is from the first, with its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

from simbatch.sim.results.plots import style
from simbatch.sim.results.registry import HIGHER

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from simbatch.sim.results.differences import Difference
    from simbatch.sim.results.replications import ReplicatedComparison

WIDEST = 20.0  # ratios beyond 20 and 1 / 20 end in an arrow
TICKS = (1, 2, 0.5, 5, 0.2, 0.1, 10, 20, 0.05, 1.5, 0.7, 1.2, 0.8, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 3, 0.3)  # by rank
TICK_DISTANCE = 0.08  # of the axis
SPREAD = 0.6  # of a row's height, for the candidates in it


def write(path: Path, replicated: ReplicatedComparison) -> None:
    """A row per metric of which one end is better, a marker per candidate; ratios of the means on a log scale."""
    rows = [row for row in replicated.differences if row[0].metric.better and any(map(_is_drawn, row))]
    others = replicated.labels[1:]
    colours = style.colours(replicated.labels)
    facts = next(iter(replicated.first.results.values())).facts
    with style.figure(path, 9, 1.5 + len(rows) * (0.16 + 0.12 * len(others))) as drawing:
        style.headline(drawing, f"{facts.scenario_name}: difference from {replicated.labels[0]}")
        axes = drawing.add_subplot()
        held = "held together (Bonferroni)" if replicated.bonferroni else "each by itself"
        axes.set_title(
            f"{100 * replicated.confidence:g} % intervals {held}, {len(replicated.seeds)} runs, common random numbers\n"
            "hollow: no difference shown; arrows: the better way",
            fontsize=9,
        )
        if not rows:
            axes.text(0.5, 0.5, "no interval to draw", transform=axes.transAxes, ha="center", color="#888888")
            axes.set_axis_off()
            return
        for i, row in enumerate(rows):
            for j, difference in enumerate(row):
                place = i + SPREAD * ((j + 0.5) / len(row) - 0.5)
                _draw(axes, difference, place, colours[difference.other])
        _decorate(axes, rows)
        if len(others) > 1:
            handles = _handles(colours, others)
            drawing.legend(handles=handles, loc="outside lower left", ncols=min(len(others), 4), borderpad=0)
        else:
            axes.set_xlabel(f"{others[0]} against {replicated.labels[0]}")


def _is_drawn(difference: Difference) -> bool:
    ratio = difference.ratio
    return ratio is not None and ratio.estimate > 0 and ratio.low < ratio.high


def _draw(axes: Axes, difference: Difference, place: float, colour: str) -> None:
    ratio = difference.ratio
    if ratio is None or not _is_drawn(difference):
        return
    low, high = max(ratio.low, 1 / WIDEST), min(ratio.high, WIDEST)
    axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    for bound, edge, marker in ((ratio.low, low, "<"), (ratio.high, high, ">")):
        if bound != edge:
            axes.plot([edge], [place], marker=marker, color=colour, markersize=6)
    is_shown = difference.verdict in ("better", "worse")
    middle = min(max(ratio.estimate, low), high)
    axes.plot([middle], [place], "o", color=colour, markerfacecolor=colour if is_shown else "white", markersize=6)


def _decorate(axes: Axes, rows: Sequence[Sequence[Difference]]) -> None:
    """A log axis in percent, the line of no difference, names, and which way is better."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.axvline(1.0, color=style.INK, linewidth=0.9, zorder=0.5)
    bounds = [bound for row in rows for d in row if d.ratio and _is_drawn(d) for bound in (d.ratio.low, d.ratio.high)]
    low, high = max(min(*bounds, 0.97), 1 / WIDEST), min(max(*bounds, 1.03), WIDEST)
    axes.set_xlim(low / 1.06, high * 1.06)
    ticks: list[float] = []
    for tick in TICKS:
        distance = TICK_DISTANCE * log(high / low)
        if low <= tick <= high and all(abs(log(tick / other)) > distance for other in ticks):
            ticks.append(tick)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{100 * (tick - 1):+.0f} %" if tick != 1 else "0" for tick in ticks])
    names = [f"{row[0].metric.label}  {'→' if row[0].metric.better == HIGHER else '←'}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for i in range(1, len(rows), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", zorder=0)


def _handles(colours: Mapping[str, str], others: Sequence[str]) -> list[Artist]:
    """What the legend shows for each candidate."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colours[label], marker="o", linewidth=1.6, label=label) for label in others]
