"""loads.png and loads.pdf: metrics against load, a line per candidate with its interval, as a paper prints it.

Readable in grey: candidates differ in line style and marker too, and are named where their lines end. Earlier lines are
wider, so that one that lies under another shows on both sides of it; candidates that never differ are one line.

Candidates at one load are points: a panel per metric, a point per candidate with its interval, the SLO as a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.metrics.registry import HIGHER, LOWER, Metric
from simbatch.sim.report import style
from simbatch.sim.report.figures import Open, num_columns
from simbatch.sim.results import OverLoads, Point, SideBySide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


HEIGHT = 2.3  # inches of a row of panels
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1.5)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "X", "P", "<", ">", "*", "p", "h")
LABEL_POINTS = 7.0


def draw(open_figure: Open, compared: OverLoads, metrics: Sequence[Metric], width: float) -> Figure:
    """A panel for each of `metrics`, in a figure that is opened with its width and height in inches."""
    labels = [label for label in compared.labels if label not in compared.same]
    columns = num_columns(width, len(metrics))
    rows = -(-len(metrics) // columns)
    with open_figure(width, rows * HEIGHT + 0.25) as drawing:
        looks = {label: _look(i, len(labels)) for i, label in enumerate(labels)}
        for i, metric in enumerate(metrics):
            axes = drawing.add_subplot(rows, columns, i + 1)
            _panel(axes, compared, metric, looks)
            if i + columns >= len(metrics):
                axes.set_xlabel(compared.axis)
        foot = _foot(compared)
        if foot:
            characters = int(width * 20)
            drawing.supxlabel("\n".join(wrap(foot, characters)), x=0.01, ha="left", fontsize=7)
    return drawing


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
    x = compared.times * np.array(compared.rates, dtype=float)
    scale = 100.0 if metric.is_share else 1.0
    ends: dict[str, tuple[float, float]] = {}
    shown: list[float] = []
    means: list[float] = []
    by_label = compared.points(metric)
    for label, look in looks.items():
        points = by_label[label]
        there = np.array([point.mean is not None for point in points], dtype=bool)
        if not there.any():
            continue
        mean, low, high = (scale * values for values in _curves(points))
        axes.plot(x[there], mean[there], label=label, markersize=0, **_line(look))
        axes.fill_between(x[there], low[there], high[there], color=look["color"], alpha=0.12, linewidth=0)
        overloaded = np.array([_is_overloaded(at, label) for at in compared.at], dtype=bool)
        for which, fill in ((there & ~overloaded, look["color"]), (there & overloaded, "white")):
            size = 2.4 + look["linewidth"]
            axes.plot(x[which], mean[which], look["marker"], color=look["color"], markerfacecolor=fill, markersize=size)
        shown += [*low[there], *high[there]]
        means += [*mean[there]]
        ends[label] = (float(x[there][-1]), float(mean[there][-1]))
    axes.set_title(metric.title)
    _x_axis(axes, x)
    limit = limit_of(metric, compared.limits)
    _y_axis(axes, metric, [*shown, *([limit] if limit else [])], [*means, *([limit] if limit else [])])
    if limit is not None:
        axes.axhline(limit, color=style.LIMIT, linewidth=1.1, linestyle=(0, (3, 2)), zorder=1.5)
        at, text = axes.get_yaxis_transform(), f"SLO {style.duration_text(limit)}"
        axes.text(0.01, limit, text, transform=at, fontsize=6.5, ha="left", va="bottom", color=style.LIMIT)
    _name_lines(axes, ends, looks, compared.same)


def limit_of(metric: Metric, limits: Mapping[str, float]) -> float | None:
    """The SLO of a tail's metric, `limits` by latency in ms; None of any other."""
    return limits.get(metric.key.removeprefix("p99_").removesuffix("_ms")) if metric.key.startswith("p99_") else None


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


