"""One step on the device: what it computes, when, and the features that its duration depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from simbatch.sim.cost.model import CostModel
from simbatch.sim.scheduler.scheduler import Batch


class Step(NamedTuple):
    """A scheduled batch and its time on the device."""

    batch: Batch
    start_ps: int
    end_ps: int
    is_counted: bool = False  # the gaps between its tokens are written down already


class Prefills(NamedTuple):
    """All of a step that is not a decode, summed (`simbatch.sim.cost.model`)."""

    num_prefills: int = 0
    tokens: int = 0
    context: int = 0
    attention: int = 0

    @staticmethod
    def of(chunks: Iterable[tuple[int, int]]) -> Prefills:
        """Sum over chunks of q tokens, each after h computed ones, given as (q, h)."""
        num_prefills = tokens = context = attention = 0
        for q, h in chunks:
            num_prefills += 1
            tokens += q
            context += h + q
            attention += q * (2 * h + q)
        return Prefills(num_prefills, tokens, context, attention)


def step_ps(cost: CostModel, num_decodes: int, decode_context: int, prefills: Prefills) -> int:
    """How long the device works on a step."""
    if prefills.num_prefills:
        return cost.mixed_ps(num_decodes, decode_context, prefills.tokens, prefills.context, prefills.attention)
    return cost.decode_ps(num_decodes) + cost.decode_context_ps * decode_context
