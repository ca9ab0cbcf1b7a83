"""Which form to take: each is fitted with a part of the draws left out, and judged on what it never saw.

Steps of one draw (episode) are held out together, since neighbours are nearly the same step. The parts are chosen
apart: the form with the least held-out mean absolute relative error on decode-only steps, and that with the least on
steps with prefills, where those without and with decodes are weighted by the square roots of their numbers. A form that
comes earlier in the list has fewer terms, and is taken when its error is at most `CLOSE` times the least.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from pydantic import ValidationError

from simbatch.profiler.fit.forms import Form, Parts
from simbatch.profiler.fit.two_regime import figures
from simbatch.profiler.records.steps import Floats, Ints, MeasuredSteps, predict_s
from simbatch.sim.cost.provenance import ErrorFigures
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

NUM_FOLDS = 5
CLOSE = 1.02
FOLD_SEED = 5
REGIMES = ("decode", "prefill", "mixed")


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
