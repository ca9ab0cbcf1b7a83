"""The picture of a trace: arrivals over time, and how long prompts and outputs are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simbatch.sim.clock import to_s
from simbatch.sim.files import replacing
from simbatch.sim.report import style
from simbatch.sim.workload.traces.statistics import LengthCounts, TraceStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_WINDOWS = 400
NICE_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)
WIDE = 50  # times the shortest, from which on lengths are on a logarithmic axis


def write(path: Path, statistics: TraceStatistics, title: str) -> None:
    """Write a PNG; it appears when it is complete."""
    with replacing(path) as temporary, style.figure(temporary, 11, 6.6) as drawing:
        style.headline(drawing, title)
        axes = drawing.subplot_mosaic([["arrivals", "arrivals"], ["prompts", "outputs"]])
        _arrivals(axes["arrivals"], statistics)
        _lengths(axes["prompts"], statistics.prompts, "prompt", style.PALETTE[0])
        _lengths(axes["outputs"], statistics.outputs, "output", style.PALETTE[2])


def _arrivals(axes: Axes, statistics: TraceStatistics) -> None:
    duration_s = to_s(statistics.last_ps - statistics.first_ps)
    window_s = next((w for w in NICE_S if duration_s / w <= MAX_WINDOWS), NICE_S[-1])
    rates = statistics.rates(window_s)
    scale, unit = (86_400, "days") if duration_s > 3 * 86_400 else (3600, "h") if duration_s > 3 * 3600 else (1, "s")
    edges = (np.arange(len(rates) + 1) * window_s + to_s(statistics.first_ps)) / scale
    axes.stairs(rates, edges, fill=True, color=style.PALETTE[0], linewidth=0)
    what = "requests" if statistics.turns is None else "new sessions"
    if duration_s:
        mean = (statistics.num_arrivals - 1) / duration_s
        axes.axhline(mean, color=style.INK, linestyle="--", linewidth=1, label=f"mean {mean:.3g} {what}/s")
        _legend(axes)
    axes.set_title(f"arrivals, in windows of {style.duration_text(1000 * window_s)}")
    axes.set(xlabel=f"time ({unit})", ylabel=f"{what}/s", xlim=(edges[0], edges[-1]), ylim=(0, None))


def _lengths(axes: Axes, lengths: LengthCounts, name: str, colour: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = np.array(sorted(lengths.counts))
    weights = np.array([lengths.counts[int(value)] for value in values])
    low, high = int(values[0]), int(values[-1])
    if high > WIDE * low:
        edges: Any = np.unique(np.round(np.geomspace(low, high + 1, 50)) - 0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        step = max(1, -(-(high - low + 1) // 50))
        edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(values, bins=list(edges), weights=weights, color=colour, edgecolor="white", linewidth=0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    facts = lengths.summary()
    for statistic, line in (("mean", "--"), ("p50", "-"), ("p99", ":")):
        text = "median" if statistic == "p50" else statistic
        label = f"{text} {facts[statistic]:,.0f}"
        axes.axvline(facts[statistic], color=style.INK, linestyle=line, linewidth=1, label=label)
    axes.set(title=f"{name} lengths", xlabel="tokens", ylabel="requests")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0, fontsize=8)
