"""Pictures of what a simulation is given: a profile's step times, a trace's arrivals and lengths, a run's steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import to_s
from simbatch.sim.cost.model import CostModel, step_ps_alike
from simbatch.sim.cost.profile import Profile
from simbatch.sim.files import replacing
from simbatch.sim.report import style
from simbatch.sim.report.style import PALETTE, figure, headline
from simbatch.sim.streams.described import Described
from simbatch.sim.workload.traces.statistics import LengthCounts, TraceStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PS_PER_MS = 1e9
CONTEXTS = (128, 1024, 4096, 16384)
HISTORIES = (0, 2048, 8192)
BATCHES = (0, 16, 64, 256)
MIXED_CONTEXT = 1024
MAX_BATCH, MAX_CHUNK = 256, 2048  # of a profile that says no range
POINTS = 200


def plot_step_times(profile: Profile, path: Path) -> None:
    """Draw `profile` to a PNG; steps that the KV cache could not hold are left out."""
    cost, measured = profile.cost_model(), profile.measured
    most_seqs = measured.decode.num_decodes[1] if measured else MAX_BATCH
    most_tokens = measured.mixed.prefill_tokens[1] if measured else MAX_CHUNK
    contexts = [context for context in CONTEXTS if context <= profile.max_model_len]
    histories = [history for history in HISTORIES if history < profile.max_model_len]
    batches = [n for n in BATCHES if n <= most_seqs]
    kv_tokens = (profile.num_gpu_blocks_for() - 1) * profile.default_block_size
    with figure(path, 11.5, 3.7) as drawing:
        headline(drawing, _headline(profile))
        decode, prefill, mixed = drawing.subplots(1, 3)
        _decode(decode, cost, contexts, most_seqs, kv_tokens)
        _prefill(prefill, cost, histories, most_tokens, kv_tokens)
        _mixed(mixed, cost, batches, most_tokens, kv_tokens)


def _headline(profile: Profile) -> str:
    error = profile.fit_error
    kind = "estimate" if profile.is_estimate else f"mean error {error.summary()}" if error is not None else ""
    return f"{profile.name}: step times, {kind}" if kind else f"{profile.name}: step times"


def _decode(axes: Axes, cost: CostModel, contexts: Sequence[int], most: int, kv_tokens: int) -> None:
    seqs = _counts(most)
    for colour, context in zip(PALETTE, contexts, strict=False):
        fits = seqs[seqs * context <= kv_tokens]
        times = [step_ps_alike(cost, int(n), int(n) * context) for n in fits]
        _line(axes, fits, times, f"context {context:,}", colour)
    _finish(axes, "Decodes alone", "sequences in the batch", most)


def _prefill(axes: Axes, cost: CostModel, histories: Sequence[int], most: int, kv_tokens: int) -> None:
    tokens = _counts(most)
    for colour, history in zip(PALETTE, histories, strict=False):
        fits = tokens[tokens + history <= kv_tokens]
        times = [step_ps_alike(cost, 0, 0, *_chunk(int(q), history)) for q in fits]
        _line(axes, fits, times, f"after {history:,}" if history else "a prompt's first", colour)
    _finish(axes, "One prefill chunk", "tokens in the chunk", most)


def _mixed(axes: Axes, cost: CostModel, batches: Sequence[int], most: int, kv_tokens: int) -> None:
    tokens = _counts(most)
    for colour, n in zip(PALETTE, batches, strict=False):
        context = n * MIXED_CONTEXT
        fits = tokens[tokens + context <= kv_tokens]
        times = [step_ps_alike(cost, n, context, *_chunk(int(q), 0)) for q in fits]
        _line(axes, fits, times, f"with {n} decodes" if n else "alone", colour)
    _finish(axes, f"A chunk in a step with decodes of context {MIXED_CONTEXT:,}", "tokens in the chunk", most)


def _chunk(tokens: int, history: int) -> tuple[int, int, int]:
    return tokens, history + tokens, tokens * (2 * history + tokens)


def _counts(most: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, most, POINTS).round().astype(np.int64))


def _line(axes: Axes, counts: NDArray[np.int64], times_ps: Sequence[int], label: str, colour: str) -> None:
    if len(counts):
        axes.plot(counts, np.array(times_ps) / PS_PER_MS, label=label, color=colour)


def _finish(axes: Axes, name: str, counted: str, most: int) -> None:
    axes.set_title(name)
    axes.set_xlabel(counted)
    axes.set_ylabel("step time (ms)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(1, most)
    for axis in (axes.xaxis, axes.yaxis):
        style.say_values(axis, _plain)
    axes.yaxis.set_minor_formatter(lambda value, _: _plain(value) if f"{value:e}"[0] in "235" else "")
    axes.legend(fontsize=8)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


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
    values = np.array(sorted(lengths.counts))
    weights = np.array([lengths.counts[int(value)] for value in values])
    low, high = int(values[0]), int(values[-1])
    if high > WIDE * low:
        edges: Any = np.unique(np.round(np.geomspace(low, high + 1, 50)) - 0.5)
        style.log_scale(axes, "x", (1.0, 3.0), has_minor=True)
    else:
        step = max(1, -(-(high - low + 1) // 50))
        edges = np.arange(low, high + step + 1, step) - 0.5
    axes.hist(values, bins=list(edges), weights=weights, color=colour, edgecolor="white", linewidth=0.3)
    style.say_values(axes.xaxis, style.six_digits)
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


MAX_POINTS = 20_000  # of one kind; of more, evenly many


def plot_run_steps(path: Path, title: str, described: Described) -> None:
    """Draw a run's rebuilt steps over time to a PNG: how many requests, and how long each step."""
    steps = described.steps
    begin_s = float(steps.streams.sent_s.min())
    with replacing(path) as temporary, style.figure(temporary, 12, 6.6) as drawing:
        style.headline(drawing, title)
        upper, lower = drawing.subplots(2, 1, sharex=True)
        divisor = style.time_axis(lower, float(steps.mean_s[-1]) - begin_s)
        _batch_over_time(upper, described, begin_s, divisor)
        _gaps_over_time(lower, described, (steps.mean_s - begin_s) / divisor)
        drawing.align_ylabels()


