"""The page of a validation: how far the simulation is off, real runs and simulated ones over each other."""

from __future__ import annotations

from collections.abc import Iterator
from math import log10
from typing import Any

from simbatch.profiler.validate import CLIENT, ComparedFigure, Validation
from simbatch.profiler.validate.many import SHOWN, Many
from simbatch.profiler.validate.pictures import LATENCIES, REAL, SIMULATED, latencies_of, panels_of
from simbatch.profiler.validate.report import (
    HEADERS,
    STEP_COLUMNS,
    TURN_COLUMNS,
    cells_of_many,
    figure_cells,
    figure_headers,
    step_cells,
    text_of,
    turn_cells,
    verdict,
)
from simbatch.sim.report import style
from simbatch.sim.report.console import setting_text
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, distribution, is_wide, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, settings_tables, trust_rows
from simbatch.sim.report.run_pictures import NUM_BINS, binned

WARNED = "simulated: "  # what a note begins with that is a warning of the simulation


def validation_page(found: Validation | Many) -> ReportPage:
    """Of one validation, or of a table of many runs."""
    return _many_page(found) if isinstance(found, Many) else _page(found)


def _page(found: Validation) -> ReportPage:
    facts, ours = found.simulated.facts, found.simulated.result.summary["simbatch"]
    repeats, has_bounds = len(found.real), found.bounds is not None
    rows = [tuple(figure_cells(figure, repeats > 1, has_bounds)) for figure in found.figures]
    header = ("", *figure_headers(repeats, has_bounds))
    return ReportPage(
        title=f"{found.name}: real and simulated",
        about=f"{len(found.simulated.record.requests):,} requests, {_runs(repeats)}, by simbatch validate",
        answer=[*_answer(found), *([("Bounds", verdict(found))] if has_bounds else [])],
        warnings=[note for note in found.all_notes if note.startswith(WARNED)],
        charts=[*_error_chart(found.figures), *_distributions(found), *_time_chart(found)],
        tables=[PageTable("Every figure", header, rows), *_steps(found), *_turns(found), _notes(found.all_notes)],
        settings=[_source(found), *settings_tables(ours)],
        trust=[*trust_rows(ours)],
        scenario=facts.scenario,
        seeds=[facts.seed],
        text=text_of(found),
    )


def _runs(count: int) -> str:
    return "one real run" if count == 1 else f"{count} real runs"


def _answer(found: Validation) -> Iterator[tuple[str, str]]:
    """The four figures that everybody asks for."""
    by_key = {figure.metric.key: figure for figure in found.figures if figure.clock == CLIENT}
    for key in SHOWN:
        figure = by_key.get(key)
        if figure is not None and figure.error is not None:
            metric = figure.metric
            values = f"real {metric.text(figure.median)}, simulated {metric.text(figure.simulated)}"
            spread = "" if figure.spread is None else f"; the real runs differ by {figure.spread:.1%} among themselves"
            yield metric.label, f"{figure.error:+.1%} off: {values}{spread}."


def _error_chart(figures: list[ComparedFigure]) -> Iterator[PageChart]:
    """How far each figure is off, in percent, and its bound where it has one."""
    known = [figure for figure in figures if figure.clock == CLIENT and figure.error is not None]
    if not known:
        return
    names = [figure.metric.title for figure in known]
    errors = [100 * (figure.error or 0.0) for figure in known]
    traces: list[Trace] = [points("error", errors, names, SIMULATED, "%{y}: %{x:+.1f} %")]
    bounded = [(name, 100 * f.bound) for name, f in zip(names, known, strict=True) if f.bound is not None]
    for sign in (1, -1) if bounded else ():
        places, values = [name for name, _ in bounded], [sign * share for _, share in bounded]
        look = {"marker": {"symbol": "line-ns-open", "size": 14, "line": {"width": 2}}, "legendgroup": "bound"}
        traces.append(points("bound", values, places, style.LIMIT, "bound %{x:+g} %", showlegend=sign > 0, **look))
    if any(figure.spread for figure in known):
        widths = [100 * (figure.spread or 0.0) for figure in known]
        whiskers = {"type": "data", "array": widths, "thickness": 1.2, "width": 4}
        zeros = [0.0] * len(names)
        traces.append(points("real runs' own spread", zeros, names, REAL, "%{y}", error_x=whiskers, marker={"size": 4}))
    axis = {"type": "category", "rangemode": "normal", "autorange": "reversed"}
    zero = {"zeroline": True, "zerolinecolor": REAL}
    panel = Panel("", traces, axis=axis)
    yield PageChart("How far each figure is off", "error (%)", [panel], size="wide", x_axis=zero, num_rows=len(names))


