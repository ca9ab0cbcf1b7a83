"""The pages of a search and of a recommendation: what to take or paste, why, and what else was tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from simbatch.sim.metrics.registry import REGISTRY, WITHIN_SLO, Metric
from simbatch.sim.report import style
from simbatch.sim.report.engine_text import trust_of
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, is_wide, limit, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, bands_table, settings_tables, trust_rows
from simbatch.sim.scenario import resolve
from simbatch.sim.tuning import Tuned
from simbatch.sim.tuning.finalists import TriedSettings, setting_words
from simbatch.sim.tuning.recommend import BatchChoice, Recommendation
from simbatch.sim.tuning.recommend_report import all_notes, choices, doubts, evidence, not_enough, scenario_content
from simbatch.sim.tuning.recommend_report import report as recommended_report
from simbatch.sim.tuning.space import POLICY, values_of
from simbatch.sim.tuning.tune_files import picture_axes
from simbatch.sim.tuning.tune_report import (
    advice_label,
    confirmed,
    goal_words,
    marks,
    report,
    setting_cell,
    shown_metrics,
    verdict,
)
from simbatch.sim.tuning.vllm_flags import arguments, command, simbatch_run, vllm_serve

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
        yield advice_label(tuned), f"{setting_words(trial.settings)}: {', '.join(figures)}."
    if said := " ".join(verdict(tuned)):
        yield "Verdict", said
    if sure := " ".join(confirmed(tuned)):
        yield "How sure", sure
    if trial is not None:
        yield "To serve it", vllm_serve(tuned.scenario, trial.settings)
        yield "To run it", simbatch_run(tuned.scenario, trial.settings)


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
    note = "A dot is a setting: point at it to read which."
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
                f"By {'policy' if axis.key == POLICY else axis.key.rpartition('.')[2]}",
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


CHOSEN, TABLE, DEFAULT = style.PALETTE[2], style.PALETTE[3], style.INK
CURVES = (
    *style.PALETTE[:2],
    style.PALETTE[4],
    style.PALETTE[5],
    "#8C510A",
    "#8A8A8A",
)
MARKED = ("p99_ttft_ms", "p99_tpot_ms")


def recommend_page(found: Recommendation) -> ReportPage:
    """Of a use case on a profile."""
    first = found.trials[found.chosen].at_load.summaries[0]["simbatch"]
    given = arguments(found)
    header, rows = evidence(found)
    return ReportPage(
        title=f"{found.case.name} on {found.profile.name}: {found.chosen.max_num_seqs} sequences at most",
        about=f"{found.case.words}; {found.num_runs} simulations by simbatch recommend",
        answer=[
            ("Recommended", _words(found.chosen)),
            ("To serve it", command(given)),
            ("Rule of thumb", f"{found.case.thumb(found.profile.memory.total_bytes)}, in what follows the table's."),
            *_pairs(choices(found)),
            *_under("How sure", doubts(found)),
            *_under("SLO", not_enough(found)),
        ],
        warnings=all_notes(found),
        charts=[*_charts(found)],
        tables=[
            PageTable("Evidence", header, rows, f"Score: {found.unit}; * is recommended."),
            *_recommended_bands(found),
        ],
        settings=[*settings_tables(first)],
        trust=[*trust_rows(first)],
        scenario=scenario_content(found),
        seeds=[found.scenario.seed, *found.fresh_seeds],
        text=recommended_report(found),
    )


def _words(choice: BatchChoice) -> str:
    return f"max_num_seqs {choice.max_num_seqs}, max_num_batched_tokens {choice.max_num_batched_tokens:,}."


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    """What is said of a setting with its name; what goes on with it without."""
    for text in lines:
        label, colon, rest = text.partition(": ")
        yield (label, rest) if colon and not text.startswith(" ") and " " not in label else ("", text.strip())


def _under(label: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Lines under one label."""
    yield from ((label if not i else "", text.strip()) for i, text in enumerate(lines))


def _recommended_bands(found: Recommendation) -> Iterator[PageTable]:
    if found.bands is not None:
        trial = found.trials[found.chosen]
        note = f"Here: the mean of {len(trial.at_load.summaries)} seeds; each draw is a run under the first of them."
        yield from bands_table(found.bands.content(), lambda metric: trial.mean(metric.key), note)


def _charts(found: Recommendation) -> Iterator[PageChart]:
    """The score, then what users feel, over max_num_seqs: a curve for each max_num_batched_tokens."""
    yield _chart(found, "Score", found.unit, {choice: trial.score for choice, trial in found.trials.items()})
    metrics = [REGISTRY[key] for key in (*MARKED, *([WITHIN_SLO] if found.slo else []))]
    for metric in metrics:
        scale = 100 if metric.is_share else 1
        values = {choice: trial.mean(metric.key) for choice, trial in found.trials.items()}
        scaled = {choice: scale * value for choice, value in values.items() if value is not None}
        if scaled:
            unit = f"{metric.title} (%)" if metric.is_share else metric.label
            yield _chart(found, metric.title, unit, scaled, metric)


def _chart(
    found: Recommendation, title: str, unit: str, values: dict[BatchChoice, float], metric: Metric | None = None
) -> PageChart:
    traces: list[Trace] = []
    sizes = sorted({choice.max_num_batched_tokens for choice in values})
    for i, tokens in enumerate(sizes):
        here = sorted(choice for choice in values if choice.max_num_batched_tokens == tokens)
        x, y = [choice.max_num_seqs for choice in here], [values[choice] for choice in here]
        look: dict[str, Any] = {"mode": "lines+markers"}
        traces.append(line(f"{tokens:,} tokens a step", x, y, CURVES[i % len(CURVES)], "%{x}: %{y:,.4~g}", **look))
    marks = (
        ("vLLM's defaults", found.default, DEFAULT, {"symbol": "square-open", "size": 14, "line": {"width": 2}}),
        ("the table's", found.prior, TABLE, {"symbol": "diamond", "size": 11}),
        ("recommended", found.chosen, CHOSEN, {"symbol": "star", "size": 16}),
    )
    for name, choice, colour, marker in marks:
        if choice in values:
            at = [choice.max_num_seqs], [values[choice]]
            traces.append(points(name, *at, colour, "%{x}: %{y:,.4~g}", marker=marker))
    (left, right), (low, high) = span(traces, "x"), span(traces, "y")
    key = "" if metric is None else metric.key.removeprefix("p99_")
    if (bound := found.slo.get(key)) is not None:
        traces.append(limit(f"SLO {bound:g} ms", [left, right], [bound, bound]))
    is_log = metric is not None and metric.kind == "ms" and is_wide(low, high)
    panel = Panel(unit, traces, is_log=is_log)
    return PageChart(title, "max_num_seqs", [panel], is_log_x=is_wide(left, right))
