"""The page of candidates over several loads: a curve each, with intervals, and who is best where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from simbatch.sim.metrics.metric import Metric
from simbatch.sim.report import style
from simbatch.sim.report.page.charts import PageChart, Panel, around, is_wide, limit, line
from simbatch.sim.report.page.page import PageTable, ReportPage
from simbatch.sim.report.page.settings import (
    differing_settings,
    settings_tables,
    shared_warnings,
    trust_line,
    trust_of_all,
)
from simbatch.sim.results.experiment import OverLoads
from simbatch.sim.results.runs import MetricRow

ONE_A_LOAD = "one run a load says nothing of chance; --replications 10 gives intervals"


def loads_page(over: OverLoads, shown: Sequence[Metric], text: str) -> ReportPage:
    """Candidates, or a single one, at several loads."""
    first, seeds = over.at[0], over.at[0].seeds
    summaries = {label: runs[0] for label, runs in first.summaries.items()}
    runs = f"{len(seeds)} seeds each" if len(seeds) > 1 else "one run each"
    return ReportPage(
        title=f"{over.name} at {len(over.rates)} loads: {', '.join(over.labels)}",
        about=f"{over.axis} {over.rates[0]:g} to {over.rates[-1]:g}, {runs}, simulated by simbatch compare --rate",
        answer=[*_by_load(over, shown), *trust_line(summaries)],
        warnings=[*shared_warnings(summaries)],
        charts=[_load_chart(over, metric) for metric in shown],
        tables=[_load_table(over, metric) for metric in shown],
        settings=[differing_settings(summaries), *settings_tables(next(iter(summaries.values()))["simbatch"])],
        trust=[*trust_of_all(summaries)],
        scenario=over.scenario,
        seeds=seeds,
        text=text,
    )


def _by_load(over: OverLoads, shown: Sequence[Metric]) -> Iterator[tuple[str, str]]:
    """Who is best at which load in each figure, or how a single candidate fares."""
    for metric in shown:
        found = []
        for rate, at in zip(over.rates, over.at, strict=True):
            row = MetricRow(metric, {label: runs.mean(metric) for label, runs in at.runs.items()}, decimals=1)
            whose = row.best if len(over.labels) > 1 else over.labels
            names = "" if len(over.labels) == 1 else f"{' and '.join(whose) or 'all alike'}, "
            found.append(f"{rate:g}: {names}{row.text((whose or over.labels)[0])}")
        yield metric.label, f"at {'; '.join(found)}."
    chance = "means; whiskers and tables have the 95 % intervals" if len(over.at[0].seeds) > 1 else ONE_A_LOAD
    yield "How sure", f"{chance}."


def _load_chart(over: OverLoads, metric: Metric) -> PageChart:
    """A curve a candidate, with its intervals, and the SLO's line."""
    scale = 100 if metric.is_share else 1
    unit = f"{metric.title} (%)" if metric.is_share else metric.label
    colours, traces, drawn = style.colours(over.labels), [], []
    for label, found in over.points(metric).items():
        columns = [[None if value is None else scale * value for value in (p.mean, p.low, p.high)] for p in found]
        mean, low, high = ([column[i] for column in columns] for i in range(3))
        whiskers = around(mean, low, high)
        others = {"mode": "lines+markers", **({"error_y": whiskers} if whiskers else {})}
        traces.append(line(label, over.rates, mean, colours[label], "%{y:,.4~g} at %{x:g}", **others))
        drawn += [value for value in mean if value is not None]
    if (bound := over.limits.get(metric.key.removeprefix("p99_").removesuffix("_ms"))) is not None:
        traces.append(limit(f"SLO {bound:g} ms", [over.rates[0], over.rates[-1]], [bound, bound]))
    is_log = metric.kind == "ms" and bool(drawn) and is_wide(min(drawn), max(drawn))
    return PageChart(metric.title, over.axis, [Panel(unit, traces, is_log=is_log)])


def _load_table(over: OverLoads, metric: Metric) -> PageTable:
    columns = [
        [metric.text_with(point.mean, point.low, point.high, decimals=1) for point in found]
        for found in over.points(metric).values()
    ]
    rows = [(f"{rate:g}", *cells) for rate, *cells in zip(over.rates, *columns, strict=True)]
    return PageTable(metric.label, (over.axis, *over.labels), rows)
