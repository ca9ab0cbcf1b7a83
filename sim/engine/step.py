"""One step on the device: what it computes and when."""

from __future__ import annotations

from typing import NamedTuple

from simbatch.sim.cost.model import CostModel
from simbatch.sim.scheduler.scheduler import Batch


class Step(NamedTuple):
    """A scheduled batch and its time on the device."""

    batch: Batch
    start_ps: int
    end_ps: int
    is_counted: bool = False  # the gaps between its tokens are written down already


def step_ps(cost: CostModel, num_decodes: int, context: int, tokens: int, prefill_context: int, attention: int) -> int:
    """How long the device works on a step, by the features of `simbatch.sim.cost.model`."""
    if tokens:
        return cost.mixed_ps(num_decodes, context, tokens, prefill_context, attention)
    return cost.decode_ps(num_decodes) + cost.decode_context_ps * context


def step_ps_beside(cost: CostModel, decoding: tuple[int, int], num_tokens: int, num_computed: int) -> int:
    """The same for so many prompt tokens, after `num_computed` others, beside decodes: their number and context."""
    num_decodes, context = decoding
    total = num_tokens + num_computed
    return step_ps(cost, num_decodes, context, num_tokens, total, num_tokens * (total + num_computed))
