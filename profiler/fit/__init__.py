"""`simbatch fit`, here of a samples file: drift, forms, choice, noise, memory, range, and where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fit.choose import (
    NUM_FOLDS,
    REGIMES,
    Drift,
    FormChoice,
    choose,
    drift_of,
    errors_by_regime,
    fit_error,
    held_out_predictions,
    noise_floor,
    step_time_of,
)
from simbatch.profiler.fit.facts import of_engine, own_name
from simbatch.profiler.fit.forms import forms_for
from simbatch.profiler.records import Floats, MeasuredSteps, noise_of, predict_s, range_of
from simbatch.profiler.records.samples import Admission, Samples, steps_of
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.provenance import FitError
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import checked

ENOUGH = {"decode": (12, NUM_FOLDS), "prefill": (4, 2), "mixed": (12, NUM_FOLDS)}  # steps, episodes that have them
TRIMMED = 0.05  # of the admissions at either end
QUICK_FORM = "table"
STANDSTILL = 50  # times the prediction: the machine was suspended or starved, the engine did not run
FLOOR_DIGITS = 5


@dataclass(frozen=True)
class FittedProfile:
    """A profile, and the held-out predictions that its error was computed from."""

    profile: MeasuredProfile
    data: MeasuredSteps
    choice: FormChoice
    drift: Drift | None
    is_rescaled: bool  # whether the drift was taken out of the times

    def with_notes(self, notes: Sequence[str]) -> FittedProfile:
        """The fit with further notes in its profile."""
        profile = self.profile.model_copy(update={"notes": (*self.profile.notes, *notes)})
        return replace(self, profile=profile)


def fit_samples(
    samples: Samples,
    *,
    name: str | None = None,
    command: str = "",
    sections: Mapping[str, Any] | None = None,
    is_whole: bool = True,
    steps_show: bool = True,
) -> FittedProfile:
    """Fit a profile; raises UserError that says which steps are missing.

    `sections` (host, front end ...) come from whoever measured more than steps; without `is_whole` the step times, too.
    Without `steps_show` a sample is what passed between two updates: it tells no drift and no noise of steps.
    """
    drift, engine = drift_of(samples.steps) if steps_show else None, samples.engine
    data, positions = _engine_steps(samples)
    _check_enough(data)
    choice, is_rescaled = choose(data, forms_for(engine)), False
    if drift is not None and drift.is_large and is_whole:
        still = MeasuredSteps(data.steps, data.time_s / drift.factors(positions), data.episodes)
        of_still = choose(still, forms_for(engine))
        if of_still.score < choice.score:
            data, choice, is_rescaled = still, of_still, True
    notes = _notes(samples, choice, is_whole=is_whole)
    notes += [*_spikes(samples, data, choice), _drift_note(drift, is_rescaled)] if steps_show else []
    content = {
        "name": name or own_name(engine),
        **of_engine(engine, command),
        "request_overhead_s": round(request_overhead_s(samples.admissions), 9),
        "notes": [*notes, *engine.warnings],
        "step_time": choice.step_time,
        "noise": noise_of(data, choice.held_out_s) if steps_show else None,
        "error": _error(samples, data, choice),
        "range": range_of(data),
        **(sections or {}),
    }
    if "host" in content:
        del content["request_overhead_s"]  # the older word for host.admit
    profile = checked(MeasuredProfile, content, "the samples' engine")
    return FittedProfile(profile, data, choice, drift, is_rescaled)


class HeldOut(NamedTuple):
    """What is known so far: held-out error by regime, and how sure the totals of the two parts are, as shares."""

    errors: dict[str, float]
    total_errors: dict[str, float]


def held_out(samples: Samples) -> HeldOut | None:
    """The held-out mean absolute relative error of one form and the standard errors of totals, cheaply.

    None while a regime has too few steps. An episode is measured in one go, fast or slow as the machine is then, so the
    totals' standard errors are those of a ratio over episodes (Cochran, Sampling Techniques, 2.11).
    """
    try:
        data, _ = _engine_steps(samples)
        if _missing(data):
            return None
        predicted_s = held_out_predictions(forms_for(samples.engine)[QUICK_FORM], data)
    except UserError:  # too few yet
        return None
    errors = {regime: error.mape for regime, error in errors_by_regime(data, predicted_s).items()}
    is_decode = data.steps.prefill_tokens == 0
    parts = {"decode": is_decode, "mixed": ~is_decode}
    return HeldOut(errors, {part: _total_error(data.select(rows), predicted_s[rows]) for part, rows in parts.items()})


def _total_error(data: MeasuredSteps, predicted_s: Floats) -> float:
    """Standard error of sum measured / sum predicted."""
    _, episode = np.unique(data.episodes, return_inverse=True)
    measured, predicted = np.bincount(episode, data.time_s), np.bincount(episode, predicted_s)
    ratio = measured.sum() / predicted.sum()
    num_episodes = len(measured)
    squares = ((measured - ratio * predicted) ** 2).sum() * num_episodes / max(1, num_episodes - 1)
    return float(np.sqrt(squares) / measured.sum())


def request_overhead_s(admissions: Sequence[Admission]) -> float:
    """Mean cost of an admission without the slowest and fastest twentieth, s: totals are sums, but not of hiccups."""
    times = np.sort([admission.duration_s for admission in admissions])
    cut = int(TRIMMED * len(times))
    return float(times[cut : len(times) - cut].mean()) if len(times) else 0.0


def _engine_steps(samples: Samples) -> tuple[MeasuredSteps, Floats]:
    """The steps to fit, and their positions among all; without canaries and without those in which all stood still."""
    data = MeasuredSteps(*steps_of(samples.fitted()))
    positions = np.array([i for i, step in enumerate(samples.steps) if not step.is_canary], dtype=np.float64)
    if _missing(data):
        return data, positions
    predicted_s = predict_s(step_time_of(forms_for(samples.engine)[QUICK_FORM](data)).cost_model(), data.steps)
    ratios = data.time_s / predicted_s
    keeps = ratios < STANDSTILL * np.median(ratios)
    return data.select(keeps), positions[keeps]


def _missing(data: MeasuredSteps) -> list[str]:
    what = {"decode": "steps of decodes alone", "prefill": "steps of prefills alone", "mixed": "steps of both (mixed)"}
    missing = []
    for regime in REGIMES:
        rows = data.regime(regime)
        num_steps, num_episodes = int(rows.sum()), len(np.unique(data.episodes[rows]))
        least_steps, least_episodes = ENOUGH[regime]
        if num_steps < least_steps or num_episodes < least_episodes:
            found = f"{num_steps} in {num_episodes} episodes"
            missing.append(f"{what[regime]}: {found}, at least {least_steps} in {least_episodes} are needed")
    return missing


def _check_enough(data: MeasuredSteps) -> None:
    missing = _missing(data)
    if missing:
        mend = "measure longer: `simbatch profile ... --resume`, with a larger --budget-minutes"
        raise UserError(*(Problem("too few samples to fit", rule, mend=mend) for rule in missing))


def _error(samples: Samples, data: MeasuredSteps, choice: FormChoice) -> FitError:
    design = (
        f"{len(data)} measured steps of {len(np.unique(data.episodes))} random episodes; each predicted by a fit on "
        f"the other episodes ({NUM_FOLDS} parts in turn)"
    )
    floor = {regime: round(share, FLOOR_DIGITS) for regime, share in noise_floor(samples.steps).items()}
    return fit_error(design, data, choice.held_out_s, choice, noise_floor=floor)


def _notes(samples: Samples, choice: FormChoice, *, is_whole: bool) -> list[str]:
    """`is_whole`: the step times are these, not another fit's."""
    engine = samples.engine
    own = (
        f"step_time: {choice.chosen['decode']} for decodes, {choice.chosen['mixed']} for steps with prefills, by the "
        "held-out errors under error.forms",
        f"requests' admission: mean of {len(samples.admissions)}, {TRIMMED:.0%} left out at either end",
    )
    notes = [
        *(own if is_whole else ()),
        f"measured with max_num_seqs {engine.max_num_seqs}, max_num_batched_tokens {engine.max_num_batched_tokens}, "
        f"async_scheduling {str(engine.async_scheduling).lower()}",
        "memory: what vLLM resolved; reserve_bytes is what the parts that it names leave, not a measurement",
    ]
    if engine.weights_bytes is None:
        notes.append("weights_bytes: vLLM does not say; inside the reserve")
    return notes


