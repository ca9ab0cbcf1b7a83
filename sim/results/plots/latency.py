"""latency.png: how TTFT, TPOT, ITL and E2EL are distributed, by class, with the SLOs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.engine.record import FINISHED
from simbatch.sim.results.console import LATENCY_HEADERS
from simbatch.sim.results.gaps import PooledGaps
from simbatch.sim.results.metrics import latencies_ms
from simbatch.sim.results.plots import style
from simbatch.sim.results.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simbatch.sim.results.result import Result

Distribution = tuple[NDArray[np.float64], NDArray[np.float64]]  # values (ms, ascending) and the share up to each


def write(path: Path, result: Result) -> None:
    """Four cumulative distributions; dots at p50, p90 and p99 of all requests."""
    all_requests, by_class = _distributions(result)
    colours = style.colours(list(by_class))
    with style.figure(path, 10.5, 6.6) as drawing:
        style.title(drawing, "Latency", result.facts)
        for axes, name in zip(drawing.subplots(2, 2).flat, LATENCY_HEADERS, strict=True):
            _panel(axes, name, result, all_requests.get(name))
            for label, distributions in by_class.items():
                if name in distributions:
                    style.cdf(axes, *distributions[name], color=colours[label], linewidth=1.4, label=label)
        first, _, third, _ = drawing.axes
        first.set_ylabel("share of requests")
        third.set_ylabel("share of all gaps")
        if by_class and "ttft" in all_requests:
            first.legend(loc="upper left", borderaxespad=0.2)


def _distributions(result: Result) -> tuple[dict[str, Distribution], dict[str, dict[str, Distribution]]]:
    record = result.record
    done = record.requests.status == FINISHED
    everything = _sorted(latencies_ms(record, done))
    gaps = PooledGaps.of(record)
    if gaps.size:
        values, shares = gaps.sketch()
        everything["itl"] = values / PS_PER_MS, shares
    by_class = {
        name: _sorted(latencies_ms(record, done & (record.requests.priority == block["priority"])))
        for name, block in result.summary["simbatch"]["classes"].items()
    }
    return everything, by_class


def _sorted(latencies: dict[str, NDArray[np.float64]]) -> dict[str, Distribution]:
    return {name: style.sorted_shares(values) for name, values in latencies.items() if len(values)}


def _panel(axes: Axes, name: str, result: Result, distribution: Distribution | None) -> None:
    axes.set_title(f"{name.upper()}  {LATENCY_HEADERS[name].partition(' (')[0]}")
    if distribution is None:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color="#888888")
        axes.set(xticks=[], yticks=[])
        return
    values, _ = distribution
    limit = result.facts.slo.limits().get(name)
    low, high = float(values[0]), float(values[-1])
    if limit is not None:
        share = result.summary["simbatch"]["slo_share"][name]
        axes.axvline(limit, color=style.LIMIT, linestyle="--", linewidth=1.2)
        text = f"SLO {style.duration_text(limit)}: {percent(share)} within"
        axes.set_title(text, loc="right", color=style.LIMIT, fontsize=9)
        low, high = min(low, limit), max(high, limit)
    style.latency_axis(axes, low, high)
    style.cdf(axes, *distribution, color=style.INK, linewidth=1.8, label="all requests")
    _mark_percentiles(axes, name, result.summary)


def _mark_percentiles(axes: Axes, name: str, summary: dict[str, Any]) -> None:
    """Dots on the curve, their values in the lower right corner, where a distribution never is."""
    marks = {50: summary[f"median_{name}_ms"], 90: summary[f"p90_{name}_ms"], 99: summary[f"p99_{name}_ms"]}
    axes.plot(list(marks.values()), list(marks), "o", color=style.INK, markersize=4.5, zorder=5)
    lines = [f"p{percentile}  {style.duration_text(value)}" for percentile, value in marks.items()]
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
    axes.text(0.985, 0.05, "\n".join(lines), transform=axes.transAxes, ha="right", va="bottom", bbox=box, zorder=6)
