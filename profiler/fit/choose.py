"""Which form to take, and how well any could do.

Each form is fitted with a part of the draws left out, and judged on what it never saw. Steps of one draw (episode)
are held out together, since neighbours are nearly the same step. The parts are chosen apart: the form with the least
held-out mean absolute relative error on decode-only steps, and that with the least on steps with prefills, where
those without and with decodes are weighted by the square roots of their numbers. A form that comes earlier in the
list has fewer terms, and is taken when its error is at most `CLOSE` times the least.

Repeats of one step tell how far the machine drifted, and the error below which no fit can come.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from pydantic import ValidationError

from simbatch.profiler.fit.forms import Form, Parts
from simbatch.profiler.records import Floats, Ints, MeasuredSteps, Steps, predict_s
from simbatch.profiler.records.samples import StepSample
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.provenance import ErrorFigures, FitError
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

NUM_FOLDS = 5
CLOSE = 1.02
FOLD_SEED = 5
REGIMES = ("decode", "prefill", "mixed")
DECODE_BANDS = ((1, 8), (9, 32), (33, 64), (65, 128), (129, 256), (257, 1024))


@dataclass(frozen=True)
class FormChoice:
    """The chosen step time, what it predicts for steps that it had not seen, and what the other forms reach."""

    step_time: TwoRegimeStepTime
    chosen: dict[str, str]  # the form of `decode` and of `mixed`
    held_out_s: Floats  # one prediction per measured step
    errors: dict[str, dict[str, ErrorFigures]]  # form, regime

    @property
    def score(self) -> float:
        """What both parts reach together: the sum of what they were chosen by."""
        return sum(score[self.chosen[part]] for part, score in _scores(self.errors).items())


def choose(data: MeasuredSteps, forms: dict[str, Form]) -> FormChoice:
    """Cross-validate every form and fit the best one's parts to all steps; UserError where none gives a step time."""
    predicted, refused = dict[str, Floats](), list[UserError]()
    for name, form in forms.items():
        try:
            predicted[name] = held_out_predictions(form, data)
        except UserError as error:  # of few and noisy steps a form may make times of nothing
            refused.append(error)
    if not predicted:
        raise refused[0]
    errors = {name: errors_by_regime(data, predicted_s) for name, predicted_s in predicted.items()}
    chosen = {part: _best(score) for part, score in _scores(errors).items()}
    fitted: dict[str, Parts] = {name: forms[name](data) for name in set(chosen.values())}
    is_decode = data.regime("decode")
    return FormChoice(
        step_time=step_time_of({part: fitted[name][part] for part, name in chosen.items()}),
        chosen=chosen,
        held_out_s=np.where(is_decode, predicted[chosen["decode"]], predicted[chosen["mixed"]]),
        errors=errors,
    )


def held_out_predictions(form: Form, data: MeasuredSteps) -> Floats:
    """What the form predicts for each step, s, fitted without the steps of its fold."""
    predicted_s = np.empty(len(data))
    fold = folds(data)
    for number in range(NUM_FOLDS):
        is_out = fold == number
        cost = step_time_of(form(data.select(~is_out))).cost_model()
        predicted_s[is_out] = predict_s(cost, data.steps.select(is_out))
    return predicted_s


def folds(data: MeasuredSteps) -> Ints:
    """The fold of each step; a draw is in one fold, and every fold has its share of each regime."""
    rows = [data.regime(name) for name in REGIMES]
    fold: Ints = np.full(len(data), -1, dtype=np.int64)
    rng = np.random.default_rng(FOLD_SEED)
    kind_of = {
        int(episode): tuple(bool(inside[data.episodes == episode].any()) for inside in rows)
        for episode in np.unique(data.episodes)
    }
    for kind in sorted(set(kind_of.values())):
        alike = [episode for episode, of in kind_of.items() if of == kind]
        for position, episode in enumerate(rng.permutation(alike)):
            fold[data.episodes == episode] = position % NUM_FOLDS
    return fold


