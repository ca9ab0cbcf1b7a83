"""loads.png and loads.pdf: metrics against load, a line per candidate with its interval, as a paper prints it.

Readable in grey: candidates differ in line style and marker too, and are named where their lines end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.metrics.metric import HIGHER, LOWER, Metric
from simbatch.sim.report import style
from simbatch.sim.results.experiment import OverLoads, Point, SideBySide

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WIDTH, HEIGHT = 7.16, 2.3  # inches: both columns of a paper; of a row of panels
COLOURS = style.PALETTE[:7]  # yellow is too light for a line
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "<", ">", "*", "p", "h")
LABEL_POINTS = 7.0
RC = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}


def write(path: Path, compared: OverLoads, metrics: Sequence[Metric], kind: str) -> None:
    """A panel for each of `metrics`; `kind` is png or pdf."""
    labels = compared.labels
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // 2)
    with style.figure(path, WIDTH, rows * HEIGHT + 0.25, kind=kind, rc=RC, dpi=200) as drawing:
        looks = {label: _look(i) for i, label in enumerate(labels)}
        for i, metric in enumerate(metrics):
            axes = drawing.add_subplot(rows, columns, i + 1)
            _panel(axes, compared, metric, looks)
            if i + columns >= len(metrics):
                axes.set_xlabel(compared.axis)
        foot = _foot(compared)
        if foot:
            drawing.supxlabel(foot, x=0.01, ha="left", fontsize=7)


def _foot(compared: OverLoads) -> str:
    """What the reader cannot see by himself."""
    first = compared.at[0]
    notes = []
    if len(first.seeds) > 1:
        notes.append(f"bands: {100 * first.confidence:g} % intervals of the mean of {len(first.seeds)} runs")
    if any(_is_overloaded(at, label) for at in compared.at for label in compared.labels):
        notes.append("hollow: overloaded, its latencies say how long the run was")
    return "; ".join(notes)


def _panel(axes: Axes, compared: OverLoads, metric: Metric, looks: Mapping[str, dict[str, Any]]) -> None:
    x = np.array(compared.rates, dtype=float)
    scale = 100.0 if metric.is_share else 1.0
    ends: dict[str, tuple[float, float]] = {}
    shown: list[float] = []
    for label, points in compared.points(metric).items():
        there = np.array([point.mean is not None for point in points], dtype=bool)
        if not there.any():
            continue
        mean, low, high = (scale * values for values in _curves(points))
        look = looks[label]
        axes.plot(x[there], mean[there], label=label, markersize=0, linewidth=1.2, **_line(look))
        axes.fill_between(x[there], low[there], high[there], color=look["color"], alpha=0.15, linewidth=0)
        overloaded = np.array([_is_overloaded(at, label) for at in compared.at], dtype=bool)
        for which, fill in ((there & ~overloaded, look["color"]), (there & overloaded, "white")):
            axes.plot(x[which], mean[which], look["marker"], color=look["color"], markerfacecolor=fill, markersize=3.5)
        shown += [*low[there], *high[there]]
        ends[label] = (float(x[there][-1]), float(mean[there][-1]))
    axes.set_title(metric.title)
    _x_axis(axes, x)
    _y_axis(axes, metric, shown)
    if metric.key.startswith("p99_"):
        _draw_limit(axes, compared.limits.get(metric.key.removeprefix("p99_").removesuffix("_ms")))
    _name_lines(axes, ends, looks)


def _draw_limit(axes: Axes, limit: float | None) -> None:
    """The SLO, where the panel reaches it."""
    low, high = axes.get_ylim()
    if limit is not None and low <= limit <= 0.97 * high:
        axes.axhline(limit, color="#777777", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.5)
        at = axes.get_yaxis_transform()
        axes.text(0.005, limit, "SLO", transform=at, fontsize=6.5, ha="left", va="bottom", color="#777777")


def _curves(points: Sequence[Point]) -> tuple[NDArray[np.float64], ...]:
    def column(name: str) -> NDArray[np.float64]:
        values = [(getattr(point, name), point.mean) for point in points]
        return np.array([mean if value is None else value for value, mean in values], dtype=float)

    return column("mean"), column("low"), column("high")


def _x_axis(axes: Axes, x: NDArray[np.float64]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    if x[0] > 0 and x[-1] / x[0] > style.LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(x[0] / 1.1, x[-1] * 1.1)
    else:
        margin = 0.04 * (x[-1] - x[0]) or 0.5
        axes.set_xlim(x[0] - margin, x[-1] + margin)
    if len(x) <= 8:
        axes.set_xticks(x)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _y_axis(axes: Axes, metric: Metric, shown: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    is_time = metric.kind == "ms"
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    if is_time and low > 0 and high / low > style.LOG_FROM:
        axes.set_yscale("log")
        subs = (1.0, 3.0) if high / low < 1000 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.25, high * 1.25)
    elif metric.kind == "index":
        axes.set_ylim(max(0.0, min(low, 0.98) - 0.02), 1.005)
    elif metric.is_share:
        bottom = max(0.0, low - 5) if low > 50 else 0.0
        axes.set_ylim(bottom, 102)  # room for a line at 100 %, and no tick above it
        axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= 100])
    else:
        axes.set_ylim(0, high * 1.06 or 1)
    if is_time:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration_text(value)))
    elif metric.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    better = {HIGHER: "↑ better", LOWER: "↓ better"}.get(metric.better or "", "")
    axes.set_title(better, loc="right", fontsize=6.5, color="#777777")


def _name_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, dict[str, Any]]) -> None:
    """Each name beside the end of its line, moved apart where they would touch."""
    to_share = axes.transScale + axes.transLimits
    places = {label: to_share.transform(end) for label, end in ends.items()}
    labels = sorted(places, key=lambda label: float(places[label][1]))
    gap = 1.25 * LABEL_POINTS / (72 * HEIGHT * 0.62)
    heights = spread([float(places[label][1]) for label in labels], gap)
    for label, height in zip(labels, heights, strict=True):
        x, y = (float(part) for part in places[label])
        line: dict[str, Any] = {"linewidth": 0.5, "color": "#AAAAAA", "clip_on": False, "zorder": 0.4}
        text: dict[str, Any] = {"fontsize": LABEL_POINTS, "color": looks[label]["color"], "va": "center"}
        axes.plot([x, 1.0, 1.025], [y, y, height], transform=axes.transAxes, **line)
        axes.text(1.035, height, _short(label, labels), transform=axes.transAxes, **text)


def _short(label: str, labels: Sequence[str]) -> str:
    """A class of the user's own by its name alone, where that is enough to know it."""
    name = label.rpartition(":")[2]
    return label if sum(other.rpartition(":")[2] == name for other in labels) > 1 else name


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as need be to stand `gap` apart, within 0 to 1 while there is room."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else max(height, 0.0))
    ceiling = max(0.98, (len(placed) - 1) * gap)
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[i % len(MARKERS)],
    }


def _line(look: Mapping[str, Any]) -> dict[str, Any]:
    return {key: look[key] for key in ("color", "linestyle")}


def _is_overloaded(at: SideBySide, label: str) -> bool:
    """In most of the runs at this load."""
    return bool(2 * at.runs[label].num_overloaded > len(at.seeds))
