"""The page of a capacity: the rate that holds, and every run by its rate, kept or broken."""

from __future__ import annotations

from collections.abc import Iterator

from simbatch.sim.report import style
from simbatch.sim.report.answer import trust_of
from simbatch.sim.report.page.charts import PageChart, Panel, is_wide, limit, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage
from simbatch.sim.report.page.settings import settings_tables, trust_rows
from simbatch.sim.scenario import resolve
from simbatch.sim.search.rates import loads_of
from simbatch.sim.tuning.capacity import Capacity
from simbatch.sim.tuning.capacity_report import report
from simbatch.sim.tuning.goal import Limit

HOLDS, FAILS, BOUND, OWN = style.PALETTE[0], "#8A8A8A", style.PALETTE[2], style.PALETTE[3]
MAX_LABEL = 30  # characters before a colon that are a label


def capacity_page(found: Capacity) -> ReportPage:
    """The answer as the console has it, and where it comes from."""
    lines, own_rate = report(found).splitlines(), loads_of(found.scenario)[found.unit.key]
    first = min(found.tried, key=lambda run: abs(run.rate - own_rate)).runs.summaries[0]["simbatch"]
    title, about, *answer = [line for line in lines if line]
    return ReportPage(
        title=title,
        about=f"{about}, by simbatch tune --capacity",
        answer=[*_pairs(answer), ("Trust", f"{trust_of(first['profile'])}.")],
        warnings=[warning for warning in first["warnings"] if not warning.startswith("Overloaded")],
        charts=[*(_by_rate(found, each, own_rate) for each in found.limits), *_by_seed(found)],
        tables=[_table(found)],
        settings=[*settings_tables(first)],
        trust=[*trust_rows(first)],
        scenario=resolve(found.scenario).dump(),
        seeds=(found.bound or found).seeds,
        text="\n".join(lines),
    )


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for text in lines:
        label, colon, rest = text.partition(": ")
        yield (label, rest) if colon and len(label) <= MAX_LABEL else ("", text.strip())


def _by_rate(found: Capacity, bound: Limit, own_rate: float) -> PageChart:
    """The limited figure over the rate."""
    metric, per_s = bound.metric, found.unit.times
    scale = 100 if metric.is_share else 1
    traces = []
    for is_met, name, colour in ((True, "holds", HOLDS), (False, "fails", FAILS)):
        runs = [run for run in found.tried if run.is_met == is_met and run.means[metric.key] is not None]
        if runs:
            texts = [f"seed {run.seed}{', broken: ' + ', '.join(run.broken) if run.broken else ''}" for run in runs]
            ys = [scale * (run.means[metric.key] or 0.0) for run in runs]
            hover = "%{x:.4~g}: %{y:,.4~g}, %{text}"
            traces.append(points(name, [run.rate * per_s for run in runs], ys, colour, hover, text=texts))
    (left, right), (low, high) = span(traces, "x"), span(traces, "y")
    traces.append(limit(str(bound), [left, right], [scale * bound.bound] * 2))
    ends = [min(0.0, low), high]
    if found.bound is not None:
        name, at = f"capacity, kept in {found.bound.kept} of {len(found.bound.seeds)}", found.bound.rate * per_s
        traces.append(line(name, [at, at], ends, BOUND, name))
    traces.append(line("as it stands", [own_rate * per_s] * 2, ends, OWN, "as it stands", line={"dash": "dot"}))
    unit = f"{metric.title} (%)" if metric.is_share else metric.label
    panel = Panel(unit, traces)
    return PageChart(metric.title, found.unit.axis, [panel], is_log_x=is_wide(left, right), size="wide")


def _by_seed(found: Capacity) -> Iterator[PageChart]:
    """The highest rate that each seed keeps: how much is chance."""
    known = {seed: rate * found.unit.times for seed, rate in found.by_seed.items() if rate is not None}
    if len(known) < 2:
        return
    seeds = [f"{seed}" for seed in known]
    traces = [points(f"highest {found.unit.what} kept", seeds, [*known.values()], HOLDS, "seed %{x}: %{y:.4~g}")]
    if found.bound is not None:
        at = found.bound.rate * found.unit.times
        traces.append(line("capacity", [seeds[0], seeds[-1]], [at, at], BOUND, f"{at:.4g}"))
    panel = Panel(found.unit.axis, traces)
    yield PageChart(
        f"How much is chance: the highest {found.unit.what} of each seed",
        "seed",
        [panel],
        size="wide",
        x_axis={"type": "category"},
    )


def _table(found: Capacity) -> PageTable:
    metrics = [each.metric for each in found.limits]
    rows = [
        (
            f"{run.rate * found.unit.times:.4g}",
            str(run.seed),
            *(metric.text(run.means[metric.key]) for metric in metrics),
            "; ".join(run.broken) or "holds",
        )
        for run in sorted(found.tried, key=lambda run: (run.rate, run.seed))
    ]
    header = (found.unit.words, "seed", *(metric.label for metric in metrics), "")
    return PageTable("Every run", header, rows, "Every figure is in trials.csv.")