def errors_by_regime(data: MeasuredSteps, predicted_s: Floats) -> dict[str, ErrorFigures]:
    """Error of predictions, regime by regime."""
    rows = {name: data.regime(name) for name in REGIMES}
    return {name: figures(predicted_s[inside], data.time_s[inside]) for name, inside in rows.items()}


def figures(predicted_s: Floats, measured_s: Floats) -> ErrorFigures:
    """Error of predictions against measurements, as shares, rounded to 1e-5."""
    if len(measured_s) == 0:
        return ErrorFigures(num_steps=0, mape=0.0, p95=0.0, bias=0.0)
    errors = np.abs(predicted_s / measured_s - 1)
    return ErrorFigures(
        num_steps=len(measured_s),
        mape=round(float(errors.mean()), 5),
        p95=round(float(np.quantile(errors, 0.95)), 5),
        bias=round(float(predicted_s.sum() / measured_s.sum() - 1), 5),
    )


def judge(cost: CostModel, steps: Steps, measured_s: Floats) -> ErrorFigures:
    """Error of a cost model on measured steps."""
    return figures(predict_s(cost, steps), measured_s)


def judge_bands(cost: CostModel, steps: Steps, measured_s: Floats) -> dict[str, ErrorFigures]:
    """Error by bands of the number of decodes; bands without steps are left out."""
    return bands(steps, predict_s(cost, steps), measured_s)


def bands(steps: Steps, predicted_s: Floats, measured_s: Floats) -> dict[str, ErrorFigures]:
    """Error of predictions by bands of the number of decodes; bands without steps are left out."""
    rows = {f"{low}-{high}": (steps.num_decodes >= low) & (steps.num_decodes <= high) for low, high in DECODE_BANDS}
    return {band: figures(predicted_s[inside], measured_s[inside]) for band, inside in rows.items() if inside.any()}


def fit_error(design: str, data: MeasuredSteps, held_out_s: Floats, choice: FormChoice, **more: Any) -> FitError:
    """What a profile says of its error: of these steps by regime and by batch, of every form by regime."""
    is_decode, regimes = data.regime("decode"), errors_by_regime(data, held_out_s)
    return FitError(
        design=design,
        decode_bands=bands(data.steps.select(is_decode), held_out_s[is_decode], data.time_s[is_decode]),
        forms={name: {regime: error.mape for regime, error in each.items()} for name, each in choice.errors.items()},
        decode=regimes["decode"],
        prefill=regimes["prefill"],
        mixed=regimes["mixed"],
        **more,
    )


def step_time_of(parts: Parts) -> TwoRegimeStepTime:
    """A step time that is checked."""
    try:
        return TwoRegimeStepTime.model_validate({"form": "two_regime", **parts})
    except ValidationError:
        rule = "gives a step that takes no time: the steps are too few, or too noisy"
        raise UserError(Problem("the fit", rule, mend="measure longer, on a machine that does nothing else")) from None


def _weighted(*errors: ErrorFigures) -> float:
    weights = [sqrt(error.num_steps) for error in errors]
    return sum(weight * error.mape for weight, error in zip(weights, errors, strict=True)) / sum(weights)


def _scores(errors: dict[str, dict[str, ErrorFigures]]) -> dict[str, dict[str, float]]:
    return {
        "decode": {name: error["decode"].mape for name, error in errors.items()},
        "mixed": {name: _weighted(error["prefill"], error["mixed"]) for name, error in errors.items()},
    }


def _best(scores: dict[str, float]) -> str:
    lowest = min(scores.values())
    return next(name for name, score in scores.items() if score <= CLOSE * lowest)


MAX_DRIFT = 0.05  # above that, times may be rescaled
SIMILAR = 1.02  # contexts that differ by less are nearly the same step
REGIME_OF = {(False, True): "decode", (True, False): "prefill", (True, True): "mixed"}


