"""How many requests a KV cache holds: of one length, and of many lengths at a stated risk of preemption.

A running request holds ceil(tokens / block_size) blocks. In the step that computes its prompt these are its prompt's
tokens, in each step after it one more; its last output token is never written. So over its life it needs room for
prompt + output - 1 tokens, and the longest requests decide how many can all run to their end.

Of many lengths, n seats that are always taken are looked at in one step at random. Each seat then holds a request
that is met in proportion to its output length (a long one is there longer), at any step of its life alike: in other
words, every step of every request counts once. The blocks of n seats are the n-fold convolution of that distribution,
computed without approximation (polynomial powers, cut off above the blocks that there are, which changes nothing
below). Not in it: shared prefixes, which need less, and prompts that take several steps, which hold theirs longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
RISK = 0.01


@dataclass(frozen=True)
class Lengths:
    """Prompt and output tokens of requests, a pair each, and where they come from."""

    num_prompt_tokens: Ints
    num_output_tokens: Ints
    source: str

    def __len__(self) -> int:
        return len(self.num_prompt_tokens)

    @property
    def is_fixed(self) -> bool:
        """Whether all requests are alike."""
        return len(set(zip(self.num_prompt_tokens.tolist(), self.num_output_tokens.tolist(), strict=True))) == 1

    def within(self, max_model_len: int) -> Lengths:
        """What vLLM runs of them: prompts of `max_model_len` are rejected, longer outputs cut."""
        kept = self.num_prompt_tokens < max_model_len
        prompts = self.num_prompt_tokens[kept]
        return Lengths(prompts, np.minimum(self.num_output_tokens[kept], max_model_len - prompts), self.source)


class Fit(NamedTuple):
    """Requests that run at once: `worst` if each is as long as the longest, `average` if each holds the mean.

    `at_risk`: the most with which memory is short in at most 1 % of the steps; `risk` is the share at it, `risk_above`
    that of one more.
    """

    worst: int
    average: int
    at_risk: int
    risk: float
    risk_above: float
    mean_blocks: float
    longest_blocks: int


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Whole blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def held_blocks(lengths: Lengths, block_size: int) -> Floats:
    """Entry b: the probability that a request, met in a random step, holds b blocks."""
    begins, ends = lengths.num_prompt_tokens, lengths.num_prompt_tokens + lengths.num_output_tokens
    changes = np.bincount(begins, minlength=int(ends.max()) + 1) - np.bincount(ends)
    steps_at_tokens = np.cumsum(changes)[:-1]
    blocks = -(-np.arange(len(steps_at_tokens)) // block_size)
    steps_at_blocks = np.bincount(blocks, weights=steps_at_tokens)
    held: Floats = steps_at_blocks / steps_at_blocks.sum()
    return held


def fit(lengths: Lengths, usable_blocks: int, block_size: int, risk: float = RISK) -> Fit:
    """How many of these requests run at once on so many blocks."""
    held = held_blocks(lengths, block_size)
    mean_blocks = float(held @ np.arange(len(held)))
    longest = blocks_for(int((lengths.num_prompt_tokens + lengths.num_output_tokens).max()) - 1, block_size)
    at_risk, shares = _largest(held, usable_blocks, risk)
    return Fit(
        worst=usable_blocks // longest,
        average=int(usable_blocks / mean_blocks),
        at_risk=at_risk,
        risk=shares[0],
        risk_above=shares[1],
        mean_blocks=mean_blocks,
        longest_blocks=longest,
    )


def _largest(held: Floats, usable_blocks: int, risk: float) -> tuple[int, tuple[float, float]]:
    """The largest n whose n-fold sum is above `usable_blocks` with probability `risk` at most; those of n and n + 1."""
    powers = [_cut(held, usable_blocks)]  # of 1, 2, 4, ... requests
    while 1 - powers[-1].sum() <= risk:
        powers.append(_sum_of(powers[-1], powers[-1], usable_blocks))
    number, found = 0, np.ones(1)
    for i, power in reversed(list(enumerate(powers))):
        tried = _sum_of(found, power, usable_blocks)
        if 1 - tried.sum() <= risk:
            number, found = number + 2**i, tried
    above = _sum_of(found, powers[0], usable_blocks)
    return number, (_share(1 - found.sum()), _share(1 - above.sum()))


def _sum_of(first: Floats, second: Floats, limit: int) -> Floats:
    from scipy.signal import convolve

    return _cut(np.maximum(convolve(first, second), 0.0), limit)


def _cut(distribution: Floats, limit: int) -> Floats:
    return distribution[: limit + 1]


def _share(value: float) -> float:
    """Rounding errors of the convolution taken off."""
    return round(max(0.0, float(value)), 9)
