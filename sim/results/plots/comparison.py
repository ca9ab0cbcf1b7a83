"""compare.png: how the candidates bear the same arrivals, over time, by distribution and in three numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from simbatch.sim.engine.record import FINISHED
from simbatch.sim.results import curves
from simbatch.sim.results.metrics import latencies_ms
from simbatch.sim.results.plots import style
from simbatch.sim.results.plots.timeline import arrivals, binned, end_s
from simbatch.sim.results.registry import REGISTRY, SLO_SHARE, THROUGHPUT
from simbatch.sim.results.text import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    from simbatch.sim.results.result import Result

NUM_BINS = 250
MAX_NAMED = 4
Figures = tuple[str, dict[str, float | None], Callable[[float | None], str]]  # title, by candidate, as text
LEGEND_EXTRA, LEGEND_WIDTH = 8, 130  # characters: line and space beside a label; what fits beside the title
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}


def write(path: Path, results: Mapping[str, Result]) -> None:
    """Arrivals, queue and batch size on one time axis; three distributions; bars for service, speed and tail."""
    facts = next(iter(results.values())).facts
    bars_height = 0.3 + 0.16 * len(results)
    with style.figure(path, 12, 8.2 + bars_height) as drawing:
        names = ", ".join(results) if len(results) <= MAX_NAMED else f"{len(results)} candidates"
        style.headline(drawing, f"{facts.scenario_name}: {names} on the same arrivals")
        grid = drawing.add_gridspec(5, 12, height_ratios=[0.5, 1, 1, 1.35, bars_height])
        colours = style.colours(list(results))
        _timelines(drawing, grid, results, colours)
        for column, name in enumerate(LATENCIES):
            _distribution(drawing.add_subplot(grid[3, 4 * column : 4 * column + 4]), name, results, colours)
        _bars(drawing, grid, results, colours)


def _timelines(drawing: Figure, grid: GridSpec, results: Mapping[str, Result], colours: Mapping[str, str]) -> None:
    records = {label: result.record for label, result in results.items()}
    top, queue = drawing.add_subplot(grid[0, :]), drawing.add_subplot(grid[1, :])
    batch = drawing.add_subplot(grid[2, :])
    longest = max(map(end_s, records.values()))
    divisor = style.time_axis(batch, longest)
    for axes in (top, queue):
        axes.sharex(batch)
        axes.tick_params(labelbottom=False)
    edges, _, peak = arrivals(next(iter(records.values())), NUM_BINS)
    top.stairs(peak, edges / divisor, fill=True, color="#8A8A8A", linewidth=0)
    for label, record in records.items():
        edges, _, peak = binned(curves.waiting_with_preempted(record), record, NUM_BINS)
        queue.stairs(peak, edges / divisor, color=colours[label], linewidth=1.5, label=label)
        edges, mean, _ = binned(curves.batch_size(record), record, NUM_BINS)
        batch.stairs(mean, edges / divisor, color=colours[label], linewidth=1.5)
    for axes, name, unit in (
        (top, "arrivals", "requests/s"),
        (queue, "waiting (peaks)", "requests"),
        (batch, "batch size (means)", "requests in the step"),
    ):
        axes.set_title(name)
        axes.set_ylabel(unit)
        style.count_axis(axes, float(axes.dataLim.y1))
    drawing.align_ylabels([top, queue, batch])
    if sum(len(label) + LEGEND_EXTRA for label in results) < LEGEND_WIDTH:  # else the bars say whose colour is whose
        queue.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(results), borderpad=0)


def _distribution(axes: Axes, name: str, results: Mapping[str, Result], colours: Mapping[str, str]) -> None:
    axes.set_title(LATENCIES[name])
    values = {
        label: latencies_ms(result.record, result.record.requests.status == FINISHED)[name]
        for label, result in results.items()
    }
    bounds = [bound for v in values.values() if len(v) for bound in (float(v.min()), float(v.max()))]
    if not bounds:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color="#888888")
        return
    limit = next(iter(results.values())).facts.slo.limits().get(name)
    if limit is not None:
        axes.axvline(limit, color=style.LIMIT, linestyle="--", linewidth=1.2)
        axes.set_title(f"SLO {style.duration_text(limit)}", loc="right", color=style.LIMIT, fontsize=9)
        bounds.append(limit)
    style.latency_axis(axes, min(bounds), max(bounds), max_labels=5)
    for label, v in values.items():
        if len(v):
            style.cdf(axes, *style.sorted_shares(v), color=colours[label], linewidth=1.6)


def _bars(drawing: Figure, grid: GridSpec, results: Mapping[str, Result], colours: Mapping[str, str]) -> None:
    panels = list(_figures(results))
    width = 12 // len(panels)
    for column, (name, figures, text) in enumerate(panels):
        axes = drawing.add_subplot(grid[4, width * column : width * (column + 1)])
        lengths = [figures[label] or 0.0 for label in results]
        bars = axes.barh(range(len(results)), lengths, color=[colours[label] for label in results], height=0.7)
        axes.bar_label(bars, [f" {text(figures[label])}" for label in results])
        axes.set(title=name, xticks=[], xlim=(0, 1.35 * max(lengths) or 1))
        axes.set_yticks(range(len(results)), list(results) if column == 0 else [""] * len(results))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.spines["bottom"].set_visible(False)


def _figures(results: Mapping[str, Result]) -> Iterator[Figures]:
    """What the bars show."""
    summaries = {label: result.summary for label, result in results.items()}
    first = next(iter(summaries.values()))["simbatch"]
    service = f"{SLO_SHARE}all" if first["slo_share"] else "request_throughput"
    for metric in (REGISTRY[key] for key in (service, THROUGHPUT, "p99_ttft_ms")):
        text = percent if metric.is_share else style.duration_text if metric.kind == "ms" else number
        yield metric.title, {label: metric.of(summary) for label, summary in summaries.items()}, text
    if len(first["classes"]) > 1:
        urgent = next(iter(first["classes"]))
        tails = {label: s["simbatch"]["classes"].get(urgent, {}).get("p99_ttft_ms") for label, s in summaries.items()}
        yield f"P99 TTFT, {urgent} priority", tails, style.duration_text
