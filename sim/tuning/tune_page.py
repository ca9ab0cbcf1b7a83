"""The page of a search: what to take, what was tried in the plane of two figures, what each key changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from simbatch.sim.metrics.run_figures import Metric
from simbatch.sim.report import style
from simbatch.sim.report.engine_text import trust_of
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, is_wide, limit, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, bands_table, settings_tables, trust_rows
from simbatch.sim.scenario import resolve
from simbatch.sim.tuning import Tuned
from simbatch.sim.tuning.finalists import TriedSettings, setting_words
from simbatch.sim.tuning.space import values_of
from simbatch.sim.tuning.tune_files import picture_axes
from simbatch.sim.tuning.tune_report import confirmed, goal_words, marks, report, setting_cell, shown_metrics, verdict
from simbatch.sim.tuning.vllm_flags import set_flags, vllm_serve

TRIED, BROKEN, FRONT, BEST, BASELINE = "#8A8A8A", "#C8C8C8", *style.PALETTE[:1], *style.PALETTE[2:4]


def tune_page(tuned: Tuned) -> ReportPage:
    """Of a search with one figure as its goal, or of a Pareto set."""
    first = tuned.best.runs.summaries[0]["simbatch"]
    return ReportPage(
        title=f"{tuned.scenario.name}: {goal_words(tuned.goal)}",
        about=f"{len(tuned.trials):,} of {len(tuned.space.points):,} settings tried by simbatch tune",
        answer=[*_answer(tuned), ("Trust", f"{trust_of(first['profile'])}.")],
        warnings=[warning for warning in tuned.best.warnings if not warning.startswith("Overloaded")],
        charts=[_plane(tuned), *_by_key(tuned)],
        tables=[_table(tuned), *_bands(tuned)],
        settings=[*settings_tables(first)],
        trust=[*trust_rows(first)],
        scenario=resolve(tuned.scenario.override(tuned.best.settings)).dump(),
        seeds=tuned.seeds,
        text=report(tuned),
    )


def _answer(tuned: Tuned) -> Iterator[tuple[str, str]]:
    trial, own = tuned.recommended, tuned.baseline
    if trial is not None:
        metrics = [*tuned.goal.metrics, *(limit.metric for limit in tuned.goal.limits)]
        figures = (
            f"{metric.title} {metric.text(trial.means[metric.key])} ({metric.text(own.means[metric.key])} as it stands)"
            for metric in dict.fromkeys(metrics)
        )
        label = "Recommended" if tuned.is_feasible else "Least bad"
        yield label, f"{setting_words(trial.settings)}: {', '.join(figures)}."
    if said := " ".join(verdict(tuned)):
        yield "Verdict", said
    if sure := " ".join(confirmed(tuned)):
        yield "How sure", sure
    if trial is not None:
        yield "To serve it", vllm_serve(tuned.scenario, trial.settings)
        yield "To run it", f"simbatch run FILE {set_flags(trial.settings)}".rstrip()


def _plane(tuned: Tuned) -> PageChart:
    """A dot a setting; upwards and to the right what the goal is about."""
    up, right = picture_axes(tuned.goal)
    within = [trial for trial in tuned.trials if tuned.goal.is_met(trial.means)]
    broken = [trial for trial in tuned.trials if not tuned.goal.is_met(trial.means)]
    traces = [
        *_dots("limit broken", broken, up, right, BROKEN, symbol="x-thin-open", line={"width": 1.5, "color": TRIED}),
        *_dots("tried", within, up, right, TRIED),
    ]
    if tuned.front:
        front = sorted(tuned.front, key=lambda trial: trial.means[right.key] or 0.0)
        look = {"mode": "lines+markers", "line": {"shape": "hv", "width": 1.5}}
        xs, ys = ([_value(trial, metric) for trial in front] for metric in (right, up))
        texts = [setting_words(trial.settings) for trial in front]
        traces.append(line("Pareto set", xs, ys, FRONT, HOVER, text=texts, **look))
    traces += _dots("as it stands", [tuned.baseline], up, right, BASELINE, symbol="square", size=12)
    if tuned.recommended is not None:
        name = "knee" if tuned.knee else "recommended" if tuned.is_feasible else "least bad"
        traces += _dots(name, [tuned.recommended], up, right, BEST, symbol="star", size=17)
    (left, most), (low, high) = span(traces, "x"), span(traces, "y")
    for each in tuned.goal.limits if traces else ():
        bound = 100 * each.bound if each.metric.is_share else each.bound
        if each.metric.key == right.key:
            traces.append(limit(str(each), [bound, bound], [min(0.0, low), high]))
        elif each.metric.key == up.key:
            traces.append(limit(str(each), [left, most], [bound, bound]))
    is_log = is_wide(left, most) and tuned.knee is None
    note = "A dot a setting: which one stands beside it when the pointer is on it."
    panel = Panel(_unit(up), traces)
    return PageChart("What was tried", _unit(right), [panel], note, is_log_x=is_log, size="wide")


def _bands(tuned: Tuned) -> Iterator[PageTable]:
    """Of the recommended settings."""
    if tuned.finalists is not None:
        yield from bands_table(tuned.finalists.bands.content(), lambda metric: tuned.best.means.get(metric.key))


HOVER = "%{text}: %{y:,.4~g}, %{x:,.4~g}"


def _dots(
    name: str, trials: Sequence[TriedSettings], up: Metric, right: Metric, colour: str, **marker: Any
) -> list[Trace]:
    known = [trial for trial in trials if None not in (trial.means[up.key], trial.means[right.key])]
    xs, ys = ([_value(trial, metric) for trial in known] for metric in (right, up))
    texts = [setting_words(trial.settings) for trial in known]
    return [points(name, xs, ys, colour, HOVER, text=texts, marker=marker)] if known else []


def _value(trial: TriedSettings, metric: Metric) -> float | None:
    value = trial.means[metric.key]
    return None if value is None else 100 * value if metric.is_share else value


def _unit(metric: Metric) -> str:
    return f"{metric.title} (%)" if metric.is_share else metric.label


def _by_key(tuned: Tuned) -> Iterator[PageChart]:
    """What each key that was searched does to the goal's first figure, with all else as it came."""
    metric, own = tuned.goal.metrics[0], values_of(tuned.scenario)
    for axis in tuned.space.axes:
        within: dict[bool, list[TriedSettings]] = {True: [], False: []}
        for trial in tuned.trials:
            within[tuned.goal.is_met(trial.means)].append(trial)
        traces = []
        for is_met, name, colour in ((True, "tried", style.PALETTE[0]), (False, "limit broken", BROKEN)):
            known = [trial for trial in within[is_met] if trial.means[metric.key] is not None]
            cells = [setting_cell(trial, axis.key, own) for trial in known]
            there = [(cell, trial) for cell, trial in zip(cells, known, strict=True) if cell != "-"]
            if there:
                texts = [setting_words(trial.settings) for _, trial in there]
                xs, ys = [cell for cell, _ in there], [_value(trial, metric) for _, trial in there]
                traces.append(points(name, xs, ys, colour, "%{text}: %{y:,.4~g}", text=texts))
        if traces:
            names = sorted({cell for trace in traces for cell in trace["x"]}, key=_order)
            ticks = {"type": "category", "categoryorder": "array", "categoryarray": names}
            yield PageChart(
                f"By {axis.key.rpartition('.')[2]}",
                axis.key,
                [Panel(_unit(metric), traces)],
                size="third",
                x_axis=ticks,
            )


def _order(cell: str) -> tuple[float, str]:
    """Numbers by size, names behind them."""
    try:
        return float(cell), cell
    except ValueError:
        return float("inf"), cell


def _table(tuned: Tuned) -> PageTable:
    metrics, axes, own = shown_metrics(tuned), tuned.space.axes, values_of(tuned.scenario)
    in_front = {trial.number for trial in tuned.front}
    trials = [*tuned.front, *(trial for trial in tuned.ranked() if trial.number not in in_front)]
    rows = [
        (
            "*" if trial is tuned.recommended else "",
            *(setting_cell(trial, axis.key, own) for axis in axes),
            *(metric.text(trial.means[metric.key]) for metric in metrics),
            marks(tuned, [trial]),
        )
        for trial in trials
    ]
    header = ("", *(axis.key for axis in axes), *(metric.heading or metric.label for metric in metrics), "")
    note = "The best first, * is recommended. Every figure is in trials.csv."
    return PageTable("What was tried", header, rows, note, 1 + len(axes))
