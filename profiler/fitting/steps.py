"""Steps as columns: what a batch looked like, for composing, fitting and judging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.cost.model import CostModel

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


def concatenate(parts: Sequence[Steps]) -> Steps:
    """Put steps one after the other."""
    return Steps(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Steps)))


def predict_s(cost: CostModel, steps: Steps) -> Floats:
    """What a cost model gives for each step, s: the very integers that a simulation adds up."""
    durations = np.empty(len(steps))
    for i in range(len(steps)):
        n, context = int(steps.num_decodes[i]), int(steps.decode_context[i])
        if steps.prefill_tokens[i] == 0:
            durations[i] = cost.decode_ps(n) + cost.decode_context_ps * context
        else:
            chunk = (int(steps.prefill_tokens[i]), int(steps.prefill_context[i]), int(steps.prefill_attention[i]))
            durations[i] = cost.mixed_ps(n, context, *chunk)
    return durations * PS_TO_S
