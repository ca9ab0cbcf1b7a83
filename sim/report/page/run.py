"""The page of one run: how long users wait, what happens when, who waits longest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.metrics import curves
from simbatch.sim.metrics.columns import request_ids
from simbatch.sim.metrics.registry import LATENCIES
from simbatch.sim.metrics.run_figures import shares_per_bin
from simbatch.sim.report import style
from simbatch.sim.report.console import LATENCY_HEADERS, report
from simbatch.sim.report.engine_text import answer
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, distribution, is_wide, limit, line, points
from simbatch.sim.report.page.page import (
    PageTable,
    ReportPage,
    bands_table,
    figures_table,
    groups_table,
    latency_table,
    pairs,
    settings_tables,
    trust_rows,
)
from simbatch.sim.report.run_pictures import NUM_BINS, Series, arrivals, binned, distributions, edges_ps, end_s
from simbatch.sim.report.sessions import COLUMNS, slo_rows, turn_cells
from simbatch.sim.results.runs import MeasuredRun
from simbatch.sim.text import percent

MAX_DOTS = 4000  # requests that are drawn one by one
MAX_REPLICAS = 64  # that are drawn as bars
RUNNING, WAITING, KV, HOST, WORKS, *_ = style.PALETTE
ARRIVALS = "#8A8A8A"


def run_page(result: MeasuredRun) -> ReportPage:
    """Everything that the page of a run shows."""
    summary, facts = result.summary, result.facts
    ours = summary["simbatch"]
    return ReportPage(
        title=f"{facts.scenario_name} under policy {facts.policy}",
        about=f"{ours['requests']['total']:,} requests on {facts.profile}, simulated by simbatch run",
        answer=pairs([*answer(summary)]),
        warnings=ours["warnings"],
        charts=[
            *_latency_charts(result),
            *turn_charts(ours),
            _time_chart(result),
            *_arrival_chart(result),
            *_replica_chart(result),
        ],
        tables=[
            latency_table(summary),
            figures_table(summary),
            *bands_table(ours.get("bands"), lambda metric: metric.of(summary)),
            *session_tables(ours),
            *groups_table(ours),
        ],
        settings=[*settings_tables(ours)],
        trust=[*trust_rows(ours)],
        scenario=facts.scenario,
        seeds=[facts.seed],
        text=report(summary, facts, verbose=True),
    )


def _latency_charts(result: MeasuredRun) -> Iterator[PageChart]:
    """How many wait how long, and the SLO."""
    everything, by_class = distributions(result)
    colours = style.colours([*by_class])
    for name in LATENCIES:
        if name not in everything:
            continue
        values, shares = everything[name]
        what = "gaps" if name == "itl" else "requests"
        traces = [distribution(f"all {what}", values, shares, style.INK)]
        traces += [
            distribution(label, *found[name], colours[label], width=1.4)
            for label, found in by_class.items()
            if name in found
        ]
        low, high = float(values[0]), float(values[-1])
        if (bound := result.facts.slo.limits().get(name)) is not None:
            share = result.summary["simbatch"]["slo_share"][name]
            traces.append(limit(f"SLO {bound:g} ms: {percent(share)} within", [bound, bound], [0, 100]))
            low, high = min(low, bound), max(high, bound)
        title = LATENCY_HEADERS[name].partition(" (")[0].lower()
        panel = Panel(f"% of {what}", traces, top=101)
        yield PageChart(f"{name.upper()}: {title}", f"{name.upper()} (ms)", [panel], is_log_x=is_wide(low, high))


def _time_chart(result: MeasuredRun) -> PageChart:
    """Arrivals, requests, KV cache and device over the same time."""
    record = result.record
    usable = max(1, record.num_usable_blocks)
    sent, waiting = arrivals(record), binned(curves.waiting_with_preempted(record), record)
    batch, used = binned(curves.batch_size(record), record), binned(curves.used_blocks(record), record)
    panels = [
        Panel("req/s", [_over(sent, "arrivals", ARRIVALS)]),
        Panel(
            "requests",
            [
                _over(waiting, "waiting", WAITING),
                _over(batch, "running", RUNNING),
                _over(waiting, "waiting, peak", WAITING, is_peak=True),
                _over(batch, "running, peak", RUNNING, is_peak=True),
            ],
        ),
        Panel("KV cache (%)", [_over(used, "KV cache in use", KV, 100 / usable)], top=102),
    ]
    if result.facts.has_host:
        edges = edges_ps(record)
        worked, waited = shares_per_bin(record, result.facts, edges)
        times = (edges / 1e12, 100 * worked, worked), (edges / 1e12, 100 * waited, waited)
        lines = [_over(times[0], "device works", WORKS), _over(times[1], "waits for the host", HOST)]
        panels.append(Panel("time (%)", lines, top=102))
    note = f"Means over {NUM_BINS} equal parts of the run, {style.duration_text(1000 * end_s(record) / NUM_BINS)} each."
    return PageChart("What happens when", "time (s)", panels, note, size="wide")


def _over(series: Series, name: str, colour: str, scale: float = 1.0, *, is_peak: bool = False) -> Trace:
    edges, mean, peak = series
    values = scale * (peak if is_peak else mean)
    look = {"shape": "hv", "width": 1 if is_peak else 1.6, **({"dash": "dot"} if is_peak else {})}
    hidden = {"visible": "legendonly"} if is_peak else {}
    return line(name, edges[:-1], values, colour, "%{y:,.4~g}", line=look, **hidden)


def _arrival_chart(result: MeasuredRun) -> Iterator[PageChart]:
    """Every request's latencies by when it came; of many the slowest and an even part of the others."""
    columns = {name: 1000 * result.requests[f"{name}_s"] for name in ("ttft", "tpot", "e2el")}
    shown, note = _chosen(columns["e2el"])
    if not len(shown):
        return
    ids, arrival_s = request_ids(result.record), result.requests["arrival_s"]
    texts = [ids[i] for i in shown]
    traces = []
    for colour, (name, values) in zip(style.PALETTE, columns.items(), strict=False):
        look = {"marker": {"size": 5, "opacity": 0.55}, **({} if name == "ttft" else {"visible": "legendonly"})}
        hover = "request %{text}: %{y:,.1f} ms, sent at %{x:,.1f} s"
        traces.append(points(name.upper(), arrival_s[shown], values[shown], colour, hover, text=texts, **look))
    ends = [float(arrival_s[shown].min()), float(arrival_s[shown].max())]
    for name, bound in result.facts.slo.limits().items():
        hidden = {} if name == "ttft" else {"visible": "legendonly"}
        traces.append(limit(f"SLO {name.upper()}", ends, [bound, bound], **hidden))
    yield PageChart("Which requests waited long", "sent at (s)", [Panel("ms", traces, is_log=True)], note, size="wide")


