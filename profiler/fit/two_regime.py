"""Fit the two-regime step time: relative least squares with physical signs.

Every row is divided by its measured time, and every term costs something. Functions of a count are sums of ramps
between knots, so non-negative coefficients give a function that never falls. Past the last knot a function goes on with
the mean slope of its upper half: the last ramp alone may be one flat or steep piece of a kernel's staircase.

Measured steps are noisy by a share of their time, with spikes, and their total must come out right (`solve_robust`):

1. Weights are the inverse of the prediction, found by iterating. Weights by the inverse of the measured time count a
   slow repeat less than a fast one, which bends totals down (up to 5 % on a replay).
2. A spike is winsorised: for the shape it counts as no further from its prediction than `SPIKE` deviations.
3. Then all coefficients are scaled so that the sum of predictions is the sum of measured times, spikes included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records import Floats, Ints, Steps
from simbatch.sim.cost.step_time import TwoRegimeStepTime

ITERATIONS = 10
SPIKE = 3.5  # robust standard deviations
MIN_DEVIATION = 1e-4  # of the prediction: below that nothing is a spike
MAD_TO_SIGMA = 1.4826  # of a normal distribution


def solve_robust(columns: NDArray[Any], measured_s: Floats, lowest: Floats | None = None) -> Floats:
    """Coefficients, none below `lowest` (0 by default) before the last scaling."""
    base = np.zeros(columns.shape[1]) if lowest is None else lowest
    weights, target = 1 / measured_s, np.ones(len(measured_s))
    found = base
    for _ in range(ITERATIONS):
        found = base + non_negative(columns * weights[:, None], target - (columns @ base) * weights)
        predicted_s = np.maximum(columns @ found, measured_s.min() / 100)
        weights, target = 1 / predicted_s, winsorised(measured_s / predicted_s)
    return np.asarray(found * (measured_s.sum() / (columns @ found).sum()), dtype=np.float64)


def winsorised(ratios: Floats) -> Floats:
    """Ratios of measured to predicted times, none further from their median than `SPIKE` deviations."""
    middle = float(np.median(ratios))
    deviation = max(MAD_TO_SIGMA * float(np.median(np.abs(ratios - middle))), MIN_DEVIATION)
    return np.clip(ratios, middle - SPIKE * deviation, middle + SPIKE * deviation)


def non_negative(columns: NDArray[Any], target: Floats) -> Floats:
    """Least squares without negative coefficients."""
    from scipy.optimize import nnls

    size = np.maximum(np.linalg.norm(columns, axis=0), np.finfo(float).tiny)
    found, _ = nnls(columns / size, target, maxiter=100 * columns.shape[1])
    return np.asarray(found / size, dtype=np.float64)


KNOT_DIGITS = 9  # to the nanosecond
COEFFICIENT_DIGITS = 5  # significant

Solver = Callable[[NDArray[Any], Floats], Floats]
Part = dict[str, Any]


def solve(columns: NDArray[Any], measured_s: Floats) -> Floats:
    """Non-negative coefficients that minimise the sum of squared relative errors."""
    return non_negative(columns / measured_s[:, None], np.ones(len(measured_s)))


def fit_two_regime(
    decode: tuple[Steps, Floats],
    mixed: tuple[Steps, Floats],
    seq_knots: Sequence[int],
    token_knots: Sequence[int],
    window: int | None = None,
) -> TwoRegimeStepTime:
    """Fit both regimes; each is given as steps and their measured times in s, `mixed` being all steps with a prefill.

    Knots outside the counts that occur are left out. `window`: tokens that some layers look back at.
    """
    if window is None:
        parts = {"decode": fit_decode(*decode, seq_knots), "mixed": fit_mixed(*mixed, token_knots)}
        return TwoRegimeStepTime.model_validate({"form": "two_regime", **parts})
    alone = fit_decode(*decode, seq_knots, inside=_inside(decode[0], window))
    inside, units = _inside(mixed[0], window), _window_units(mixed[0], window)
    beside = fit_mixed(*mixed, token_knots, inside=inside, units=units)
    layers = {
        "decode_per_token_s": alone.pop("inside"),
        "mixed_per_token_s": beside.pop("inside"),
        "per_attention_unit_s": beside.pop("units"),
    }
    shown = {"size_tokens": window, **layers} if any(layers.values()) else None  # some tables know of no windows
    content = {"form": "two_regime", "decode": alone, "mixed": beside, "window": shown}
    return TwoRegimeStepTime.model_validate(content)


def fit_decode(
    steps: Steps, measured_s: Floats, seq_knots: Sequence[int], solver: Solver = solve, **more: Ints
) -> Part:
    """Fit the `decode` part of a step time; `more` are terms beside its own."""
    terms = {"per_context_token_s": steps.decode_context, **more}
    return _fit_part("seqs", steps.num_decodes, seq_knots, terms, measured_s, solver)


def fit_mixed(
    steps: Steps, measured_s: Floats, token_knots: Sequence[int], solver: Solver = solve, **more: Ints
) -> Part:
    """Fit the `mixed` part, for all steps with a prefill; `more` are terms beside its own."""
    terms = {**mixed_terms(steps), **more}
    return _fit_part("tokens", steps.num_tokens, token_knots, terms, measured_s, solver)


def _fit_part(
    name: str, counts: Ints, count_knots: Sequence[int], terms: dict[str, Ints], measured_s: Floats, solver: Solver
) -> Part:
    """A function of a count, by its name, and what the terms cost."""
    knots = _covered(count_knots, counts)
    found = solver(np.column_stack([_ramps(counts, knots), *terms.values()]), measured_s)
    coefficients = map(short, found[len(knots) :])
    return {name: knots_of(knots, found[: len(knots)]), **dict(zip(terms, coefficients, strict=True))}


def mixed_terms(steps: Steps) -> dict[str, Ints]:
    """What the coefficients of a step with prefills multiply, beside its tokens."""
    return {
        "per_decode_seq_s": steps.num_decodes,
        "per_seq_token_s": steps.num_decodes * steps.prefill_tokens,
        "per_context_token_s": steps.decode_context,
        "per_prefill_context_token_s": steps.prefill_context,
        "per_attention_unit_s": steps.prefill_attention,
    }


def _inside(steps: Steps, window: int) -> Ints:
    """Tokens inside the windows of all decodes, at their mean context."""
    return np.minimum(steps.decode_context, steps.num_decodes * window)


def _window_units(steps: Steps, window: int) -> Ints:
    """Of one prefill a step: q * (2h + q), each token looking back at no more than the window (`WindowCost.units`)."""
    ends, begins = steps.prefill_context, steps.prefill_context - steps.prefill_tokens
    squares = [np.where(n <= window, n * n, window * (2 * n - window)) for n in (ends, begins)]
    return squares[0] - squares[1]


def _covered(knots: Sequence[int], counts: Ints) -> list[int]:
    """Knots between the lowest and the highest count that occur, and these two."""
    low, high = int(counts.min()), int(counts.max())
    return sorted({low, *(knot for knot in knots if low < knot < high), high})


def _ramps(counts: Ints, knots: Sequence[int]) -> Floats:
    """Columns: 1, then per pair of knots how far a count has come between them."""
    widths = np.diff(knots)
    climbed = [np.clip(counts - low, 0, width) for low, width in zip(knots[:-1], widths, strict=True)]
    return np.column_stack([np.ones(len(counts)), *climbed]).astype(np.float64)


def knots_of(knots: Sequence[int], coefficients: Floats) -> dict[str, list[Any]]:
    """A function's values at its knots, and one more knot as far above as the last is from zero."""
    climbs = np.diff(knots) * coefficients[1:]
    values = coefficients[0] + np.concatenate([[0.0], np.cumsum(climbs)])
    last = knots[-1]
    slope = (values[-1] - np.interp(last / 2, knots, values)) / (last / 2)
    counts, times = [*knots, 2 * last], [*values, values[-1] + slope * last]
    return {"count": counts, "time_s": [round(float(value), KNOT_DIGITS) for value in times]}


def short(value: float) -> float:
    """Round to significant digits."""
    return float(f"{value:.{COEFFICIENT_DIGITS}g}")
