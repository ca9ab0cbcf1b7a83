"""How long the device works on a step, where launches hide some of its work.

By the engine's rule a step begins when the one before is done and no earlier than `lag` after its schedule(), and ends
no earlier than its launch. So a step that ended well after its launch tells its time; one that ended with it says only
that it was no longer. Such a step counts with what the others predict, or with the most that it can have taken, if that
is less; predictions and these are found in turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simbatch.profiler.fit.choose import NUM_FOLDS, choose, fit_error, step_time_of
from simbatch.profiler.fit.forms import table_forms
from simbatch.profiler.fit.recorder.moments import Flags, Moments
from simbatch.profiler.records import Floats, Ints, MeasuredSteps, Steps, concatenate, predict_s
from simbatch.sim.cost.provenance import FitError
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

TURNS = 6
EPISODE_STEPS = 40  # neighbours are held out together
TIGHT_S = 0.5e-3  # a step that ends within that of its launch may have been done before
LEAST_S = IDLE_S = 1e-5
SPIKE = 50  # times the usual: the machine stood still
ENOUGH = 12  # steps of decodes alone, and with prefills
FEW = 8  # exact ones of a regime: below that, the most that steps can have taken has to do
LAG_STEPS = 30


@dataclass(frozen=True)
class FittedDevice:
    """Step times; of every step how long the device took, s, and whether that shows."""

    step_time: TwoRegimeStepTime
    lag_s: float
    tail_s: float
    took_s: Floats
    is_exact: Flags
    error: FitError


def fit_device(runs: list[Moments]) -> FittedDevice:
    """Fit the device's times; raises UserError where a regime has too few steps."""
    steps = concatenate([run.steps for run in runs])
    is_decode = steps.num_prefills == 0
    _check_enough(is_decode)
    has_device = any(run.has_device for run in runs)
    lag_s = _lag(runs) if has_device else 0.0
    found = _fit_with(runs, steps, is_decode, lag_s)
    if not has_device and (lag_s := _lag_of_fit(runs, steps, found)) > 0:
        found = _fit_with(runs, steps, is_decode, lag_s)
    return found


def _fit_with(runs: list[Moments], steps: Steps, is_decode: Flags, lag_s: float) -> FittedDevice:
    most = np.concatenate([_most(run, lag_s) for run in runs])
    exact = np.concatenate([_shows(run) for run in runs])
    least = np.concatenate([_least(run, lag_s) for run in runs])
    exact &= most < SPIKE * np.median(most)
    counts = exact.copy()
    for regime in (is_decode, ~is_decode):
        if exact[regime].sum() < FEW:
            counts |= regime  # nothing better is known: what such steps can have taken at the most
    episodes = np.concatenate([_episodes(run, i) for i, run in enumerate(runs)])
    took_s, forms = most.copy(), table_forms()
    quick = forms["table"]
    rows = counts
    for _ in range(TURNS):
        cost = step_time_of(quick(MeasuredSteps(steps, took_s, episodes).select(rows))).cost_model()
        predicted = predict_s(cost, steps)
        begins, ends = _begins(runs, predicted, lag_s)
        most = np.maximum(LEAST_S, ends - begins)
        took_s = np.where(counts, most, np.clip(predicted, np.minimum(least, most), most))
        rows = np.ones(len(steps), dtype=bool)
    data = MeasuredSteps(steps, took_s, episodes)
    kept = took_s < SPIKE * np.median(took_s)
    choice = choose(data.select(kept), forms)
    exact &= kept
    held_out = np.full(len(steps), np.nan)
    held_out[kept] = choice.held_out_s
    tail_s = _tail(runs, predict_s(choice.step_time.cost_model(), steps), most, exact)
    design = (
        f"{exact.sum()} recorded steps whose time on the device shows; each predicted by a fit on the others "
        f"({NUM_FOLDS} parts in turn, {EPISODE_STEPS} neighbours held out together)"
    )
    error = fit_error(design, data.select(exact), held_out[exact], choice)
    return FittedDevice(choice.step_time, lag_s, tail_s, took_s, exact, error)


