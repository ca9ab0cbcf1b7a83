"""Steps as columns: what batches looked like, what they took, and the range and spread that a profile states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.cost.model import CostModel, step_ps_alike

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PS_TO_S = 1e-12


@dataclass(frozen=True)
class Steps:
    """One entry per step, in tokens; a prefill schedules q tokens after h computed ones, a decode one after k.

    Without decodes the contexts are 0.
    """

    num_prefills: Ints
    prefill_tokens: Ints  # sum of q
    prefill_context: Ints  # sum of h + q
    prefill_attention: Ints  # sum of q * (2h + q)
    num_decodes: Ints
    decode_context: Ints  # sum of k
    min_context: Ints
    max_context: Ints

    def __len__(self) -> int:
        return len(self.num_prefills)

    @property
    def num_tokens(self) -> Ints:
        """Scheduled tokens."""
        return self.prefill_tokens + self.num_decodes

    @property
    def mean_context(self) -> Floats:
        """Mean k, 0 without decodes."""
        return self.decode_context / np.maximum(1, self.num_decodes)

    def select(self, rows: NDArray[np.bool_]) -> Steps:
        """Return the chosen steps."""
        return Steps(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps with their times in s and the draw of the design that each belongs to."""

    steps: Steps
    time_s: Floats
    episodes: Ints

    def __len__(self) -> int:
        return len(self.time_s)

    def select(self, rows: Any) -> MeasuredSteps:
        """Return the chosen steps."""
        return MeasuredSteps(self.steps.select(rows), self.time_s[rows], self.episodes[rows])

    def regime(self, name: str) -> Any:
        """Which steps are `decode` (no prefill), `prefill` (nothing else) or `mixed`."""
        has_prefill, has_decodes = self.steps.prefill_tokens > 0, self.steps.num_decodes > 0
        return {"decode": ~has_prefill, "prefill": has_prefill & ~has_decodes, "mixed": has_prefill & has_decodes}[name]


def concatenate(parts: Sequence[Steps]) -> Steps:
    """Put steps one after the other."""
    return Steps(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Steps)))


def predict_s(cost: CostModel, steps: Steps) -> Floats:
    """What a cost model gives for each step, s: the very integers that a simulation adds up."""
    durations = np.empty(len(steps))
    for i in range(len(steps)):
        chunk = (int(steps.prefill_tokens[i]), int(steps.prefill_context[i]), int(steps.prefill_attention[i]))
        durations[i] = step_ps_alike(cost, int(steps.num_decodes[i]), int(steps.decode_context[i]), *chunk)
    return durations * PS_TO_S


def range_of(data: MeasuredSteps) -> dict[str, Any]:
    """Lowest and highest of everything that `MeasuredRange` looks at."""
    is_decode = data.regime("decode")
    decode, mixed = data.steps.select(is_decode), data.steps.select(~is_decode)
    # as MeasuredRange computes it: chunks of one size
    squares = mixed.prefill_tokens**2 / np.maximum(1, mixed.num_prefills)
    history = np.maximum(0.0, mixed.prefill_attention - squares) / (2 * mixed.prefill_tokens)
    return {
        "decode": {"num_decodes": _bounds(decode.num_decodes), **_contexts(decode)},
        "mixed": {
            "num_tokens": _bounds(mixed.num_tokens),
            "prefill_tokens": _bounds(mixed.prefill_tokens),
            "mean_history": _bounds(history),
            "num_decodes": _bounds(mixed.num_decodes),
            **_contexts(mixed.select(mixed.num_decodes > 0)),
        },
    }


def _contexts(steps: Steps) -> dict[str, tuple[int, int]]:
    return {"mean_context": _bounds(steps.mean_context), "decode_context": _bounds(steps.decode_context)}


def _bounds(values: NDArray[Any]) -> tuple[int, int]:
    return int(np.floor(values.min())), int(np.ceil(values.max()))


TAIL = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07)
SHARES = (*TAIL, *(round(0.1 + 0.05 * i, 2) for i in range(17)), *(round(1 - share, 3) for share in reversed(TAIL)))
DIGITS = 6


def noise_of(data: MeasuredSteps, held_out_s: Floats) -> dict[str, Any]:
    """Quantiles of measured over held-out prediction for decodes and for steps with prefills, their means scaled to 1.

    Nothing is cut off: the slowest step is the last quantile, and shares lie close together towards both ends.
    """
    ratios, is_decode = data.time_s / held_out_s, data.regime("decode")
    return {"decode": noise_quantiles(ratios[is_decode]), "mixed": noise_quantiles(ratios[~is_decode])}


def noise_quantiles(ratios: Floats) -> dict[str, list[float]]:
    """Quantiles of ratios, their mean scaled to 1."""
    values = np.quantile(ratios, SHARES)
    mean = float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(SHARES)))
    return {"share": list(SHARES), "ratio": [round(float(value / mean), DIGITS) for value in values]}
