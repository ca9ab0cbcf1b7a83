"""The page of a recommendation: what to paste, why, and the choice beside the others that were tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simbatch.sim.metrics.registry import REGISTRY, WITHIN_SLO
from simbatch.sim.metrics.run_figures import Metric
from simbatch.sim.report import style
from simbatch.sim.report.page.charts import PageChart, Panel, Trace, is_wide, limit, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, bands_table, settings_tables, trust_rows
from simbatch.sim.tuning.recommend import BatchChoice, Recommendation
from simbatch.sim.tuning.recommend_report import all_notes, evidence, report, scenario_content, verdict
from simbatch.sim.tuning.vllm_flags import arguments, command

CHOSEN, TABLE, DEFAULT = style.PALETTE[2], style.PALETTE[3], style.INK
CURVES = (*style.PALETTE[:2], style.PALETTE[4], *style.PALETTE[6:], "#8A8A8A")
MARKED = ("p99_ttft_ms", "p99_tpot_ms")


def recommend_page(found: Recommendation) -> ReportPage:
    """Of a use case on a profile."""
    first = found.trials[found.chosen].at_load.summaries[0]["simbatch"]
    given = arguments(found)
    header, rows = evidence(found)
    return ReportPage(
        title=f"{found.case.name} on {found.profile.name}: {found.chosen.max_num_seqs} sequences at most",
        about=f"{found.case.words}; {found.num_runs} simulations by simbatch recommend",
        answer=[("Recommended", _words(found.chosen)), ("To serve it", command(given)), *_pairs(verdict(found))],
        warnings=all_notes(found),
        charts=[*_charts(found)],
        tables=[PageTable("Evidence", header, rows, f"Score: {found.unit}; * is recommended."), *_bands(found)],
        settings=[*settings_tables(first)],
        trust=[*trust_rows(first)],
        scenario=scenario_content(found),
        seeds=[found.scenario.seed, *found.fresh_seeds],
        text=report(found),
    )


def _words(choice: BatchChoice) -> str:
    return f"max_num_seqs {choice.max_num_seqs}, max_num_batched_tokens {choice.max_num_batched_tokens:,}."


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    """What is said of a setting with its name; what goes on with it without."""
    for text in lines:
        label, colon, rest = text.partition(": ")
        yield (label, rest) if colon and not text.startswith(" ") and " " not in label else ("", text.strip())


def _bands(found: Recommendation) -> Iterator[PageTable]:
    if found.bands is not None:
        trial = found.trials[found.chosen]
        yield from bands_table(found.bands.content(), lambda metric: trial.mean(metric.key))


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
