"""Fit the two-regime step time, and judge it on steps that it never saw.

Relative least squares with physical signs: every row is divided by its measured time, and every term costs something.
Functions of a count are sums of ramps between knots, so non-negative coefficients give a function that never falls.
Past the last knot a function goes on with the mean slope of its upper half: the last ramp alone may be one flat or
steep piece of a kernel's staircase.

Measured steps are noisy by a share of their time, with spikes, and their total must come out right (`solve_robust`):

1. Weights are the inverse of the prediction, found by iterating. Weights by the inverse of the measured time count a
   slow repeat less than a fast one, which bends totals down (up to 5 % on a replay).
2. A spike is winsorised: for the shape it counts as no further from its prediction than `SPIKE` deviations.
3. Then all coefficients are scaled so that the sum of predictions is the sum of measured times, spikes included.

Which steps a fit is made on: random batches over what was measured and what the KV cache can hold.

Decodes, chunks, contexts and histories are drawn log-uniformly, so that every order of magnitude counts alike; half of
the chunks uniformly, since busy servers run with full budgets. The contexts inside a batch are lognormal with a
coefficient of variation between 0 and 1. No workload had a say in this: what a profile is validated on stays unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records import Floats, Steps, predict_s
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.provenance import ErrorFigures
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


DECODE_BANDS = ((1, 8), (9, 32), (33, 64), (65, 128), (129, 256), (257, 1024))
KNOT_DIGITS = 9  # to the nanosecond
COEFFICIENT_DIGITS = 5  # significant

Solver = Callable[[NDArray[Any], Floats], Floats]
Terms = dict[str, NDArray[np.int64]]


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
    alone = fit_decode(*decode, seq_knots, more={"inside": _inside(decode[0], window)})
    more = {"inside": _inside(mixed[0], window), "units": _window_units(mixed[0], window)}
    beside = fit_mixed(*mixed, token_knots, more=more)
    layers = {
        "decode_per_token_s": alone.pop("inside"),
        "mixed_per_token_s": beside.pop("inside"),
        "per_attention_unit_s": beside.pop("units"),
    }
    shown = {"size_tokens": window, **layers} if any(layers.values()) else None  # some tables know of no windows
    content = {"form": "two_regime", "decode": alone, "mixed": beside, "window": shown}
    return TwoRegimeStepTime.model_validate(content)


def fit_decode(
    steps: Steps,
    measured_s: Floats,
    seq_knots: Sequence[int],
    solver: Solver | None = None,
    more: Terms | None = None,
) -> dict[str, Any]:
    """Fit the `decode` part of a step time; `solver` takes the place of `solve`, `more` are terms beside its own."""
    knots = _covered(seq_knots, steps.num_decodes)
    terms = {"per_context_token_s": steps.decode_context, **(more or {})}
    found = (solver or solve)(np.column_stack([_ramps(steps.num_decodes, knots), *terms.values()]), measured_s)
    coefficients = map(short, found[len(knots) :])
    return {"seqs": knots_of(knots, found[: len(knots)]), **dict(zip(terms, coefficients, strict=True))}


def fit_mixed(
    steps: Steps,
    measured_s: Floats,
    token_knots: Sequence[int],
    solver: Solver | None = None,
    more: Terms | None = None,
) -> dict[str, Any]:
    """Fit the `mixed` part, for all steps with a prefill; `more` are terms beside its own."""
    knots = _covered(token_knots, steps.num_tokens)
    terms = {**mixed_terms(steps), **(more or {})}
    found = (solver or solve)(np.column_stack([_ramps(steps.num_tokens, knots), *terms.values()]), measured_s)
    coefficients = map(short, found[len(knots) :])
    return {"tokens": knots_of(knots, found[: len(knots)]), **dict(zip(terms, coefficients, strict=True))}


def mixed_terms(steps: Steps) -> dict[str, NDArray[np.int64]]:
    """What the coefficients of a step with prefills multiply, beside its tokens."""
    return {
        "per_decode_seq_s": steps.num_decodes,
        "per_seq_token_s": steps.num_decodes * steps.prefill_tokens,
        "per_context_token_s": steps.decode_context,
        "per_prefill_context_token_s": steps.prefill_context,
        "per_attention_unit_s": steps.prefill_attention,
    }


def _inside(steps: Steps, window: int) -> NDArray[np.int64]:
    """Tokens inside the windows of all decodes, at their mean context."""
    return np.minimum(steps.decode_context, steps.num_decodes * window)


def _window_units(steps: Steps, window: int) -> NDArray[np.int64]:
    """Of one prefill a step: q * (2h + q), each token looking back at no more than the window (`WindowCost.units`)."""
    ends, begins = steps.prefill_context, steps.prefill_context - steps.prefill_tokens
    squares = [np.where(n <= window, n * n, window * (2 * n - window)) for n in (ends, begins)]
    return squares[0] - squares[1]


def solve(columns: NDArray[Any], measured_s: Floats) -> Floats:
    """Non-negative coefficients that minimise the sum of squared relative errors."""
    return non_negative(columns / measured_s[:, None], np.ones(len(measured_s)))


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


def _covered(knots: Sequence[int], counts: NDArray[np.int64]) -> list[int]:
    """Knots between the lowest and the highest count that occur, and these two."""
    low, high = int(counts.min()), int(counts.max())
    return sorted({low, *(knot for knot in knots if low < knot < high), high})


def _ramps(counts: NDArray[np.int64], knots: Sequence[int]) -> Floats:
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


REGIMES = ("decode", "prefill", "mixed")


@dataclass(frozen=True)
class StepLimits:
    """The measured grid (lowest and highest, in tokens or sequences) and what the KV cache holds, in tokens."""

    decode_only_seqs: tuple[int, int]
    mixed_seqs: tuple[int, int]
    context: tuple[int, int]
    chunk: tuple[int, int]
    history: tuple[int, int]
    max_num_batched_tokens: int
    kv_tokens: int


def sample_steps(regime: str, count: int, limits: StepLimits, seed: int) -> Steps:
    """Draw `count` steps of one of `REGIMES`; the same seed draws the same."""
    rng = np.random.default_rng([seed, REGIMES.index(regime)])
    rows: list[tuple[int, ...]] = []
    while len(rows) < count:
        row = _draw(rng, regime, limits)
        if row is not None:
            rows.append(row)
    return Steps(*np.array(rows, dtype=np.int64).T)


def _draw(rng: np.random.Generator, regime: str, limits: StepLimits) -> tuple[int, ...] | None:
    """Draw one step, None when it does not fit into the cache."""
    chunk = history = num_decodes = 0
    if regime != "decode":
        chunk, history = _draw_prefill(rng, limits)
    if regime != "prefill":
        low, high = limits.decode_only_seqs if regime == "decode" else limits.mixed_seqs
        high = min(high, limits.max_num_batched_tokens - chunk)
        if high < low:
            return None
        num_decodes = _log_uniform(rng, low, high)
    contexts = np.zeros(1, dtype=np.int64)
    if num_decodes:
        drawn = _draw_contexts(rng, num_decodes, limits, limits.kv_tokens - chunk - history - num_decodes)
        if drawn is None:
            return None
        contexts = drawn
    prefill = (int(chunk > 0), chunk, history + chunk, chunk * (2 * history + chunk))
    return (*prefill, num_decodes, int(contexts.sum()), int(contexts.min()), int(contexts.max()))


def _draw_prefill(rng: np.random.Generator, limits: StepLimits) -> tuple[int, int]:
    low, high = limits.chunk
    chunk = _log_uniform(rng, low, high) if rng.random() < 0.5 else int(rng.integers(low, high, endpoint=True))
    longest = min(limits.history[1], limits.kv_tokens - chunk)
    history = 0 if rng.random() < 0.5 else _log_uniform(rng, limits.context[0], longest)
    return chunk, history


def _draw_contexts(
    rng: np.random.Generator, num_decodes: int, limits: StepLimits, kv_tokens: int
) -> NDArray[np.int64] | None:
    low, high = limits.context
    high = min(high, kv_tokens // num_decodes)
    if high < low:
        return None
    mean = _log_uniform(rng, low, high)
    cv = rng.random()
    variance = np.log1p(cv * cv)
    drawn = np.exp(rng.normal(np.log(mean) - variance / 2, np.sqrt(variance), num_decodes))
    contexts = np.clip(np.rint(drawn), 1, limits.context[1]).astype(np.int64)
    return contexts if contexts.sum() <= kv_tokens else None


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return min(high, int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))
