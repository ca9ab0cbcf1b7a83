"""A trace as a picture: arrivals over time, lengths of prompts and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simbatch.sim.clock import to_s
from simbatch.sim.workload.traces.tools.statistics import Lengths, TraceStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_WINDOWS = 400
_NICE_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
_BLUE, _GREEN = "#3b6ea5", "#5a9367"


def draw(statistics: TraceStatistics, title: str, path: Path) -> None:
    """Write a PNG; it appears when it is complete."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic([["arrivals", "arrivals"], ["prompts", "outputs"]])
    figure.suptitle(title)
    _arrivals(axes["arrivals"], statistics)
    _lengths(axes["prompts"], statistics.prompts, "prompt tokens", _BLUE)
    _lengths(axes["outputs"], statistics.outputs, "output tokens", _GREEN)
    temporary = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(temporary, dpi=120, format="png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _arrivals(axes: Axes, statistics: TraceStatistics) -> None:
    duration_s = to_s(statistics.last_ps - statistics.first_ps)
    window_s = next((w for w in _NICE_S if duration_s / w <= _MAX_WINDOWS), _NICE_S[-1])
    rates = statistics.rates(window_s)
    scale, unit = (86_400, "days") if duration_s > 3 * 86_400 else (3600, "h") if duration_s > 3 * 3600 else (1, "s")
    edges = (np.arange(len(rates) + 1) * window_s + to_s(statistics.first_ps)) / scale
    axes.stairs(rates, edges, fill=True, color=_BLUE, alpha=0.35)
    axes.stairs(rates, edges, color=_BLUE, linewidth=0.8)
    if duration_s:
        mean = (statistics.num_requests - 1) / duration_s
        axes.axhline(mean, color="black", linestyle="--", linewidth=1, label=f"mean {mean:.3g}/s")
        _legend(axes)
    axes.set(
        xlabel=f"time ({unit})", ylabel=f"requests/s, {window_s} s windows", xlim=(edges[0], edges[-1]), ylim=(0, None)
    )


def _lengths(axes: Axes, lengths: Lengths, label: str, color: str) -> None:
    values = np.array(sorted(lengths.counts))
    weights = np.array([lengths.counts[int(value)] for value in values])
    low, high = int(values[0]), int(values[-1])
    if high > 50 * low:
        edges: Any = np.unique(np.round(np.geomspace(low, high + 1, 50)) - 0.5)
        axes.set_xscale("log")
    else:
        step = max(1, -(-(high - low + 1) // 50))
        edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(values, bins=list(edges), weights=weights, color=color, alpha=0.6, edgecolor=color, linewidth=0.5)
    facts = lengths.summary()
    for name, style in (("mean", "--"), ("p50", "-"), ("p99", ":")):
        text = "median" if name == "p50" else name
        axes.axvline(facts[name], color="black", linestyle=style, linewidth=1, label=f"{text} {facts[name]:.0f}")
    axes.set(xlabel=label, ylabel="requests")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, borderaxespad=0)
