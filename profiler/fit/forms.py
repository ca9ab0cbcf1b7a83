"""The forms that a fit chooses from; each ends as the parts of a two-regime step time, so that a run needs one model.

hinges: few terms, the functions of a count bend at fixed shares of what the engine allows (gpu/NOTES of the sources:
        at 64 and 128 of 256 sequences, at 256 of 2,048 tokens).
table:  the functions of a count bend wherever enough steps were measured; three densities.
roofline: that of the datasheet with fitted efficiencies: few terms, shared between steps with and without prefills.

In the roofline a step reads the weights once and multiplies them by every token, whichever takes longer:

    t = overhead + g * max(T, T*) + e * T + s * n + a * context + ... attention as in `TwoRegimeCost`

with T scheduled tokens, n decodes, g = FLOPs of a token / achieved FLOP/s, and T* the tokens at which reading
(g * T* = bytes of the weights / achieved bytes/s) and multiplying take the same time. g, T* and e are those of the
matrix products, so both regimes share them; overheads, decodes and attention, which runs in other kernels, are apart.
No GPU reads faster than its datasheet says: where that is known, reading the weights (g * T*) and reading a token of a
decode's context have lowest values. Elsewhere the peak rates are just part of the fitted coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simbatch.profiler.fit.two_regime import Part, fit_decode, fit_mixed, mixed_terms, short, solve_robust
from simbatch.profiler.records import Floats, Ints, MeasuredSteps
from simbatch.profiler.records.samples import EngineFacts
from simbatch.sim.cost.gpus import GPUS

Parts = dict[str, Part]  # `decode` and `mixed` of a two-regime step time
Form = Callable[[MeasuredSteps], Parts]
NUM_RIDGES = 24  # values of T* that are tried
PRODUCT, DECODE_CONTEXT, MIXED_CONTEXT = 2, 5, 8  # columns of g, and of what a token of context costs


def fit_roofline(engine: EngineFacts) -> Form:
    """The fit for this engine."""
    bandwidth = GPUS[engine.gpu].bandwidth_bytes_per_s if engine.gpu in GPUS else np.inf
    read_weights_s = (engine.weights_bytes or 0) / bandwidth
    read_token_s = engine.kv_bytes_per_token / bandwidth

    def fit(data: MeasuredSteps) -> Parts:
        decode, mixed = _by_part(data)
        most = int(max(decode.steps.num_tokens.max(), mixed.steps.num_tokens.max()))
        ridges = np.unique(np.geomspace(1, most, NUM_RIDGES).astype(np.int64))
        tried = [_at_ridge(int(ridge), decode, mixed, read_weights_s, read_token_s) for ridge in ridges]
        _, ridge, found = min(tried, key=lambda trial: trial[0])
        return _parts(found, ridge, decode, mixed)

    return fit


def _at_ridge(
    ridge: int, decode: MeasuredSteps, mixed: MeasuredSteps, read_weights_s: float, read_token_s: float
) -> tuple[float, int, Floats]:
    """Fit with T* given: mean absolute relative error, T*, coefficients."""
    columns, measured_s = _columns(ridge, decode, mixed), np.concatenate([decode.time_s, mixed.time_s])
    lowest = np.zeros(columns.shape[1])
    lowest[PRODUCT], lowest[[DECODE_CONTEXT, MIXED_CONTEXT]] = read_weights_s / ridge, read_token_s
    found = solve_robust(columns, measured_s, lowest)
    return float(np.abs(columns @ found / measured_s - 1).mean()), ridge, found


def _columns(ridge: int, decode: MeasuredSteps, mixed: MeasuredSteps) -> Any:
    num_decode = len(decode)
    tokens = np.concatenate([decode.steps.num_tokens, mixed.steps.num_tokens])
    is_decode = np.arange(len(tokens)) < num_decode
    shared = [is_decode, ~is_decode, np.maximum(tokens, ridge), tokens]
    of_decode = [decode.steps.num_decodes, decode.steps.decode_context]
    of_mixed = list(mixed_terms(mixed.steps).values())
    zeros = np.zeros(len(mixed), dtype=np.int64)
    apart = [np.concatenate([column, zeros]) for column in of_decode]
    apart += [np.concatenate([np.zeros(num_decode, dtype=np.int64), column]) for column in of_mixed]
    return np.column_stack([*shared, *apart]).astype(np.float64)


def _parts(found: Floats, ridge: int, decode: MeasuredSteps, mixed: MeasuredSteps) -> Parts:
    """The functions of a count with a knot at T*; each regime scaled to its own sum."""
    fitted_s = _columns(ridge, decode, mixed) @ found
    num_decode = len(decode)
    scale = decode.time_s.sum() / fitted_s[:num_decode].sum()
    mixed_scale = mixed.time_s.sum() / fitted_s[num_decode:].sum()
    of_decode, of_base, product, per_token, per_seq, context, *others = found
    terms = zip(mixed_terms(mixed.steps), others, strict=True)
    return {
        "decode": {
            "seqs": _bent(scale * np.array([of_decode, product, per_token + per_seq]), ridge, decode.steps.num_decodes),
            "per_context_token_s": short(scale * context),
        },
        "mixed": {
            "tokens": _bent(mixed_scale * np.array([of_base, product, per_token]), ridge, mixed.steps.num_tokens),
            **{name: short(mixed_scale * value) for name, value in terms},
        },
    }


def _bent(terms: Floats, ridge: int, counts: Ints) -> dict[str, list[Any]]:
    """Return knots of overhead + product * max(count, ridge) + per_token * count."""
    base, product, per_token = terms
    knots = sorted({1, ridge, ridge + 1, 2 * max(int(counts.max()), ridge)})
    times = [base + product * max(knot, ridge) + per_token * knot for knot in knots]
    return {"count": knots, "time_s": [round(float(time_s), 9) for time_s in times]}


SEQ_HINGES = (0.25, 0.5)  # of max_num_seqs
TOKEN_HINGES = (0.125,)  # of max_num_batched_tokens
DRAWS_PER_KNOT = {"table (coarse)": 25, "table": 10, "table (fine)": 4}
MOST_KNOTS = {"table (coarse)": 10, "table": 24, "table (fine)": 64}


def forms_for(engine: EngineFacts) -> dict[str, Form]:
    """The forms that can be tried on this engine, the simplest first."""
    seq_knots = [round(share * engine.max_num_seqs) for share in SEQ_HINGES]
    token_knots = [round(share * engine.max_num_batched_tokens) for share in TOKEN_HINGES]
    few_terms: dict[str, Form] = {
        "hinges": lambda data: _fit_at(*_by_part(data), seq_knots, token_knots),
        "roofline": fit_roofline(engine),
    }
    return few_terms | table_forms()


def table_forms() -> dict[str, Form]:
    """Those that need no facts of the engine."""
    return {name: _table(name) for name in DRAWS_PER_KNOT}


def _table(name: str) -> Form:
    def fit(data: MeasuredSteps) -> Parts:
        decode, mixed = _by_part(data)
        seq_knots = _dense_knots(name, decode.episodes, decode.steps.num_decodes)
        return _fit_at(decode, mixed, seq_knots, _dense_knots(name, mixed.episodes, mixed.steps.num_tokens))

    return fit


def _fit_at(decode: MeasuredSteps, mixed: MeasuredSteps, seq_knots: Sequence[int], token_knots: Sequence[int]) -> Parts:
    return {
        "decode": fit_decode(decode.steps, decode.time_s, seq_knots, solve_robust),
        "mixed": fit_mixed(mixed.steps, mixed.time_s, token_knots, solve_robust),
    }


def _dense_knots(name: str, episodes: Ints, counts: Ints) -> list[int]:
    """Knots at equal shares of the draws: a batch that decodes for eight steps is one draw."""
    draws = np.unique(np.column_stack([episodes, counts]), axis=0)[:, 1]
    num_knots = int(np.clip(len(draws) // DRAWS_PER_KNOT[name], 2, MOST_KNOTS[name]))
    return sorted({int(knot) for knot in np.quantile(draws, np.linspace(0, 1, num_knots), method="nearest")})


def _by_part(data: MeasuredSteps) -> tuple[MeasuredSteps, MeasuredSteps]:
    is_decode = data.regime("decode")
    return data.select(is_decode), data.select(~is_decode)
