"""Candidates at one load: a panel per metric, a point per candidate with its interval, the SLO as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simbatch.sim.metrics.metric import HIGHER, LOWER, Metric
from simbatch.sim.report import style
from simbatch.sim.report.figures import Open, num_columns
from simbatch.sim.report.loads_picture import MARKERS, limit_of, short_label
from simbatch.sim.results.experiment import SideBySide

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAME, ROW = 0.72, 0.24  # inches: of a panel around its candidates, of each candidate


def draw(
    open_figure: Open, side: SideBySide, limits: Mapping[str, float], metrics: Sequence[Metric], width: float
) -> Figure:
    """A panel for each of `metrics`, in a figure that is opened with its width and height in inches; `limits` in ms."""
    labels = side.labels
    columns = num_columns(width, len(metrics))
    rows = -(-len(metrics) // columns)
    with open_figure(width, rows * (FRAME + ROW * len(labels)) + 0.2) as drawing:
        for i, metric in enumerate(metrics):
            axes = drawing.add_subplot(rows, columns, i + 1)
            _panel(axes, side, metric, limit_of(metric, limits))
            names = [short_label(label, labels) for label in labels] if i % columns == 0 else [""] * len(labels)
            axes.set_yticks(range(len(labels)), names)
        if len(side.seeds) > 1:
            foot = f"bars: {100 * side.confidence:g} % intervals of the mean of {len(side.seeds)} runs"
            drawing.supxlabel(foot, x=0.01, ha="left", fontsize=7)
    return drawing


def _panel(axes: Axes, side: SideBySide, metric: Metric, limit: float | None) -> None:
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
