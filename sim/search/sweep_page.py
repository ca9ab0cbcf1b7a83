"""The page of a sweep: heat maps of two varied numbers, otherwise curves over one of them, and a row a setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from simbatch.sim.metrics.registry import GOODPUT, HIGHER, THROUGHPUT, Metric, shown
from simbatch.sim.report import style
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, around, border, heat, is_wide, limit, line, points
from simbatch.sim.report.page.page import (
    PageTable,
    ReportPage,
    settings_tables,
    shared_warnings,
    trust_line,
    trust_of_all,
)
from simbatch.sim.results.runs import Summary
from simbatch.sim.search.cells import Cell
from simbatch.sim.search.sweep_plot import Drawing, Row, choose, label_of

OVERLOADED = "overloaded"
CORNER = 0.36  # of a cell from its middle, where its mark stands beside its figure


def sweep_page(
    name: str,
    keys: Sequence[str],
    points_: Sequence[Row],
    cells: Sequence[Cell],
    summaries: Mapping[str, Summary],
    text: str,
) -> ReportPage:
    """Of the settings that are there: `points_` a row each, `summaries` by the key of the cell."""
    has_slo = any(point.get(GOODPUT) is not None for point in points_)
    unused = THROUGHPUT if has_slo else GOODPUT
    known = {key for point in points_ for key, value in point.items() if value is not None}
    metrics = shown("sweep", lambda metric: metric.key != unused and metric.key in known)
    by_label = {cell.label(): summaries[cell.key] for cell in cells if cell.key in summaries}
    first = next(iter(by_label.values()))
    limits = {key.removesuffix("_ms"): bound for key, bound in first["simbatch"]["slo"].items() if bound is not None}
    drawing = choose(points_, keys)
    return ReportPage(
        title=f"{name} by {' and '.join(keys)}",
        about=f"{len(points_):,} settings, {len(by_label):,} simulations by simbatch sweep",
        answer=[*_best(points_, keys, metrics), *_caution(points_), *trust_line(by_label)],
        warnings=[*_of_all(by_label)],
        charts=[] if drawing is None else [_chart(drawing, metric, limits) for metric in metrics],
        tables=[_table(points_, keys)],
        settings=[*settings_tables(first["simbatch"])],
        trust=[*trust_of_all(by_label)],
        scenario=cells[0].scenario,
        seeds=sorted({cell.seed for cell in cells}),
        text=text,
    )


def _of_all(by_label: Mapping[str, Summary]) -> Iterator[str]:
    """What every simulation warns of; overloaded ones have their mark."""
    yield from (warning for warning in shared_warnings(by_label) if warning.partition(": ")[0] not in by_label)


def _best(rows: Sequence[Row], keys: Sequence[str], metrics: Sequence[Metric]) -> Iterator[tuple[str, str]]:
    for metric in metrics:
        known = [row for row in rows if row.get(metric.key) is not None]
        if known:
            best = (max if metric.better == HIGHER else min)(known, key=lambda row, key=metric.key: row[key])  # type: ignore[misc]
            with_it = f" with {label_of(best, keys)}" if keys else ""
            yield f"Best {metric.title}", f"{_text(best, metric)}{with_it}."


def _caution(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    most = max(row["replications"] for row in rows)
    overloaded = sum(bool(row["overloaded_runs"]) for row in rows)
    chance = (
        f"means of {most} seeds with 95 % intervals" if most > 1 else "one run each; --replications 3 gives intervals"
    )
    queue = (
        f"; {overloaded} of {len(rows)} are overloaded, their latencies say how long the run was" if overloaded else ""
    )
    yield "How sure", f"{chance}{queue}."


def _chart(drawing: Drawing, metric: Metric, limits: Mapping[str, float]) -> PageChart:
    name = metric.key.removeprefix("p99_").removesuffix("_ms")
    bound = limits.get(name) if metric.key.startswith("p99_") else None
    if drawing.y is not None:
        return _heat_map(drawing, drawing.y, metric, bound)
    return _curves(drawing, metric, bound)


def _heat_map(drawing: Drawing, up: str, metric: Metric, bound: float | None) -> PageChart:
    columns, rows = (sorted({point[key] for point in drawing.points}) for key in (drawing.x, up))
    cells = np.full((len(rows), len(columns)), np.nan)
    texts = [["" for _ in columns] for _ in rows]
    crossed = []
    for point in drawing.points:
        row, column = rows.index(point[up]), columns.index(point[drawing.x])
        value = point.get(metric.key)
        cells[row, column] = np.nan if value is None else value
        texts[row][column] = metric.text(value)
        if point["overloaded_runs"]:
            crossed.append((column + CORNER, row + CORNER))
    traces = [heat(metric.title, cells, texts, is_high_good=metric.better == HIGHER)]
    note, is_inside = "", cells <= (np.inf if bound is None else bound)
    if bound is not None and is_inside.any() and not is_inside.all():
        traces.append(border(f"SLO {bound:g} ms", is_inside))
    elif bound is not None:
        note = f"{'All' if is_inside.all() else 'None'} of them within the SLO of {bound:g} ms."
    if crossed:
        marker = {"symbol": "x", "size": 8, "line": {"color": style.INK, "width": 1}}
        x, y = ([place[i] for place in crossed] for i in (0, 1))
        traces.append(points(OVERLOADED, x, y, "#FFFFFF", OVERLOADED, marker=marker))
    axes = [
        {"tickvals": [*range(len(values))], "ticktext": [f"{value:g}" for value in values], "showgrid": False}
        for values in (columns, rows)
    ]
    axes[1]["range"] = [-0.5, len(rows) - 0.5]
    return PageChart(metric.label, drawing.x, [Panel(up, traces, axis=axes[1])], note, x_axis=axes[0])


def _curves(drawing: Drawing, metric: Metric, bound: float | None) -> PageChart:
    groups: dict[str, list[Row]] = {}
    for point in drawing.points:
        if point.get(metric.key) is not None:
            groups.setdefault(label_of(point, drawing.others) or metric.title, []).append(point)
    is_number = all(isinstance(point[drawing.x], (int, float)) for point in drawing.points)
    scale, colours = (100 if metric.is_share else 1), style.colours([*groups])
    traces: list[Trace] = []
    for label, group in groups.items():
        group.sort(key=lambda point: point[drawing.x] if is_number else 0)
        mean, low, high = (
            [None if (value := point.get(f"{metric.key}{end}")) is None else scale * value for point in group]
            for end in ("", ".low", ".high")
        )
        xs: Any = [point[drawing.x] if is_number else label_of(point, [drawing.x]) for point in group]
        whiskers = {"error_y": found} if (found := around(mean, low, high)) else {}
        marks = [OVERLOADED if point["overloaded_runs"] else "" for point in group]
        look: dict[str, Any] = {"mode": "lines+markers" if is_number else "markers", "text": marks, **whiskers}
        traces.append(line(label, xs, mean, colours[label], "%{x}: %{y:,.4~g} %{text}", **look))
    values = [value for trace in traces for value in trace["y"] if value is not None]
    places = [x for trace in traces for x in trace["x"]]
    if bound is not None and places:
        ends = [min(places), max(places)] if is_number else [places[0], places[-1]]
        traces.append(limit(f"SLO {bound:g} ms", ends, [bound, bound]))
    is_log = metric.better != HIGHER and bool(values) and is_wide(min(values), max(values))
    is_log_x = is_number and bool(places) and is_wide(min(places), max(places))
    panel = Panel(metric.label, traces, is_log=is_log)
    return PageChart(metric.title, drawing.x, [panel], is_log_x=is_log_x)


def _table(rows: Sequence[Row], keys: Sequence[str]) -> PageTable:
    """A row a setting, with every headline figure."""
    metrics = shown("sweep", lambda metric: any(row.get(metric.key) is not None for row in rows))
    cells = [
        (
            *(label_of(row, [key]).removeprefix(f"{key.rpartition('.')[2]} ") for key in keys),
            *(_text(row, metric) for metric in metrics),
            OVERLOADED if row["overloaded_runs"] else "",
        )
        for row in rows
    ]
    note = "Every figure of every simulation is in summary.csv."
    return PageTable(
        "All settings", (*keys, *(metric.heading or metric.label for metric in metrics), ""), cells, note, len(keys)
    )


def _text(row: Row, metric: Metric) -> str:
    mean, low, high = (row.get(f"{metric.key}{end}") for end in ("", ".low", ".high"))
    return metric.text_with(mean, low, high)
