"""Which steps a fit is made on: random batches over what was measured and what the KV cache can hold.

Decodes, chunks, contexts and histories are drawn log-uniformly, so that every order of magnitude counts alike; half of
the chunks uniformly, since busy servers run with full budgets. The contexts inside a batch are lognormal with a
coefficient of variation between 0 and 1. No workload had a say in this: what a profile is validated on stays unseen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.steps import Steps

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
