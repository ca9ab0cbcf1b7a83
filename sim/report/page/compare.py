"""Pages of comparisons on the same arrivals: candidates under one seed, or under several with intervals.

Over several loads: a curve each, with intervals, and who is best where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simbatch.sim.engine.record import FINISHED
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.latencies import latencies_ms
from simbatch.sim.metrics.registry import REGISTRY, WITHIN_SLO, Metric
from simbatch.sim.report import style
from simbatch.sim.report.compare_pictures import clipped, percent_ticks
from simbatch.sim.report.figures import best_in, headline, said
from simbatch.sim.report.page.charts import (
    PageChart,
    Panel,
    Trace,
    around,
    bars,
    beside,
    distribution,
    is_wide,
    limit,
    line,
    points,
)
from simbatch.sim.report.page.page import (
    PageTable,
    ReportPage,
    differing_settings,
    settings_tables,
    shared_warnings,
    trust_line,
    trust_of_all,
)
from simbatch.sim.report.run_pictures import NUM_BINS, arrivals, binned
from simbatch.sim.results import OverLoads, SideBySide
from simbatch.sim.results.runs import Difference, MeasuredRun, MetricRow, Summary
from simbatch.sim.text import percent

MAX_NAME = 16  # characters of a candidate below its bar
Results = Mapping[str, MeasuredRun]


def comparison_page(results: Results, rows: Sequence[MetricRow], text: str) -> ReportPage:
    """Candidates on the same arrivals under one seed."""
    labels, facts = [*results], next(iter(results.values())).facts
    chosen = [*headline(rows, lambda row: row.metric)]
    answer = [
        ("Best", " ".join(best_in(chosen, labels))),
        *_kept({label: [result.summary] for label, result in results.items()}),
        ("How sure", f"one run each, under seed {facts.seed}: --replications 10 says which differences are real."),
    ]
    table = PageTable("All figures, * the best", ("", *labels), [_cells(row) for row in rows])
    return _page(results, answer, [*_bar_charts(chosen), *_run_charts(results)], [table], [facts.seed], text)


def replicated_page(compared: SideBySide, results: Results, text: str) -> ReportPage:
    """Candidates under several seeds; `results`: those of the first, whose curves are drawn."""
    base, *others = compared.labels
    rows = [*compared.rows()]
    every = [*zip(rows, compared.differences, strict=True)]
    chosen = [*headline(every, lambda pair: pair[0].metric)]
    answer = [*_kept(compared.summaries)]
    for i, other in enumerate(others):
        sentence = " ".join(said([differences[i] for _, differences in chosen], other, base))
        answer.append((other, sentence.partition(": ")[2]))
    if others:
        answer.append(("How sure", " ".join(compared.multiplicity())))
    charts = [*_forest(chosen, base, others), *_bar_charts([row for row, _ in chosen], compared), *_run_charts(results)]
    tables = [_differences(every, i, base, other) for i, other in enumerate(others)]
    return _page(results, answer, charts, tables, compared.seeds, text)


def _page(
    results: Results,
    answer: Sequence[tuple[str, str]],
    charts: Sequence[PageChart],
    tables: Sequence[PageTable],
    seeds: Sequence[int],
    text: str,
) -> ReportPage:
    facts = next(iter(results.values())).facts
    summaries = {label: result.summary for label, result in results.items()}
    return ReportPage(
        title=f"{facts.scenario_name}: {', '.join(results)}",
        about=f"{len(results)} candidates on the same arrivals, simulated by simbatch compare",
        answer=[*answer, *trust_line(summaries)],
        warnings=[*shared_warnings(summaries)],
        charts=charts,
        tables=tables,
        settings=[differing_settings(summaries), *settings_tables(next(iter(summaries.values()))["simbatch"])],
        trust=[*trust_of_all(summaries)],
        scenario=facts.scenario,
        seeds=seeds,
        text=text,
    )


def _cells(row: MetricRow) -> tuple[str, ...]:
    return (row.metric.label, *(row.cell(label) for label in row.values))


def _kept(summaries: Mapping[str, Sequence[Summary]]) -> Iterator[tuple[str, str]]:
    """How many requests of each candidate keep the SLO."""
    metric = REGISTRY[WITHIN_SLO]
    shares = {label: [metric.of(summary) for summary in runs] for label, runs in summaries.items()}
    means = {label: sum(each) / len(each) for label, each in shares.items() if None not in each}  # type: ignore[arg-type]
    if means:
        yield "SLO", f"kept by {', '.join(f'{percent(share)} ({label})' for label, share in means.items())}."


def _bar_charts(rows: Sequence[MetricRow], compared: SideBySide | None = None) -> Iterator[PageChart]:
    """A small chart for each headline figure, with intervals where there are several seeds."""
    for row in rows:
        labels = [*row.values]
        known = [None if compared is None else compared.point(row.metric, label) for label in labels]
        low, high = ([None if point is None else getattr(point, end) for point in known] for end in ("low", "high"))
        whiskers = around([*row.values.values()], low, high)
        scale = 100 if row.metric.is_share else 1
        values = [None if value is None else scale * value for value in row.values.values()]
        is_ms = row.metric.kind == "ms"
        texts = [style.duration_text(v) if is_ms else row.text(label) for label, v in row.values.items()]
        colours = [*style.colours(labels).values()]
        names = [label if len(label) <= MAX_NAME else f"{label[: MAX_NAME - 3]}..." for label in labels]
        places = [f"{i}" for i in range(len(labels))]
        others: dict[str, Any] = {
            "customdata": labels,
            "text": texts,
            "textposition": "inside",
            "insidetextanchor": "start",
            "textangle": 0,
        }
        if whiskers:
            others["error_y"] = whiskers | {
                key: [scale * value for value in whiskers[key]] for key in ("array", "arrayminus")
            }
        trace = bars(row.metric.title, places, values, colours, "%{customdata}: %{text}", **others)
        ticks = {"type": "category", "tickvals": places, "ticktext": names}
        unit = "%" if row.metric.is_share else ""
        yield PageChart(row.metric.label, "", [Panel(unit, [trace])], size="small", x_axis=ticks)


def _run_charts(results: Results) -> Iterator[PageChart]:
    """Distributions of latencies and what happens when, a colour a candidate."""
    colours = style.colours([*results])
    limits = next(iter(results.values())).facts.slo.limits()
    for name in ("ttft", "tpot", "e2el"):
        traces: list[Trace] = []
        low, high = np.inf, 0.0
        for label, result in results.items():
            values = latencies_ms(result.record, result.record.requests.status == FINISHED)[name]
            if len(values):
                traces.append(distribution(label, *style.sorted_shares(values), colours[label]))
                low, high = min(low, float(values.min())), max(high, float(values.max()))
        if traces:
            bound = limits.get(name)
            slo = [] if bound is None else [limit(f"SLO {bound:g} ms", [bound, bound], [0, 100])]
            axis, panel = f"{name.upper()} (ms)", Panel("% of requests", [*beside(traces), *slo], top=101)
            is_log = is_wide(low, high)
            yield PageChart(f"{name.upper()} by candidate", axis, [panel], is_log_x=is_log, size="third")
    yield _time_chart(results, colours)


def _time_chart(results: Results, colours: Mapping[str, str]) -> PageChart:
    first = next(iter(results.values()))
    edges, sent, _ = arrivals(first.record)
    look: dict[str, Any] = {"line": {"shape": "hv", "width": 1.4}}
    panels = [Panel("req/s", [line("arrivals", edges[:-1], sent, "#8A8A8A", "%{y:,.4~g}", **look)])]
    for unit, curve in (("waiting", curves.waiting_with_preempted), ("running", curves.batch_size)):
        traces = []
        for label, result in results.items():
            edges, mean, _ = binned(curve(result.record), result.record)
            legend = {"legendgroup": label, "showlegend": unit == "waiting"}
            traces.append(line(label, edges[:-1], mean, colours[label], "%{y:,.4~g}", **look, **legend))
        panels.append(Panel(unit, beside(traces)))
    seed = f" of seed {first.facts.seed}" if len(results) > 1 else ""
    note = f"The run{seed} of each candidate; means over {NUM_BINS} equal parts."
    return PageChart("What happens when", "time (s)", panels, note, size="wide")


def _forest(
    chosen: Sequence[tuple[MetricRow, Sequence[Difference]]], base: str, others: Sequence[str]
) -> Iterator[PageChart]:
    """How far each is from the first in percent, with intervals; clear of the line is a difference that is shown."""
    colours = style.colours([base, *others])
    chosen = [pair for pair in chosen if any(difference.ratio is not None for difference in pair[1])]
    names = [row.metric.title for row, _ in chosen]
    traces, ends = [], [0.97, 1.03]
    for i, other in enumerate(others):
        known = [
            (place, found.ratio, found.verdict)
            for place, (_, differences) in enumerate(chosen)
            if (found := differences[i]).ratio is not None
        ]
        if not known:
            continue
        places = [place + 0.6 * ((i + 1) / (len(others) + 1) - 0.5) for place, _, _ in known]
        mean, low, high = (
            [clipped(getattr(ratio, end)) for _, ratio, _ in known] for end in ("estimate", "low", "high")
        )
        ends += [*low, *high]
        texts = [
            f"{names[place]}: {100 * (ratio.low - 1):+.1f} to {100 * (ratio.high - 1):+.1f} %, {verdict}"
            for place, ratio, verdict in known
        ]
        whiskers = {"error_x": around(mean, low, high), "text": texts}
        traces.append(points(other, mean, places, colours[other], "%{text}", **whiskers))
    if not traces:
        return
    traces.append(line(base, [1, 1], [-0.5, len(names) - 0.5], colours[base], base, line={"width": 1.2}))
    axis = {"tickvals": [*range(len(names))], "ticktext": names, "range": [len(names) - 0.5, -0.5]}
    note = (
        "Dots: differences of the means; lines: intervals over the seeds, pair by pair. "
        "One that crosses the line shows no difference. The axis is logarithmic."
    )
    values, texts = percent_ticks(min(ends), max(ends))
    ticks = {"type": "log", "tickvals": values, "ticktext": texts}
    panels, x = [Panel("", traces, axis=axis)], f"difference from {base}"
    yield PageChart(f"Against {base}", x, panels, note, size="wide", num_rows=len(names), x_axis=ticks)


def _differences(every: Sequence[tuple[MetricRow, Sequence[Difference]]], i: int, base: str, other: str) -> PageTable:
    shown = [(row, differences[i]) for row, differences in every if differences[i].interval is not None]
    rows = [(row.metric.label, row.text(base), row.text(other), *difference.cells()) for row, difference in shown]
    header = ("", base, other, "difference", "interval", "in percent", "verdict")
    return PageTable(f"{other} against {base}", header, rows)


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
    traces = beside(traces)
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
