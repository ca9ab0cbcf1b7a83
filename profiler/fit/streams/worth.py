"""What a fit from streams is worth: halves, each result from the others, what was covered, and what to run next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from simbatch.profiler.fit.facts import Priors
from simbatch.profiler.fit.streams.episodes import EpisodesProblem
from simbatch.profiler.fit.streams.fit import MOST_REQUESTS, FittedSteps, content_of, fit_parts, fit_steps
from simbatch.profiler.fit.streams.runs import Means, StreamRun, real_means, simulated_means
from simbatch.profiler.fit.streams.steps import StepColumns
from simbatch.sim.errors import UserError
from simbatch.sim.streams import Floats

ONE_POINT = 2.0  # 95 % of the batches over 5 %
FEW_PREFILLS = 30
DRIFTS, DRIFT_STEPS = 0.03, 100
DIFFERS, NEAR_BATCH, NEAR_CONTEXT, ALIKE_STEPS = 0.25, 1.1, 1.3, 50
NOTHING, LONG_PROMPT = 0.02, 256  # of the usual price of a prompt
MANY_FREE = 0.1
WAITED = 0.1  # of the requests sent


def halves(runs: Sequence[StreamRun], shape: Priors) -> float | None:
    """Time that the first halves predict for the second halves' steps, over the real one, less 1."""
    first = [run.columns.part(0, len(run.columns) // 2) for run in runs]
    second = [run.columns.part(len(run.columns) // 2, len(run.columns)) for run in runs]
    try:
        found = fit_steps(first, shape)
    except UserError:
        return None
    error = total_error(second, found)
    return None if error is None else round(error, 4)


def total_error(runs: Sequence[StepColumns], found: FittedSteps) -> float | None:
    """Of the time of all settled decodes and of all episodes."""
    problem = EpisodesProblem(runs, found.decode, found.problem.priors, is_async=found.mixed.is_async)
    ours = real = 0.0
    if problem.rows.size:
        rows, lasts = problem.rows, problem.is_step.sum(axis=1) - 1
        ours = float(problem.ends_s(*problem.times_s(found.mixed)).sum())
        real = float(
            (problem.all.update_s[rows[np.arange(len(rows)), lasts]] - problem.all.update_s[rows[:, 0] - 1]).sum()
        )
    for run in runs:
        chosen = run.settled
        ours += float(found.decode.step_s(run.num_decodes, run.context)[chosen].sum())
        real += float(run.gaps_s[chosen].sum())
    return ours / real - 1 if real else None


def predicted(run: StreamRun, runs: Sequence[StreamRun], shape: Priors, settings: dict[str, Any]) -> Means | None:
    """How far a run is predicted by a fit on the others; None where there is none."""
    others = [other for other in runs if other is not run]
    if not others:
        return None
    try:
        parts, steps = fit_parts(others, shape, settings)
    except (UserError, ValueError):
        return None
    return errors_of(content_of(parts), {**settings, "async_scheduling": steps.mixed.is_async}, run)


def errors_of(content: dict[str, Any], settings: dict[str, Any], run: StreamRun) -> Means:
    """Simulated over recorded means of a run's first requests, less 1."""
    streams = run.seen.streams.take(np.arange(len(run.seen.streams)) < MOST_REQUESTS)
    return simulated_means(content, settings, streams).errors(real_means(streams))


def different_servers(runs: Sequence[StreamRun]) -> str | None:
    """Why results cannot be of one server: equal steps that take different times."""
    for i, one in enumerate(runs):
        for other in runs[:i]:
            for (n, context, time_s), (m, beside, others_s) in _alike(one.columns, other.columns):
                if abs(time_s / others_s - 1) > DIFFERS:
                    return (
                        f"{n:.0f} decodes of {context / n:,.0f} tokens take {1000 * time_s:.1f} ms in {one.seen.name}, "
                        f"{m:.0f} of {beside / m:,.0f} take {1000 * others_s:.1f} ms in {other.seen.name}"
                    )
    return None


def met_by_none(runs: Sequence[StreamRun], fitted: Sequence[Means]) -> str | None:
    """Why no one profile is that of all results: what makes one of them right makes another one wrong."""
    errors = [each.e2el for each in fitted]
    least, most = int(np.argmin(errors)), int(np.argmax(errors))
    if (1 + errors[most]) / (1 + errors[least]) - 1 <= DIFFERS:
        return None
    parts = (f"{runs[i].seen.name} is {errors[i]:+.0%} off in E2EL" for i in (least, most))
    return f"no profile is that of all of them: of the best one {' and '.join(parts)}"


def _alike(
    one: StepColumns, other: StepColumns
) -> Iterator[tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """The commonest steps of two runs that are nearly the same: decodes, context, time."""
    for n, context, time_s in _common(one):
        for m, beside, others_s in _common(other):
            if max(n / m, m / n) <= NEAR_BATCH and 1 / NEAR_CONTEXT <= (context / n) / (beside / m) <= NEAR_CONTEXT:
                yield (n, context, time_s), (m, beside, others_s)


def _common(run: StepColumns) -> list[tuple[float, float, float]]:
    chosen = np.flatnonzero(run.settled)
    numbers, times = np.unique(run.num_decodes[chosen], return_counts=True)
    found = []
    for n in numbers[times >= ALIKE_STEPS].tolist():
        members = chosen[run.num_decodes[chosen] == n]
        found.append((n, float(np.median(run.context[members])), float(np.median(run.gaps_s[members]))))
    return found


def warnings_of(runs: Sequence[StreamRun], found: FittedSteps) -> list[str]:
    """What a user must know of what was not covered, and of what is odd."""
    told = [f"{run.seen.name}: {text}" for run in runs for text in run.seen.judgement.warnings]
    low, high = batch_span(runs)
    if high < ONE_POINT * low:
        told.append(
            f"one operating point: nine in ten steps have {low:.0f} to {high:.0f} decodes; how times grow with the "
            "batch is hardly known. Add a result at five to ten times the load, or at a fifth"
        )
    number = sum(int((run.columns.tokens > 0).sum()) for run in runs)
    if number < FEW_PREFILLS:
        told.append(f"{number} steps with prefills are few: add a result with more requests")
    told += [text for run in runs for text in _drift(run)]
    told += [text for run in runs for text in _free_prompts(run, found)]
    told += [text for run in runs for text in limit_of(run)[1]]
    return told


def batch_span(runs: Sequence[StreamRun]) -> tuple[float, float]:
    """5 and 95 % of the decodes of all steps, each run counted alike."""
    spans = [np.quantile(run.columns.num_decodes[run.columns.num_decodes > 0], (0.05, 0.95)) for run in runs]
    return float(min(low for low, _ in spans)), float(max(high for _, high in spans))


def _drift(run: StreamRun) -> Iterator[str]:
    columns = run.columns
    chosen = np.flatnonzero(columns.settled)
    usual = np.median(columns.num_decodes[chosen]) if len(chosen) else 0
    chosen = chosen[np.abs(columns.num_decodes[chosen] - usual) <= 0.05 * usual]
    half = len(chosen) // 2
    if half < DRIFT_STEPS:
        return
    change = float(np.median(columns.gaps_s[chosen[half:]]) / np.median(columns.gaps_s[chosen[:half]]) - 1)
    if abs(change) > DRIFTS:
        yield f"{run.seen.name}: drift: equal steps take {change:+.0%} in its second half"


def _free_prompts(run: StreamRun, found: FittedSteps) -> Iterator[str]:
    """Prompts that cost nothing: prefix hits, or computed elsewhere."""
    columns = run.columns
    one = (columns.tokens > LONG_PROMPT) & (columns.num_prefills == 1) & (columns.num_decodes > 0)
    one[:2] = one[-1:] = False
    chosen = np.flatnonzero(one)
    if not len(chosen):
        return
    decode_s = found.decode.step_s(columns.num_decodes, columns.context)
    around = sum(columns.gaps_s[chosen + k] - decode_s[chosen + k] for k in (-1, 0, 1))
    free = around < NOTHING * decode_s[chosen]
    if free.mean() > MANY_FREE:
        yield (
            f"{run.seen.name}: {free.mean():.0%} of its single prompts cost nothing: prefix hits, or prefills on "
            "another engine; a simulation computes every prompt"
        )


def limit_of(run: StreamRun) -> tuple[int | None, list[str]]:
    """The most requests that ran at once, where others waited for a seat or for memory all the while."""
    steps, batches = run.seen.steps, run.batches
    running = steps.num_decodes + batches.num_prefills
    most = int(running.max(initial=0))
    quick_s = float(np.quantile(steps.streams.first_s - steps.streams.sent_s, 0.1))
    begun = np.cumsum(np.bincount(batches.begun, minlength=len(steps)))
    waiting = np.searchsorted(steps.streams.sent_s, steps.begin_s - 2 * quick_s) - begun
    room = batches.max_num_batched_tokens - batches.prefill_tokens - batches.num_decodes
    full = (running >= 0.95 * most) & (room > 0.5 * batches.max_num_batched_tokens)
    if not full.any() or np.median(waiting[full]) < WAITED * most:
        return None, []
    return most, [
        f"{run.seen.name}: {most} requests ran at once while others waited: max_num_seqs or the KV cache ends there. "
        "Which of them the streams do not tell; say --max-num-seqs if you know it"
    ]


def next_run(runs: Sequence[StreamRun], found: FittedSteps) -> str:
    """Which run would tell more."""
    low, high = batch_span(runs)
    if high < 5 * low:
        return f"a result with {5 * low:.0f} or more requests at once, and one with {max(1, low / 2):.0f}"
    prompts = [int(np.median(run.seen.streams.num_prompt_tokens)) for run in runs]
    if max(prompts) < 2 * min(prompts):
        shorter, longer = max(1, min(prompts) // 8), 4 * max(prompts)
        return f"a result with prompts of {shorter:,} tokens, or of {longer:,}: all had about {min(prompts):,}"
    if found.mixed.kinds in ((1,), (2,)):
        size = found.problem.priors.max_capture
        small = f"at most {size}" if found.mixed.kinds == (2,) else f"more than {size}"
        return f"a result with steps of {small} tokens that have prefills: none was seen"
    return f"a result with more than {high:.0f} requests at once"


def bounds(values: Floats) -> tuple[int, int]:
    """5 and 95 %."""
    return (int(np.quantile(values, 0.05)), int(np.ceil(np.quantile(values, 0.95)))) if len(values) else (0, 0)
