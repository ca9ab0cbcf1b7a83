"""timeline.png: arrivals, queue, batch size and KV use over one time axis; however long the run, no peak is lost.

Where the engine's thread takes time, a fifth panel has host and device.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.results import curves
from simbatch.sim.results.metrics import duration_ps
from simbatch.sim.results.plots import style
from simbatch.sim.results.step_function import StepFunction
from simbatch.sim.results.time_share import shares_per_bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simbatch.sim.results.result import Result

NUM_BINS = 400
ARRIVAL_BIN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MIN_ARRIVAL_BINS = 60

Series = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # edges (s), mean and peak in each bin


def write(path: Path, result: Result) -> None:
    """Panels over time; pale: the highest value within a bin, full: the mean over it."""
    record, has_host = result.record, result.facts.has_host
    usable = max(1, record.num_usable_blocks)
    panels = (
        ("arrivals", "requests/s", arrivals(record), 1.0),
        ("waiting", "requests", binned(curves.waiting_with_preempted(record), record), 1.0),
        ("batch size", "requests in the step", binned(curves.batch_size(record), record), 1.0),
        ("KV cache in use", "% of the blocks", binned(curves.used_blocks(record), record), 100 / usable),
    )
    with style.figure(path, 11, 9.0 if has_host else 7.4) as drawing:
        style.title(drawing, "Timeline", result.facts)
        all_axes = drawing.subplots(len(panels) + has_host, 1, sharex=True)
        divisor = style.time_axis(all_axes[-1], end_s(record))
        for axes, colour, (name, unit, series, scale) in zip(all_axes, style.PALETTE, panels, strict=False):
            _panel(axes, name, unit, series, scale, divisor, colour)
        bin_text = style.duration_text(1000 * end_s(record) / NUM_BINS)
        all_axes[0].set_title(f"full: mean, pale: peak in each {bin_text}", loc="right", fontsize=8, color="#777777")
        all_axes[len(panels) - 1].set(ylim=(0, 104), yticks=[0, 25, 50, 75, 100])
        if has_host:
            _host_panel(all_axes[-1], result, divisor)
        drawing.align_ylabels()


def end_s(record: RunRecord) -> float:
    """Where the time axis ends."""
    return max(duration_ps(record), record.end_ps, 1) / PS_PER_S


def binned(curve: StepFunction, record: RunRecord, num_bins: int = NUM_BINS) -> Series:
    """A curve in equal bins over the run."""
    edges = edges_ps(record, num_bins)
    means, peaks = curve.per_bin(edges)
    return edges / PS_PER_S, means, peaks.astype(np.float64)


def edges_ps(record: RunRecord, num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """The edges of equal bins over the run."""
    return np.unique(np.linspace(0, end_s(record) * PS_PER_S, num_bins + 1).astype(np.int64))


def arrivals(record: RunRecord, num_bins: int = NUM_BINS) -> Series:
    """Arrivals per second: counted in bins of at most a second, the mean and the highest of those in wider ones."""
    end = end_s(record)
    width = next((w for w in reversed(ARRIVAL_BIN_S) if end / w >= MIN_ARRIVAL_BINS), ARRIVAL_BIN_S[0])
    per_bin = max(1, round(end / width / num_bins))
    num_wide = int(np.ceil(end / width / per_bin))
    arrival_s = record.requests.arrival_ps / PS_PER_S
    which = np.minimum((arrival_s / width).astype(np.int64), num_wide * per_bin - 1)
    counts = np.bincount(which, minlength=num_wide * per_bin).reshape(num_wide, per_bin)
    rates: NDArray[np.float64] = counts / width
    edges = np.arange(num_wide + 1, dtype=np.float64) * (width * per_bin)
    return edges, rates.mean(axis=1), rates.max(axis=1)


def _panel(axes: Axes, name: str, unit: str, series: Series, scale: float, divisor: float, colour: str) -> None:
    edges, mean, peak = series
    axes.stairs(peak * scale, edges / divisor, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(mean * scale, edges / divisor, fill=True, color=colour, linewidth=0)
    style.count_axis(axes, float(peak.max(initial=0)) * scale)
    axes.set_title(name)
    axes.set_ylabel(unit)


def _host_panel(axes: Axes, result: Result, divisor: float) -> None:
    """How much of each bin the device worked, and waited for the host, one on top of the other."""
    edges = edges_ps(result.record)
    worked, waited = shares_per_bin(result.record, result.facts, edges)
    times = edges / PS_PER_S / divisor
    both = 100 * (worked + waited)
    axes.stairs(both, times, fill=True, color="#8A8A8A", linewidth=0, label="waits for the host")
    axes.stairs(100 * worked, times, fill=True, color=style.PALETTE[4], linewidth=0, label="works")
    axes.set(title="device", ylabel="% of the time", ylim=(0, 104), yticks=[0, 25, 50, 75, 100])
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, fontsize=8, reverse=True)
