"""Pictures of a comparison: compare.png (candidates under the same arrivals) and differences.png (intervals)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.engine.record import FINISHED
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.latencies import latencies_ms
from simbatch.sim.metrics.registry import HIGHER, WITHIN_SLO, shown
from simbatch.sim.report import style
from simbatch.sim.report.figures import headline
from simbatch.sim.report.run_pictures import arrivals, binned, end_s
from simbatch.sim.results import SideBySide
from simbatch.sim.results.runs import Difference, MeasuredRun
from simbatch.sim.text import number, percent

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec


NUM_BINS = 250
MAX_NAMED = 4
Figures = tuple[str, dict[str, float | None], Callable[[float | None], str]]  # title, by candidate, as text
LEGEND_EXTRA, LEGEND_WIDTH = 8, 130  # characters: line and space beside a label; what fits beside the title
LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}


def write_comparison(path: Path, results: Mapping[str, MeasuredRun]) -> None:
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


def _timelines(drawing: Figure, grid: GridSpec, results: Mapping[str, MeasuredRun], colours: Mapping[str, str]) -> None:
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
    for i, (label, record) in enumerate(records.items()):
        look: dict[str, Any] = {"color": colours[label], "linewidth": style.line_width(i, len(records), style.BESIDE)}
        edges, _, peak = binned(curves.waiting_with_preempted(record), record, NUM_BINS)
        queue.stairs(peak, edges / divisor, label=label, **look)
        edges, mean, _ = binned(curves.batch_size(record), record, NUM_BINS)
        batch.stairs(mean, edges / divisor, **look)
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


def _distribution(axes: Axes, name: str, results: Mapping[str, MeasuredRun], colours: Mapping[str, str]) -> None:
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
    for i, (label, v) in enumerate(values.items()):
        if len(v):
            width = style.line_width(i, len(values), style.BESIDE)
            style.cdf(axes, *style.sorted_shares(v), color=colours[label], linewidth=width)


def _bars(drawing: Figure, grid: GridSpec, results: Mapping[str, MeasuredRun], colours: Mapping[str, str]) -> None:
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


def _figures(results: Mapping[str, MeasuredRun]) -> Iterator[Figures]:
    """What the bars show."""
    summaries = {label: result.summary for label, result in results.items()}
    first = next(iter(summaries.values()))["simbatch"]
    left_out = "request_throughput" if first["slo_share"] else WITHIN_SLO
    for metric in shown("compare.png", lambda metric: metric.key != left_out):
        text = percent if metric.is_share else style.duration_text if metric.kind == "ms" else number
        yield metric.title, {label: metric.of(summary) for label, summary in summaries.items()}, text
    if len(first["classes"]) > 1:
        urgent = next(iter(first["classes"]))
        tails = {label: s["simbatch"]["classes"].get(urgent, {}).get("p99_ttft_ms") for label, s in summaries.items()}
        yield f"P99 TTFT, {urgent} priority", tails, style.duration_text


WIDEST = 20.0  # ratios beyond 20 and 1 / 20 end in an arrow
TICKS = (1, 2, 0.5, 5, 0.2, 0.1, 10, 20, 0.05, 1.5, 0.7, 1.2, 0.8, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 3, 0.3)  # by rank
TICK_DISTANCE = 0.08  # of the axis
SPREAD = 0.6  # of a row's height, for the candidates in it


def write_differences(path: Path, name: str, replicated: SideBySide) -> None:
    """A headline metric a row, a marker per candidate; ratios of the means on a log scale."""
    drawn = [row for row in replicated.differences if row[0].metric.better and any(map(_is_drawn, row))]
    rows = [*headline(drawn, lambda row: row[0].metric)]
    others = replicated.labels[1:]
    colours = style.colours(replicated.labels)
    with style.figure(path, 9, 1.5 + len(rows) * (0.2 + 0.12 * len(others))) as drawing:
        style.headline(drawing, f"{name}: difference from {replicated.labels[0]}")
        axes = drawing.add_subplot()
        held = "held together (Bonferroni)" if replicated.bonferroni else "each by itself"
        axes.set_title(
            f"{100 * replicated.confidence:g} % intervals {held}, {len(replicated.seeds)} runs, common random numbers\n"
            "hollow: no difference shown; arrows: the better way",
            fontsize=9,
        )
        if not rows:
            axes.text(0.5, 0.5, "no interval to draw", transform=axes.transAxes, ha="center", color="#888888")
            axes.set_axis_off()
            return
        for i, row in enumerate(rows):
            for j, difference in enumerate(row):
                place = i + SPREAD * ((j + 0.5) / len(row) - 0.5)
                _draw(axes, difference, place, colours[difference.other])
        _decorate(axes, rows)
        if len(others) > 1:
            handles = _handles(colours, others)
            drawing.legend(handles=handles, loc="outside lower left", ncols=min(len(others), 4), borderpad=0)
        else:
            axes.set_xlabel(f"{others[0]} against {replicated.labels[0]}")


def _is_drawn(difference: Difference) -> bool:
    ratio = difference.ratio
    return ratio is not None and ratio.estimate > 0 and ratio.low < ratio.high


def clipped(ratio: float) -> float:
    """As far as it is drawn."""
    return min(max(ratio, 1 / WIDEST), WIDEST)


def percent_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Ratios from `low` to `high` that stand apart on a logarithmic axis, and each as a difference in percent."""
    ticks: list[float] = []
    for tick in TICKS:
        distance = TICK_DISTANCE * log(high / low)
        if low <= tick <= high and all(abs(log(tick / other)) > distance for other in ticks):
            ticks.append(tick)
    return ticks, [f"{100 * (tick - 1):+.0f} %" if tick != 1 else "0" for tick in ticks]


def _draw(axes: Axes, difference: Difference, place: float, colour: str) -> None:
    ratio = difference.ratio
    if ratio is None:
        return
    low, high = clipped(ratio.low), clipped(ratio.high)
    axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    for is_outside, edge, marker in ((ratio.low < low, low, "<"), (ratio.high > high, high, ">")):
        if is_outside:
            axes.plot([edge], [place], marker=marker, color=colour, markersize=6)
    if low == high != 1:  # all of it is outside
        return
    is_shown = difference.verdict in ("better", "worse")
    middle = min(max(ratio.estimate, low), high)
    axes.plot([middle], [place], "o", color=colour, markerfacecolor=colour if is_shown else "white", markersize=6)


def _decorate(axes: Axes, rows: Sequence[Sequence[Difference]]) -> None:
    """A log axis in percent, the line of no difference, names, and which way is better."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.axvline(1.0, color=style.INK, linewidth=0.9, zorder=0.5)
    bounds = [bound for row in rows for d in row if d.ratio for bound in (d.ratio.low, d.ratio.high)]
    low, high = clipped(min(*bounds, 0.97)), clipped(max(*bounds, 1.03))
    axes.set_xlim(low / 1.06, high * 1.06)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(*percent_ticks(low, high))
    names = [f"{row[0].metric.label}  {'→' if row[0].metric.better == HIGHER else '←'}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for i in range(1, len(rows), 2):
        axes.axhspan(i - 0.5, i + 0.5, color="#F5F5F5", zorder=0)


def _handles(colours: Mapping[str, str], others: Sequence[str]) -> list[Artist]:
    """What the legend shows for each candidate."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colours[label], marker="o", linewidth=1.6, label=label) for label in others]