def _y_axis(axes: Axes, metric: Metric, shown: Sequence[float], means: Sequence[float]) -> None:
    """For `shown`, the ends of the intervals; the `means` decide whether it is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    is_time = metric.kind == "ms"
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    lowest, highest = min(means, default=0.0), max(means, default=1.0)
    if is_time and lowest > 0 and highest / lowest > style.LOG_FROM:
        axes.set_yscale("log")
        subs = (1.0, 3.0) if highest / lowest < 1000 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(max(low, lowest / 2) / 1.25, high * 1.25)  # an interval may go down to 0
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


def _name_lines(
    axes: Axes, ends: Mapping[str, tuple[float, float]], looks: Mapping[str, dict[str, Any]], same: Mapping[str, str]
) -> None:
    """Each name beside the end of its line, with those that are the same, moved apart where they would touch."""
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
        named = [label, *(other for other, first in same.items() if first == label)]
        axes.text(
            1.035, height, " = ".join(short_label(each, named) for each in named), transform=axes.transAxes, **text
        )


def short_label(label: str, labels: Sequence[str]) -> str:
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


def _look(i: int, num: int) -> dict[str, Any]:
    """Of the i-th of so many lines."""
    return {
        "color": style.PALETTE[i % len(style.PALETTE)],
        "linestyle": LINES[i % len(LINES)] if i else "-",
        "linewidth": style.line_width(i, num),
        "marker": MARKERS[i % len(MARKERS)],
    }


def _line(look: Mapping[str, Any]) -> dict[str, Any]:
    return {key: look[key] for key in ("color", "linestyle", "linewidth")}


def _is_overloaded(at: SideBySide, label: str) -> bool:
    """In most of the runs at this load."""
    return bool(2 * at.runs[label].num_overloaded > len(at.seeds))


FRAME, ROW = 0.72, 0.24  # inches: of a panel around its candidates, of each candidate


def draw_points(
    open_figure: Open, side: SideBySide, limits: Mapping[str, float], metrics: Sequence[Metric], width: float
) -> Figure:
    """A panel for each of `metrics`, in a figure that is opened with its width and height in inches; `limits` in ms."""
    labels = side.labels
    columns = num_columns(width, len(metrics))
    rows = -(-len(metrics) // columns)
    with open_figure(width, rows * (FRAME + ROW * len(labels)) + 0.2) as drawing:
        for i, metric in enumerate(metrics):
            axes = drawing.add_subplot(rows, columns, i + 1)
            _points_panel(axes, side, metric, limit_of(metric, limits))
            names = [short_label(label, labels) for label in labels] if i % columns == 0 else [""] * len(labels)
            axes.set_yticks(range(len(labels)), names)
        if len(side.seeds) > 1:
            foot = f"bars: {100 * side.confidence:g} % intervals of the mean of {len(side.seeds)} runs"
            drawing.supxlabel(foot, x=0.01, ha="left", fontsize=7)
    return drawing


def _points_panel(axes: Axes, side: SideBySide, metric: Metric, limit: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scale = 100.0 if metric.is_share else 1.0
    colours = style.colours(side.labels)
    shown: list[float] = []
    for i, label in enumerate(side.labels):
        point = side.point(metric, label)
        if point.mean is None:
            continue
        low, high = (scale * (point.mean if bound is None else bound) for bound in (point.low, point.high))
        shown += [low, high]
        axes.plot([low, high], [i, i], color=colours[label], linewidth=1.6, solid_capstyle="butt")
        axes.plot([scale * point.mean], [i], MARKERS[i % len(MARKERS)], color=colours[label], markersize=5)
    if limit is not None:
        shown.append(limit)
        axes.axvline(limit, color=style.LIMIT, linestyle=(0, (3, 2)), linewidth=1.1)
        place = axes.get_xaxis_transform()
        text = f" SLO {style.duration_text(limit)}"
        axes.text(limit, 0.98, text, transform=place, fontsize=6.5, va="top", color=style.LIMIT)
    better = {HIGHER: "→ better", LOWER: "← better"}.get(metric.better or "", "")
    axes.set_title(metric.title)
    axes.set_title(better, loc="right", fontsize=6.5, color="#777777")
    axes.set_xlim(0, 1.06 * max([*shown, 1e-9]))
    axes.set_ylim(len(side.labels) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if metric.kind == "ms":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration_text(value)))
    elif metric.is_share:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
