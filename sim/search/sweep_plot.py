"""sweep.png: a heat map of two varied numbers, otherwise curves over one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simbatch.sim.metrics.registry import GOODPUT, HIGHER, THROUGHPUT, Metric, shown
from simbatch.sim.report import style
from simbatch.sim.text import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Row = Mapping[str, Any]  # a point of the sweep
MAX_CURVES = len(style.PALETTE)
MAX_WRITTEN = 120  # figures in a heat map
POLICY = "policy.name"


@dataclass(frozen=True)
class Drawing:
    """The axes of a picture: `y` makes it a heat map, `others` tell its curves apart."""

    points: Sequence[Row]
    x: str
    y: str | None
    others: list[str]
    limits: Mapping[str, float] = field(default_factory=dict)  # the SLO in ms, by latency


def choose(points: Sequence[Row], keys: Sequence[str], limits: Mapping[str, float] | None = None) -> Drawing | None:
    """What to draw of these points; None where nothing varies, or more than eight curves would be needed.

    `limits`: the SLO in ms, by latency, whose border a heat map shows.
    """
    values = {key: {json.dumps(point[key]) for point in points} for key in keys}
    varied = [key for key in keys if len(values[key]) > 1]
    numeric = [key for key in varied if all(_is_number(point[key]) for point in points)]
    if not varied:
        return None
    if len(varied) == 2 and len(numeric) == 2:
        return Drawing(points, varied[1], varied[0], [], limits or {})
    x = max(numeric or varied, key=lambda key: len(values[key]))
    others = [key for key in varied if key != x]
    num_curves = len({label_of(point, others) for point in points})
    return Drawing(points, x, None, others) if num_curves <= MAX_CURVES else None


def write(path: Path, name: str, drawing: Drawing) -> None:
    """Throughput, goodput (tokens without an SLO), P99 TTFT and P99 TPOT."""
    has_slo = any(point.get(GOODPUT) is not None for point in drawing.points)
    metrics = shown("sweep.png", lambda metric: metric.key != (THROUGHPUT if has_slo else GOODPUT))
    with style.figure(path, 11, 7.6) as figure:
        style.headline(figure, f"{name} by {' and '.join(filter(None, [drawing.y, drawing.x, *drawing.others]))}")
        panels: list[Axes] = [figure.add_subplot(2, 2, i + 1) for i in range(len(metrics))]
        for axes, metric in zip(panels, metrics, strict=True):
            axes.set_title(metric.title)
            axes.set_xlabel(drawing.x)
            if drawing.y is None:
                _curves(axes, drawing, metric)
            else:
                _heat_map(figure, axes, drawing, drawing.y, metric)
        if drawing.others:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        if any(point["overloaded_runs"] for point in drawing.points):
            note = "x: overloaded, its latencies say how long the run was"
            figure.text(0.99, 0.985, note, ha="right", va="top", fontsize=9, color=style.LIMIT)
        if drawing.y is not None and drawing.limits:
            note = "dashed: inside it P99 keeps the SLO; of a latency its own limit, elsewhere all of them"
            figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=style.LIMIT)


def _curves(axes: Axes, drawing: Drawing, metric: Metric) -> None:
    xs = _positions(drawing.points, drawing.x)
    groups: dict[str, list[Row]] = {}
    for point in drawing.points:
        groups.setdefault(label_of(point, drawing.others), []).append(point)
    is_number = all(_is_number(point[drawing.x]) for point in drawing.points)
    colours = style.colours(list(groups))
    drawn: list[float] = []
    for label, group in groups.items():
        there = [point for point in group if point.get(metric.key) is not None]
        there.sort(key=lambda point: xs[json.dumps(point[drawing.x])])
        x = np.array([xs[json.dumps(point[drawing.x])] for point in there])
        mean, low, high = (
            np.array([_or(point.get(f"{metric.key}{end}"), point[metric.key]) for point in there], dtype=float)
            for end in ("", ".low", ".high")
        )
        line = "-" if is_number else ""
        colour = colours[label]
        axes.plot(x, mean, marker="o", markersize=4, linestyle=line, color=colour, label=label)
        if is_number:
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axes.errorbar(x, mean, np.clip([mean - low, high - mean], 0, None), fmt="none", color=colour, capsize=3)
        crossed = np.array([bool(point["overloaded_runs"]) for point in there], dtype=bool)
        axes.plot(x[crossed], mean[crossed], "x", markersize=9, color=style.LIMIT)
        drawn += mean.tolist()
    _x_axis(axes, xs, is_number)
    _y_axis(axes, drawn, metric)


def _x_axis(axes: Axes, xs: dict[str, float], is_number: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    places = list(xs.values())
    if not is_number:
        axes.set_xticks(places, [_short(json.loads(text)) for text in xs])
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
        return
    if min(places) > 0 and max(places) / min(places) > style.LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(places if len(places) <= 10 else places[:: -(-len(places) // 10)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _y_axis(axes: Axes, shown: Sequence[float], metric: Metric) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if metric.better != HIGHER and shown and min(shown) > 0 and max(shown) / min(shown) > style.LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(min(shown) / 1.5, max(shown) * 1.5)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    if metric.better != HIGHER:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration_text(value)))


def _heat_map(figure: Figure, axes: Axes, drawing: Drawing, y: str, metric: Metric) -> None:
    from matplotlib.colors import LogNorm, Normalize

    columns, rows = (sorted({point[key] for point in drawing.points}) for key in (drawing.x, y))
    cells = np.full((len(rows), len(columns)), np.nan)
    for point in drawing.points:
        if point.get(metric.key) is not None:
            cells[rows.index(point[y]), columns.index(point[drawing.x])] = point[metric.key]
    there = cells[np.isfinite(cells)]
    is_log = metric.better != HIGHER and len(there) > 0 and 0 < there.min() < there.max() / style.LOG_FROM
    low, high = (float(there.min()), float(there.max())) if len(there) else (0.0, 1.0)
    norm = LogNorm(low, high) if is_log else Normalize(low, high)
    image = axes.imshow(
        cells, origin="lower", aspect="auto", norm=norm, cmap="viridis" if metric.better == HIGHER else "viridis_r"
    )
    axes.grid(visible=False)
    axes.set_ylabel(y)
    for axis, values in ((axes.xaxis, columns), (axes.yaxis, rows)):
        step = -(-len(values) // 12)
        axis.set_ticks(range(0, len(values), step), [_short(value) for value in values[::step]])
    _border(axes, drawing, y, metric)
    bar = figure.colorbar(image, ax=axes, format=lambda value, _: _text(metric, value))
    bar.ax.minorticks_off()
    for point in drawing.points:
        value, at = point.get(metric.key), (columns.index(point[drawing.x]), rows.index(point[y]))
        mark = " x" if point["overloaded_runs"] else ""
        if value is not None and (mark or len(drawing.points) <= MAX_WRITTEN):
            text = _text(metric, value) if len(drawing.points) <= MAX_WRITTEN else ""
            share = float(norm(value))
            is_bright = (share if metric.better == HIGHER else 1 - share) > 0.55
            axes.text(*at, text + mark, ha="center", va="center", fontsize=7, color="#222222" if is_bright else "white")


def _border(axes: Axes, drawing: Drawing, y: str, metric: Metric) -> None:
    """Round the cells that keep the SLO: an edge between every two cells of which one keeps it."""
    own = metric.key.removeprefix("p99_").removesuffix("_ms")
    limits = {own: drawing.limits[own]} if own in drawing.limits else {} if metric.kind == "ms" else drawing.limits
    if not limits:
        return
    columns, rows = (sorted({point[key] for point in drawing.points}) for key in (drawing.x, y))
    kept = np.zeros((len(rows) + 2, len(columns) + 2), dtype=bool)
    for point in drawing.points:
        tails = [(point.get(f"p99_{name}_ms"), limit) for name, limit in limits.items()]
        is_kept = not point["overloaded_runs"] and all(tail is not None and tail <= limit for tail, limit in tails)
        kept[rows.index(point[y]) + 1, columns.index(point[drawing.x]) + 1] = is_kept
    look: dict[str, Any] = {"color": style.LIMIT, "linewidth": 2.2, "linestyle": (0, (3, 1.5)), "clip_on": False}
    for i, j in zip(*np.nonzero(kept[:, 1:] != kept[:, :-1]), strict=True):
        axes.plot([j - 0.5, j - 0.5], [i - 1.5, i - 0.5], **look)
    for i, j in zip(*np.nonzero(kept[1:] != kept[:-1]), strict=True):
        axes.plot([j - 1.5, j - 0.5], [i - 0.5, i - 0.5], **look)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5))


def _text(metric: Metric, value: float | None) -> str:
    return style.duration_text(value) if metric.kind == "ms" else number(value, metric.decimals)


def _positions(points: Sequence[Row], key: str) -> dict[str, float]:
    """Where each value stands: numbers at themselves, names one after the other."""
    texts = list(dict.fromkeys(json.dumps(point[key]) for point in points))
    if all(_is_number(point[key]) for point in points):
        return {text: float(json.loads(text)) for text in sorted(texts, key=float)}
    return {text: float(i) for i, text in enumerate(texts)}


def label_of(point: Row, keys: Sequence[str]) -> str:
    """These settings of a point in a few words: `max_num_seqs 64, adaptive`."""
    names = {key: "" if key in ("policy", POLICY) else f"{key.rpartition('.')[2]} " for key in keys}
    return ", ".join(names[key] + _short(point[key]) for key in keys)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_short(item) for item in value.values())
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"...{text[-22:]}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
