"""Pictures of one run: latency.png (distributions), timeline.png (queue, batch, KV) and replicas.png (a cluster)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.latencies import PooledGaps, duration_ps, latencies_ms
from simbatch.sim.metrics.run_figures import shares_per_bin
from simbatch.sim.metrics.step_function import StepFunction
from simbatch.sim.report import style
from simbatch.sim.report.console import LATENCY_HEADERS
from simbatch.sim.results.runs import MeasuredRun
from simbatch.sim.text import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Distribution = tuple[NDArray[np.float64], NDArray[np.float64]]  # values (ms, ascending) and the share up to each


def write_latency(path: Path, result: MeasuredRun) -> None:
    """Four cumulative distributions; dots at p50, p90 and p99 of all requests."""
    all_requests, by_class = distributions(result)
    colours = style.colours(list(by_class))
    with style.figure(path, 10.5, 6.6, layout="none") as drawing:
        style.title(drawing, "Latency", result.facts)
        for axes, name in zip(style.fixed_grid(drawing, 2, 2, 0.6, 0.5).flat, LATENCY_HEADERS, strict=True):
            _distribution_panel(axes, name, result, all_requests.get(name))
            for label, of_class in by_class.items():
                if name in of_class:
                    style.cdf(axes, *of_class[name], color=colours[label], linewidth=1.4, label=label)
        first, _, third, _ = drawing.axes
        first.set_ylabel("share of requests")
        third.set_ylabel("share of all gaps")
        if by_class and "ttft" in all_requests:
            first.legend(loc="upper left", borderaxespad=0.2)


def distributions(result: MeasuredRun) -> tuple[dict[str, Distribution], dict[str, dict[str, Distribution]]]:
    """By latency, of all requests (ITL: of all gaps), and the same of every class."""
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


def _distribution_panel(axes: Axes, name: str, result: MeasuredRun, distribution: Distribution | None) -> None:
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


NUM_BINS = 400
PREEMPTED = "#7A1F1F"  # dark, on the colour of what waits
ARRIVAL_BIN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MIN_ARRIVAL_BINS = 60

Floats = NDArray[np.float64]
Series = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]  # edges (s), mean and peak in each bin


def write_timeline(path: Path, result: MeasuredRun) -> None:
    """Panels over time; pale: the highest value within a bin, full: the mean over it."""
    record, has_host = result.record, result.facts.has_host
    usable = max(1, record.num_usable_blocks)
    panels = (
        ("arrivals", "requests/s", arrivals(record), 1.0),
        ("waiting", "requests", binned(curves.waiting_with_preempted(record), record), 1.0),
        ("batch size", "requests in the step", binned(curves.batch_size(record), record), 1.0),
        ("KV cache in use", "% of the blocks", binned(curves.used_blocks(record), record), 100 / usable),
    )
    with style.figure(path, 11, 9.0 if has_host else 7.4, layout="none") as drawing:
        style.title(drawing, "Timeline", result.facts)
        all_axes = style.fixed_grid(drawing, len(panels) + has_host, 1, 0, 0.35, sharex=True)[:, 0]
        divisor = style.time_axis(all_axes[-1], end_s(record))
        for axes, colour, (name, unit, series, scale) in zip(all_axes, style.PALETTE, panels, strict=False):
            _time_panel(axes, name, unit, series, scale, divisor, colour)
        if record.num_preemptions:
            _preempted(all_axes[1], record, divisor)
        bin_text = style.duration_text(1000 * end_s(record) / NUM_BINS)
        all_axes[0].set_title(f"full: mean, pale: peak in each {bin_text}", loc="right", fontsize=8, color="#777777")
        all_axes[len(panels) - 1].set(ylim=(0, 104), yticks=[0, 25, 50, 75, 100])
        if has_host:
            _host_panel(all_axes[-1], result, divisor)


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


def _time_panel(axes: Axes, name: str, unit: str, series: Series, scale: float, divisor: float, colour: str) -> None:
    edges, mean, peak = series
    _filled(axes, peak * scale, edges / divisor, color=colour, alpha=0.35)
    _filled(axes, mean * scale, edges / divisor, color=colour)
    style.count_axis(axes, float(peak.max(initial=0)) * scale)
    axes.set_title(name)
    axes.set_ylabel(unit)


def _filled(axes: Axes, values: Floats, edges: Floats, **look: Any) -> None:
    """What is below a value in each bin; as `stairs(fill=True)`, which looks at every corner in Python."""
    axes.fill_between(edges, np.append(values, values[-1:]), step="post", linewidth=0, **look)


def _preempted(axes: Axes, record: RunRecord, divisor: float) -> None:
    """Of those that wait, those that ran already and lost their blocks, from the bottom up."""
    edges, everyone, _ = binned(curves.waiting_with_preempted(record), record)
    _, new, _ = binned(curves.waiting(record), record)
    label = f"of them preempted ({record.num_preemptions:,} preemptions)"
    _filled(axes, np.maximum(everyone - new, 0), edges / divisor, color=PREEMPTED, label=label)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, fontsize=8)


def _host_panel(axes: Axes, result: MeasuredRun, divisor: float) -> None:
    """How much of each bin the device worked, and waited for the host, one on top of the other."""
    edges = edges_ps(result.record)
    worked, waited = shares_per_bin(result.record, result.facts, edges)
    times = edges / PS_PER_S / divisor
    both = 100 * (worked + waited)
    _filled(axes, both, times, color="#8A8A8A", label="waits for the host")
    _filled(axes, 100 * worked, times, color=style.PALETTE[4], label="works")
    axes.set(title="device", ylabel="% of the time", ylim=(0, 104), yticks=[0, 25, 50, 75, 100])
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, fontsize=8, reverse=True)


NUM_REPLICA_BINS = 200
MAX_LINES = 8  # of more replicas each panel shows the middle half and the whole range


def write_replicas(path: Path, result: MeasuredRun) -> None:
    """A panel for each figure, a line for each replica; of many the range, the middle half and the median."""
    record = result.record
    edges = edges_ps(record, NUM_REPLICA_BINS)
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


def _shares(axes: Axes, result: MeasuredRun) -> None:
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
