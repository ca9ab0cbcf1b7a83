"""What a step computes, in the numbers that cost models know: counted here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from simbatch.sim.cost.model import CostModel


class Features(NamedTuple):
    """A batch: decodes and the sum of their contexts; of prefills (q tokens after h computed ones) three sums."""

    num_decodes: int
    decode_context: int  # tokens computed before
    prefill_tokens: int  # sum of q
    prefill_context: int  # sum of h + q
    prefill_attention: int  # sum of q * (2h + q)
    num_prefills: int

    @property
    def num_requests(self) -> int:
        """Entries of the batch."""
        return self.num_decodes + self.num_prefills

    @property
    def num_tokens(self) -> int:
        """Scheduled tokens."""
        return self.num_decodes + self.prefill_tokens


_new = tuple.__new__  # in the engine's loops: a third of what the constructor takes


def is_decode(num_tokens: int, num_computed_tokens: int, num_prompt_tokens: int, samples: bool = True) -> bool:
    """Whether a request's share of a step is a decode: one token, after its prompt, that gives the next one."""
    return samples and num_tokens == 1 and num_computed_tokens >= num_prompt_tokens


def features_of(entries: Iterable[tuple[int, int, bool]], num_decodes: int = 0, decode_context: int = 0) -> Features:
    """Of entries (tokens, tokens computed before, whether it is a decode), beside decodes that are counted already."""
    num_prefills = tokens = context = attention = 0
    for n, computed, decodes in entries:
        if decodes:
            num_decodes += 1
            decode_context += computed
        else:
            num_prefills += 1
            tokens += n
            context += computed + n
            attention += n * (2 * computed + n)
    return _new(Features, (num_decodes, decode_context, tokens, context, attention, num_prefills))


def step_ps(cost: CostModel, features: Features) -> int:
    """How long the device works on a step."""
    num_decodes, context, tokens, prefill_context, attention, _ = features
    if tokens:
        return cost.mixed_ps(num_decodes, context, tokens, prefill_context, attention)
    return cost.decode_ps(num_decodes) + cost.decode_context_ps * context


def step_ps_beside(cost: CostModel, decoding: tuple[int, int], num_tokens: int, num_computed: int) -> int:
    """The same for so many prompt tokens, after `num_computed` others, beside decodes: their number and context."""
    entries = [(num_tokens, num_computed, False)] if num_tokens else []
    return step_ps(cost, features_of(entries, *decoding))