def _chosen(e2el: NDArray[np.float64]) -> tuple[NDArray[np.int64], str]:
    """Which requests are drawn, and what is to be said of it; those that never finished have no latency."""
    finished = np.flatnonzero(np.isfinite(e2el))
    tell = "simbatch explain FILE --request ID tells the life of one."
    if len(finished) <= MAX_DOTS:
        return finished, f"A dot a request. {tell}"
    slowest = finished[np.argsort(-e2el[finished], kind="stable")[: MAX_DOTS // 4]]
    even = finished[np.linspace(0, len(finished) - 1, MAX_DOTS - len(slowest)).astype(np.int64)]
    shown = np.union1d(slowest, even)
    thinned = f"{len(shown):,} of {len(finished):,} requests: the {len(slowest):,} with the longest E2EL, and every "
    return shown, f"{thinned}{len(finished) // len(even):,}th or so of all. {tell}"


def _replica_chart(result: MeasuredRun) -> Iterator[PageChart]:
    """How evenly the router spreads the load."""
    cluster = result.summary["simbatch"].get("cluster")
    if cluster is None:
        return
    rows = sorted(cluster["replicas"], key=lambda row: -row["share_of_load"])[:MAX_REPLICAS]
    names = [f"replica {row['replica']}" for row in rows]
    load = np.array([row["share_of_load"] for row in rows]) * len(cluster["replicas"])
    sent = np.array([row["num_requests"] for row in rows]) * len(cluster["replicas"])
    sent = sent / max(1, sum(row["num_requests"] for row in cluster["replicas"]))
    traces = [
        points("load (device's work)", names, load, RUNNING, "%{x}: %{y:.2f} of the mean"),
        points("requests", names, sent, WAITING, "%{x}: %{y:.2f} of the mean"),
    ]
    note = f"The {MAX_REPLICAS} most loaded of {len(cluster['replicas']):,}." if len(names) == MAX_REPLICAS else ""
    yield PageChart("How even the load is", "", [Panel("over the mean", traces)], note, size="wide")


def session_tables(ours: Mapping[str, Any]) -> Iterator[PageTable]:
    """None where nobody had a session; `ours` as in summary.json."""
    if (sessions := ours.get("sessions")) is None:
        return
    if rows := [*slo_rows(sessions)]:
        yield PageTable("Sessions within SLO", ("", ""), rows)
    yield PageTable("Sessions, turn by turn (TTFT in ms)", COLUMNS, [turn_cells(row) for row in sessions["turns"]])


def turn_charts(ours: Mapping[str, Any]) -> Iterator[PageChart]:
    """TTFT and hit rate by turn."""
    turns = ours.get("sessions", {}).get("turns", ())
    if len(turns) < 2:
        return
    xs = [float(row["turn"]) for row in turns]
    ttft = [
        line(
            statistic, xs, [row[f"{statistic}_ttft_ms"] for row in turns], colour, "%{y:,.1f} ms", mode="lines+markers"
        )
        for statistic, colour in (("p99", style.PALETTE[1]), ("mean", style.PALETTE[0]))
    ]
    shares = [None if (share := row["cached_tokens_share"]) is None else 100 * share for row in turns]
    hits = line("from the prefix cache", xs, shares, style.PALETTE[2], "%{y:.1f} %", mode="lines+markers")
    panels = [Panel("TTFT (ms)", ttft), Panel("of the prompt (%)", [hits], top=101)]
    note = "Later turns are taken together at the last point." if turns[-1]["last_turn"] > turns[-1]["turn"] else ""
    yield PageChart("Sessions, turn by turn", "turns of the session before it", panels, note, size="wide")