def _check_enough(is_decode: Flags) -> None:
    numbers = {"steps of decodes alone": is_decode.sum(), "steps with prefills": (~is_decode).sum()}
    missing = [f"{name}: {number}, at least {ENOUGH} are needed" for name, number in numbers.items() if number < ENOUGH]
    if missing:
        mend = "record for longer, under load"
        raise UserError(*(Problem("too few steps to fit", rule, mend=mend) for rule in missing))


def _episodes(run: Moments, number: int) -> Ints:
    return number * 10**7 + np.arange(len(run)) // EPISODE_STEPS


def _lag(runs: list[Moments]) -> float:
    """From schedule() to the device's begin where it had nothing else to do; 0 where the file has no such times."""
    found = [run.start_s[chosen] - run.schedule_s[chosen] for run in runs if len(chosen := _idle_starts(run))]
    return max(0.0, float(np.median(np.concatenate(found)))) if found else 0.0


def _lag_of_fit(runs: list[Moments], steps: Steps, found: FittedDevice) -> float:
    """Without the device's times: how much longer decodes take that it could begin at schedule(), than others."""
    starts = np.concatenate([_starts_at_schedule(run) for run in runs])
    rows = found.is_exact & (steps.num_prefills == 0)
    if not runs[0].is_async or min((rows & starts).sum(), (rows & ~starts).sum()) < LAG_STEPS:
        return 0.0
    columns = np.column_stack([steps.num_decodes, steps.decode_context, np.ones(len(steps)), starts])[rows]
    found_s = np.linalg.lstsq(columns.astype(np.float64), found.took_s[rows], rcond=None)[0]
    return max(0.0, float(found_s[-1]))


def _starts_at_schedule(run: Moments) -> Flags:
    return np.asarray(run.before_s <= run.schedule_s)


def _idle_starts(run: Moments) -> Ints:
    return np.flatnonzero(run.start_s > run.before_s + IDLE_S)


def _most(run: Moments, lag_s: float) -> Floats:
    """The longest that each can have taken: from when it can have begun, by what is known of the one before."""
    before = np.concatenate([[-np.inf], np.where(run.is_done_known, run.done_s, -np.inf)[:-1]])
    return np.asarray(np.maximum(LEAST_S, run.done_s - np.maximum(before, run.schedule_s + lag_s)))


def _shows(run: Moments) -> Flags:
    """Whether the device, and not the launch, set the end; without a launch in flight it always did.

    Not of the first one: it may have waited for others.
    """
    known_before = np.concatenate([[False], run.is_done_known[:-1]])
    if not run.is_async:
        return known_before
    return np.asarray(run.is_done_known & known_before & (run.done_s - run.launched_s > TIGHT_S))


def _least(run: Moments, lag_s: float) -> Floats:
    """The shortest that each can have taken; 0 where its launch set its end."""
    after = run.done_s - np.maximum(run.before_s, run.schedule_s + lag_s)
    shows = run.is_done_known & (run.done_s - run.launched_s > TIGHT_S)
    return np.where(shows, np.maximum(0.0, after), 0.0)


def _begins(runs: list[Moments], predicted: Floats, lag_s: float) -> tuple[Floats, Floats]:
    """When each step began on the device, and was done, by the rule and what the record bounds."""
    begins, ends, at = np.empty(len(predicted)), np.empty(len(predicted)), 0
    for run in runs:
        free = -np.inf
        earliest = (run.schedule_s + lag_s).tolist()
        for i, (known, done, launched) in enumerate(
            zip(run.is_done_known.tolist(), run.done_s.tolist(), run.launched_s.tolist(), strict=True), at
        ):
            begin = max(free, earliest[i - at])
            free = done if known else min(done, max(begin + predicted[i], launched))
            begins[i], ends[i] = begin, done
        at += len(run)
    return begins, ends


def _tail(runs: list[Moments], predicted: Floats, most: Floats, exact: Flags) -> float:
    """From a launch's return to the step's end where the launch was the longer by far; told by the device's times.

    0 where the device is done before the launch returns, as a virtual one may be.
    """
    if not any(run.has_device for run in runs):
        return 0.0
    after = np.concatenate([run.done_s - run.launched_s for run in runs])
    chosen = ~exact & (predicted < 0.7 * most) & (np.abs(after) < TIGHT_S)
    return max(0.0, float(np.median(after[chosen]))) if chosen.sum() >= FEW else 0.0