@dataclass(frozen=True)
class Drift:
    """How the canaries' times changed: `at` their positions among the steps, `speed` their time over the first's."""

    at: Floats
    slowness: Floats

    @property
    def last(self) -> float:
        """The last canary's time over the first's."""
        return float(self.slowness[-1])

    @property
    def is_large(self) -> bool:
        """Whether any canary is more than `MAX_DRIFT` away from the first."""
        return bool(np.abs(self.slowness - 1).max() > MAX_DRIFT)

    def factors(self, positions: Floats) -> Floats:
        """What to divide the times at these positions by: the drift there over its mean, so that the total stays."""
        slowness = np.interp(positions, self.at, self.slowness)
        return np.asarray(slowness / slowness.mean(), dtype=np.float64)


def drift_of(steps: Sequence[StepSample]) -> Drift | None:
    """From the medians of each visit to the canaries; None with less than two visits."""
    visits = _visits(steps)
    first: dict[Hashable, float] = {}
    at, slowness = [], []
    for position, times in visits:
        medians = {kind: float(np.median(values)) for kind, values in times.items()}
        for kind, value in medians.items():
            first.setdefault(kind, value)
        at.append(position)
        slowness.append(float(np.mean([value / first[kind] for kind, value in medians.items()])))
    return Drift(np.array(at), np.array(slowness)) if len(at) > 1 else None


def noise_floor(steps: Iterable[StepSample]) -> dict[str, float]:
    """Mean absolute deviation of repeats from their mean, as a share, by regime; regimes without repeats are left out.

    Repeats are steps of one episode, or one visit to a canary, with the same counts and nearly the same context. Groups
    of g deviate from their own mean by sqrt((g - 1) / g) of what they would from the true one, which is made good.
    """
    groups: defaultdict[tuple[str, Hashable], list[float]] = defaultdict(list)
    visit, before = 0, None
    for step in steps:
        visit += _begins_visit(before, step)
        before = step
        regime, *kind = _kind(step)
        group = (step.is_canary, visit if step.is_canary else step.episode, *kind)
        groups[(regime, group)].append(step.duration_s)
    deviations: defaultdict[str, list[float]] = defaultdict(list)
    for (regime, _), times in groups.items():
        if len(times) > 1:
            scale = np.sqrt(len(times) / (len(times) - 1)) / np.mean(times)
            deviations[regime] += list(np.abs(np.array(times) - np.mean(times)) * scale)
    return {regime: float(np.mean(deviations[regime])) for regime in REGIME_OF.values() if regime in deviations}


def _visits(steps: Sequence[StepSample]) -> list[tuple[float, dict[Hashable, list[float]]]]:
    """Runs of canaries: their mean position, and their times by kind."""
    runs: list[list[int]] = []
    for position, step in enumerate(steps):
        if _begins_visit(steps[position - 1] if position else None, step):
            runs.append([])
        if step.is_canary:
            runs[-1].append(position)
    visits = []
    for run in runs:
        times: defaultdict[Hashable, list[float]] = defaultdict(list)
        for position in run:
            regime, counts, _context = _kind(steps[position])  # contexts grow alike in every visit
            times[(regime, counts)].append(steps[position].duration_s)
        visits.append((float(np.mean(run)), dict(times)))
    return visits


def _begins_visit(before: StepSample | None, step: StepSample) -> bool:
    """Whether a canary is its visit's first: decodes, then prefills. Two starts of the engine leave two in a row."""
    if before is None or not before.is_canary:
        return step.is_canary
    return step.is_canary and step.entries[0].is_decode and not before.entries[0].is_decode


def _kind(step: StepSample) -> tuple[str, Hashable, int]:
    """Regime, counts, and the context on a scale on which a difference of 1 is a factor of `SIMILAR`."""
    prefills = tuple((entry.num_computed_tokens, entry.num_tokens) for entry in step.entries if not entry.is_decode)
    contexts = [entry.num_computed_tokens for entry in step.entries if entry.is_decode]
    context = round(np.log(max(1, sum(contexts))) / np.log(SIMILAR))
    return REGIME_OF[bool(prefills), bool(contexts)], (prefills, len(contexts)), context
