"""The design of experiments: which requests to send, drawn at random so that every range is covered.

A wave is a batch of decodes at drawn contexts (none in some waves) into which prompts of drawn lengths are sent while
it decodes. In half of the waves the requests end one after the other, so that one wave passes through every batch size
below its own, capture sizes and those between them; in the others they stay together. What it takes to compute the
contexts is measured like any other prefill. Sizes are log-uniform, and a twentieth of the draws falls on each end of a
range. Wave i is a function of seed and i alone: a measurement that goes on continues the same series.

Contexts come from `streams`, fixed series of tokens: with prefix caching a context is computed once and found again by
later waves, and no two requests of a batch share blocks.

How long a batch decodes between two prompts matters on a CPU: its first steps after a prefill are slower by a quarter,
fading over ten steps. In traffic it is the time between two arrivals: with n requests of L tokens running one ends
every L / n steps (Little's law), and as many come.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from simbatch.profiler.records.samples import EngineFacts

OUTPUT_TOKENS = (16, 1024)  # of the requests that a batch stands for
STEPS = (12, 96)  # of a wave's longest request: sending a batch takes time, so the larger it is the longer it stays
MAX_SHARE = 1 / 8  # of the model's length, at most
MIN_GAP, MAX_GAP = 2, 24  # decode steps between two prompts
MAX_INJECTIONS = 6
MAX_PROMPTS = 3  # that come at once
MIN_CONTEXT = 16
TAIL = (8, 24)  # tokens of a context that the cache is not asked for: one block is never hit in whole
SPREADS = (1.0, 1.0, 2.0, 4.0)  # how uneven a batch's contexts are
PREFILL_ONLY = 0.2  # share of the waves
STAIRS = 0.5  # share of the others
NO_HISTORY = 0.4  # share of the prompts
BY_MODEL = 0.15  # share of the waves whose tokens are drawn as the model's own config says, not greedily
DENSE = 32  # counts up to here are all visited in a CPU's warm-up, whatever a step takes
COUNTS_PER_OCTAVE = 10
AT_THE_ENDS = 0.05
FILL = 0.9  # of the KV blocks, at most
NUM_HISTORIES = 4  # streams that histories are taken from


@dataclass(frozen=True)
class WaveLimits:
    """What a wave must stay within; `num_blocks` are those that requests can use."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int

    @classmethod
    def of(cls, facts: EngineFacts) -> WaveLimits:
        """Those of an engine, without vLLM's null block."""
        return cls(
            facts.max_num_seqs,
            facts.max_num_batched_tokens,
            facts.max_model_len,
            facts.block_size,
            facts.num_gpu_blocks - 1,
        )

    @cached_property
    def most_steps(self) -> int:
        """The longest that a decode lives: its context grows meanwhile."""
        return int(np.clip(self.max_model_len * MAX_SHARE, STEPS[0], STEPS[1]))

    @cached_property
    def largest_batch(self) -> int:
        """Requests of `MIN_CONTEXT` that run at once, in half of the memory."""
        return max(1, min(self.max_num_seqs, int(self.num_blocks * FILL / 2) // self.blocks(self._lifetime)))

    @cached_property
    def longest_prompt(self) -> int:
        """One that leaves room for a token, and fits into memory."""
        return min(self.max_model_len, self.num_blocks * self.block_size) - 1

    @property
    def _lifetime(self) -> int:
        return MIN_CONTEXT + self.most_steps + TAIL[1]

    def blocks(self, num_tokens: int) -> int:
        """What that many tokens of one request take."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True)
class Prompt:
    """A prompt: `history` tokens that are computed before, if a cache keeps them, and `num_tokens` new ones."""

    stream: int
    history: int
    num_tokens: int


@dataclass(frozen=True)
class Injection:
    """Prompts that are sent at once, `gap` decode steps after the ones before them have been answered."""

    gap: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class Wave:
    """One draw: contexts of the decodes, how many tokens each gets, and what comes meanwhile."""

    index: int
    contexts: tuple[int, ...]
    num_tokens: tuple[int, ...]
    injections: tuple[Injection, ...]
    is_greedy: bool

    @property
    def num_decodes(self) -> int:
        """Requests that decode, at first."""
        return len(self.contexts)


def counts(highest: int, dense: int = DENSE) -> tuple[int, ...]:
    """1 to `highest`: every number up to `dense`, and others, ever fewer."""
    every = range(1, min(dense, highest) + 1)
    if highest <= DENSE:
        return tuple(every)
    num_wide = ceil(np.log2(highest / DENSE) * COUNTS_PER_OCTAVE) + 1
    wide = np.geomspace(DENSE, highest, num_wide).round().astype(int)
    return tuple(sorted({*every, *map(int, wide)}))


def draw(limits: WaveLimits, seed: int, index: int) -> Wave:
    """Wave `index` of the series of `seed`."""
    rng = np.random.default_rng([seed, index])
    is_decoding = rng.random() >= PREFILL_ONLY
    num_decodes = _log_uniform(rng, 1, limits.largest_batch) if is_decoding else 0
    longest = _log_uniform(rng, min(STEPS[0], limits.most_steps), limits.most_steps)
    num_tokens = _num_tokens(rng, num_decodes, longest)
    contexts = _contexts(limits, rng, num_decodes, longest)
    injections = _injections(limits, rng, num_decodes, longest)
    return Wave(index, contexts, num_tokens, injections, rng.random() >= BY_MODEL)


def stream_tokens(stream: int, length: int, vocab_size: int, seed: int) -> list[int]:
    """The first `length` tokens of a stream; a longer piece begins with a shorter one."""
    rng = np.random.default_rng([seed, stream % 2**32])  # streams before zero give histories
    tokens: list[int] = rng.integers(0, vocab_size, size=length).tolist()
    return tokens


def _num_tokens(rng: np.random.Generator, num_decodes: int, longest: int) -> tuple[int, ...]:
    """All the same, or stairs down to one request."""
    if num_decodes and rng.random() < STAIRS:
        shortest = max(2, longest // 6)
        return tuple(int(number) for number in np.linspace(shortest, longest, num_decodes).round())
    return (longest,) * num_decodes


def _contexts(limits: WaveLimits, rng: np.random.Generator, num_decodes: int, longest: int) -> tuple[int, ...]:
    if not num_decodes:
        return ()
    blocks_each = int(limits.num_blocks * FILL / 2) // num_decodes
    most = min(limits.max_model_len, blocks_each * limits.block_size) - longest - TAIL[1]
    mean = _log_uniform(rng, MIN_CONTEXT, max(MIN_CONTEXT, most))
    spread = float(rng.choice(SPREADS))
    drawn = np.exp(rng.uniform(np.log(mean / spread), np.log(mean * spread), size=num_decodes))
    drawn = np.minimum(drawn * mean / drawn.mean(), limits.max_model_len - longest - TAIL[1])
    return tuple(_aligned(limits, rng, int(context)) for context in drawn)


def _aligned(limits: WaveLimits, rng: np.random.Generator, context: int) -> int:
    """A context of whole blocks that the cache can give, and a few tokens."""
    whole = context // limits.block_size * limits.block_size
    return whole + int(rng.integers(*TAIL)) if whole >= 2 * limits.block_size else max(1, context)


def _injections(limits: WaveLimits, rng: np.random.Generator, num_decodes: int, longest: int) -> tuple[Injection, ...]:
    """As many as come while the batch decodes; alone, a few."""
    seats = min(MAX_PROMPTS, limits.max_num_seqs - num_decodes)
    if seats < 1 or num_decodes >= limits.max_num_batched_tokens:
        return ()
    between = _log_uniform(rng, *OUTPUT_TOKENS) / max(1, num_decodes)
    gap = int(np.clip(between, MIN_GAP, MAX_GAP))
    number = min(MAX_INJECTIONS, max(1, longest // (gap + 2)))
    return tuple(Injection(gap, _prompts(limits, rng, num_decodes, seats)) for _ in range(number))


def _prompts(limits: WaveLimits, rng: np.random.Generator, num_decodes: int, seats: int) -> tuple[Prompt, ...]:
    """One to three that fill a drawn part of a step; one in twelve fills several steps."""
    budget = limits.max_num_batched_tokens - num_decodes
    tokens = _log_uniform(rng, 1, budget) * (int(rng.integers(2, 5)) if rng.random() < 1 / 12 else 1)
    tokens = min(tokens, limits.longest_prompt - 1, int(limits.num_blocks * FILL / 4) * limits.block_size)
    cuts = np.sort(rng.integers(0, tokens + 1, size=int(rng.integers(1, seats + 1)) - 1))
    parts = [int(part) for part in np.diff([0, *cuts, tokens]) if part]
    stream = -1 - int(rng.integers(NUM_HISTORIES))
    history = 0 if rng.random() < NO_HISTORY else _history(limits, rng, parts[0])
    return tuple(Prompt(stream, 0 if i else history, part) for i, part in enumerate(parts))


def _history(limits: WaveLimits, rng: np.random.Generator, num_tokens: int) -> int:
    """In whole blocks, so that the cache gives all of it."""
    most = min(limits.max_model_len - 1 - num_tokens, int(limits.num_blocks * FILL / 4) * limits.block_size)
    if most < limits.block_size:
        return 0
    return _log_uniform(rng, limits.block_size, most) // limits.block_size * limits.block_size


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number, the ends more often than the rest."""
    share = np.clip((rng.random() - AT_THE_ENDS) / (1 - 2 * AT_THE_ENDS), 0, 1)
    return round(float(low * (high / low) ** share))