def _distributions(found: Validation) -> Iterator[PageChart]:
    """Every real run in ink, the simulation in colour."""
    for name, title in LATENCIES.items():
        runs = [(_name(i, found), run, REAL, 1.2) for i, run in enumerate(found.recorded)]
        traces = []
        for label, run, colour, width in [*runs, ("simulated", found.simulated, SIMULATED, 2.2)]:
            values = latencies_of(run, name)
            if len(values):
                traces.append(distribution(label, *style.sorted_shares(values), colour, width=width))
        if len(traces) > 1:
            panel = Panel("% of requests", traces, top=101)
            is_log = is_wide(*span(traces, "x"))
            yield PageChart(title, f"{title} (ms)", [panel], is_log_x=is_log, size="third")


def _name(i: int, found: Validation) -> str:
    return "real" if len(found.recorded) == 1 else f"real, run {i + 1}"


def _time_chart(found: Validation) -> Iterator[PageChart]:
    if not found.recorded:
        return
    panels = []
    for i, (title, _, curve) in enumerate(panels_of(found)):
        runs = [(_name(j, found), run.record, REAL, 1.1) for j, run in enumerate(found.recorded)]
        traces = []
        for label, record, colour, width in [*runs, ("simulated", found.simulated.record, SIMULATED, 1.6)]:
            edges, mean, _ = binned(curve(record), record)
            look: dict[str, Any] = {"line": {"shape": "hv", "width": width}, "legendgroup": label, "showlegend": not i}
            traces.append(line(label, edges[:-1], mean, colour, "%{y:,.4~g}", **look))
        panels.append(Panel(title, traces))
    note = f"Requests; means over {NUM_BINS} equal parts of each run."
    yield PageChart("What happens when", "time (s)", panels, note, size="wide")


def _steps(found: Validation) -> Iterator[PageTable]:
    if found.steps:
        title = "Where an error comes from: the real engine's steps, and what the profile says of them"
        yield PageTable(title, STEP_COLUMNS, [step_cells(row) for row in found.steps])


def _turns(found: Validation) -> Iterator[PageTable]:
    if found.turns:
        yield PageTable("Sessions, turn by turn", TURN_COLUMNS, [turn_cells(row) for row in found.turns])


def _notes(notes: list[str]) -> PageTable:
    return PageTable("What to know of it", ("",), [(note,) for note in notes if not note.startswith(WARNED)])


def _source(found: Validation) -> PageTable:
    rows = [(key, setting_text(value)) for key, value in found.source.items() if not isinstance(value, (dict, list))]
    return PageTable("The real side", ("", ""), rows, num_left=2)


def _many_page(found: Many) -> ReportPage:
    first, worst = found.runs[0].validation, found.worst
    facts, ours = worst.validation.simulated.facts, worst.validation.simulated.result.summary["simbatch"]
    errors = {key: (found.median_error(key), found.bias(key)) for key in SHOWN}
    answer = [
        (HEADERS[key], f"half of the runs are off by {size:.1%} or less; the median error is {bias:+.1%}.")
        for key, (size, bias) in errors.items()
        if size is not None and bias is not None
    ]
    notes = {note: None for run in found.runs for note in run.validation.all_notes}
    return ReportPage(
        title=f"{first.name}: {len(found.runs)} real runs and their simulations",
        about="means of each run, by simbatch validate",
        answer=[*answer, ("Worst", f"{worst.name}: {'; '.join(found.why()) or 'no reason is known'}.")],
        warnings=[f"not compared: {name}: {reason}" for name, reason in found.not_compared],
        charts=[*(_agreement(found, name, title) for name, title in LATENCIES.items())],
        tables=[_many_table(found), _notes([*notes])],
        settings=[*settings_tables(ours)],
        trust=[*trust_rows(ours)],
        scenario=facts.scenario,
        seeds=[facts.seed],
        text=text_of(found),
    )


def _agreement(found: Many, name: str, title: str) -> PageChart:
    """Simulated over real, a dot a run; on the line they agree."""
    known = [(run.name, figure) for run in found.runs if (figure := run.figure(f"mean_{name}_ms")) is not None]
    x, y = [figure.median for _, figure in known], [figure.simulated for _, figure in known]
    texts = [run for run, _ in known]
    traces = [points("runs", x, y, SIMULATED, "%{text}: real %{x:,.1f}, simulated %{y:,.1f} ms", text=texts)]
    low, high = (bound(span(traces, axis)[i] for axis in "xy") for i, bound in enumerate((min, max)))
    traces.append(line("they agree", [low, high], [low, high], REAL, "they agree", line={"width": 1}))
    is_log = is_wide(low, high)
    ends = [0.9 * low, 1.1 * high]
    square = {"range": [log10(end) for end in ends] if is_log else ends}
    panel = Panel("simulated (ms)", traces, is_log=is_log, axis=square)
    return PageChart(f"Mean {title}", "real (ms)", [panel], is_log_x=is_log, size="third", x_axis=square)


def _many_table(found: Many) -> PageTable:
    header = ["run", "load", "requests", "tokens in, out"]
    for key in SHOWN:
        header += [f"{HEADERS[key]}{' (ms)' if key.endswith('_ms') else ''}", "error"]
    rows = [(run.name, *cells_of_many(run)) for run in found.runs]
    return PageTable("Every run", header, rows, num_left=2)
