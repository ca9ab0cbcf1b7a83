"""replicas.png: requests waiting, batch and KV use of each replica over time, and each one's share of the load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.results import curves
from simbatch.sim.results.plots import style
from simbatch.sim.results.plots.timeline import edges_ps, end_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simbatch.sim.results.result import Result

NUM_BINS = 200
MAX_LINES = 8  # of more replicas each panel shows the middle half and the whole range
Floats = NDArray[np.float64]


def write(path: Path, result: Result) -> None:
    """A panel for each figure, a line for each replica; of many the range, the middle half and the median."""
    record = result.record
    edges = edges_ps(record, NUM_BINS)
    waiting, batches, used = ([] for _ in range(3))
    for part in record.parts():
        waiting.append(curves.waiting_with_preempted(part).mean_per_bin(edges))
        batches.append(curves.batch_size(part).mean_per_bin(edges))
        used.append(100 / max(1, part.num_usable_blocks) * curves.used_blocks(part).mean_per_bin(edges))
    with style.figure(path, 11, 8.4) as drawing:
        router = (result.facts.cluster or {}).get("router", {}).get("name", "")
        style.title(drawing, f"{len(record.replicas)} replicas behind {router}", result.facts)
        *over_time, shares = drawing.subplots(4, 1)
        divisor = style.time_axis(over_time[-1], end_s(record))
        panels = (("waiting", "requests", waiting), ("batch size", "requests in the step", batches))
        for axes, (name, unit, lines) in zip(
            over_time, (*panels, ("KV cache in use", "% of the blocks", used)), strict=True
        ):
            axes.sharex(over_time[-1])
            _lines(axes, edges / PS_PER_S / divisor, np.array(lines), has_legend=axes is over_time[0])
            axes.set_title(name)
            axes.set_ylabel(unit)
            axes.set_ylim(bottom=0)
        _shares(shares, result)
        drawing.align_ylabels()


def _lines(axes: Axes, times: Floats, values: Floats, *, has_legend: bool) -> None:
    if len(values) <= MAX_LINES:
        for i, line in enumerate(values):
            axes.stairs(line, times, color=style.PALETTE[i], linewidth=1.1, label=f"replica {i}", baseline=None)
        if has_legend and len(values) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(values), borderpad=0, fontsize=8)
        return
    low, first, middle, third, high = np.percentile(values, (0, 25, 50, 75, 100), axis=0)
    colour = style.PALETTE[0]
    axes.stairs(high, times, baseline=low, fill=True, color=colour, alpha=0.2, linewidth=0, label="all")
    axes.stairs(third, times, baseline=first, fill=True, color=colour, alpha=0.45, linewidth=0, label="half of them")
    axes.stairs(middle, times, color=style.INK, linewidth=1, baseline=None, label="median")
    if has_legend:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderpad=0, fontsize=8)


def _shares(axes: Axes, result: Result) -> None:
    """Bars: each replica's part of the load, where 1 is the mean."""
    cluster = result.summary["simbatch"]["cluster"]
    rows = cluster["replicas"]
    load = np.array([row["share_of_load"] for row in rows]) * len(rows)
    sent = np.array([row["num_requests"] for row in rows], dtype=np.float64)
    places = np.arange(len(rows))
    axes.bar(places - 0.2, load, 0.4, color=style.PALETTE[0], label="load (device's work)")
    axes.bar(places + 0.2, sent / max(1.0, sent.mean()), 0.4, color=style.PALETTE[1], label="requests")
    axes.axhline(1, color=style.INK, linewidth=0.8)
    axes.set(title="share of each replica, where 1 is the mean", xlabel="replica", ylabel="over the mean")
    axes.set_ylim(0, 1.25 * max(1.0, float(load.max(initial=0)), float((sent / max(1.0, sent.mean())).max(initial=0))))
    if len(rows) <= 32:
        axes.set_xticks(places)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, fontsize=8)