def _batch_over_time(axes: Axes, described: Described, begin_s: float, divisor: float) -> None:
    streams, steps = described.steps.streams, described.steps
    sent, last = np.sort(streams.sent_s), np.sort(streams.last_s)
    times = np.sort(np.concatenate([sent, last]))
    in_flight = np.searchsorted(sent, times, side="right") - np.searchsorted(last, times, side="right")
    shown = _evenly(len(times))
    label = "in flight at the client"
    axes.step(
        (times[shown] - begin_s) / divisor, in_flight[shown], where="post", color="#BBBBBB", linewidth=1, label=label
    )
    shown = _evenly(len(steps))
    x = (steps.mean_s[shown] - begin_s) / divisor
    axes.step(x, described.batch[shown], where="pre", color=style.PALETTE[0], linewidth=1.0, label="batch: got a token")
    axes.set_title("batch")
    axes.set_ylabel("requests")
    style.count_axis(axes, float(max(in_flight.max(), described.batch.max())))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)


def _gaps_over_time(axes: Axes, described: Described, x: NDArray[np.float64]) -> None:
    decoded = described.steps.num_decodes > 0
    kinds = (
        ("decodes alone", described.is_plain, style.PALETTE[0]),
        ("decodes before prefills", described.is_waiting, style.PALETTE[2]),
        ("with prefills", decoded & described.has_prefills, style.PALETTE[1]),
    )
    gap_ms = 1000 * described.lasted_s
    for label, chosen, color in kinds:
        shown = np.flatnonzero(chosen)[_evenly(int(chosen.sum()))]
        axes.scatter(x[shown], gap_ms[shown], s=5, color=color, alpha=0.6, linewidths=0, label=label)
    seen = gap_ms[decoded & (gap_ms > 0)]
    if len(seen) and seen.max() > style.LOG_FROM * np.quantile(seen, 0.01):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * np.quantile(seen, 0.001), 1.4 * seen.max())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(0, None)
    axes.set_title("between the tokens of two steps")
    axes.set_ylabel("ms")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, markerscale=2)


def _evenly(n: int) -> NDArray[np.int64]:
    """Indices of at most `MAX_POINTS` of n."""
    return np.arange(n) if n <= MAX_POINTS else np.linspace(0, n - 1, MAX_POINTS).astype(np.int64)