def _spikes(samples: Samples, data: MeasuredSteps, choice: FormChoice) -> list[str]:
    """Steps that took far longer than the others say."""
    notes = []
    num_left_out = len(samples.fitted()) - len(data)
    if num_left_out:
        left_out = (
            f"{num_left_out} of {len(samples.fitted())} steps took more than {STANDSTILL} times what was predicted"
        )
        notes.append(f"{left_out}, and were left out")
    ratios = data.time_s / choice.held_out_s
    is_spike = ratios > 1.5
    if is_spike.any():
        share = float(data.time_s[is_spike].sum() / data.time_s.sum())
        notes.append(
            f"{int(is_spike.sum())} of {len(data)} steps took more than 1.5 times what the others predict, and "
            f"{share:.1%} of all time; they count in the totals and in noise"
        )
    return notes


def _drift_note(drift: Drift | None, is_rescaled: bool) -> str:
    if drift is None:
        return "drift: not measured, for there are fewer than two visits to a canary"
    text = f"drift: the last canary took {drift.last:.3f} times the first"
    if is_rescaled:
        return f"{text}; times were divided by the canaries' medians, interpolated over the order of steps"
    if drift.is_large:
        return (
            f"{text}, those between {drift.slowness.min():.3f} to {drift.slowness.max():.3f}; times were left as they "
            "are, since taking it out raised the held-out error: the machine was not quiet"
        )
    return f"{text}; times were left as they are"
