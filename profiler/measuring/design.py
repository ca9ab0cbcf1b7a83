"""The design of experiments: which batches to build, drawn at random so that every range is covered.

An episode is a batch of decodes at drawn contexts (none in some episodes), steps of it alone, then prompts injected
into it and computed in chunks of drawn sizes. Sizes are log-uniform, and a twentieth of the draws falls on each end of
a range. Episode i is a function of seed and i alone: a measurement that goes on continues the same series.

How long a batch decodes alone matters, for the first steps after a prefill are slower: on a CPU by a quarter, fading
over ten steps. In traffic it is the time between two arrivals: with n requests of L tokens running one ends every L / n
steps (Little's law), and as many come.

Contexts come from `streams`, fixed series of tokens: with prefix caching a context is computed once and found again by
later episodes, and no two requests of a batch share blocks. A step's tokens and decodes are taken from the `warm` ones:
where steps are short that is every number, as in traffic, where few prompts are alike. (A CPU's kernels are made for a
size, and those of the last few are kept: when few sizes were drawn they were always there, and steps 0.3 ms shorter.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from simbatch.profiler.fitting.samples import EngineFacts

OUTPUT_TOKENS = (16, 1024)  # of the requests that a batch stands for
MIN_DECODE_STEPS, MAX_DECODE_STEPS = 4, 32  # more episodes say more than longer ones
MAX_DECODE_SHARE = 1 / 16  # of the model's length, at most
MAX_MIXED_STEPS = 4
MAX_PROMPTS = 3
MIN_CONTEXT = 16
TAIL = (8, 24)  # tokens of a context that the cache is not asked for: one block is never hit in whole
SPREADS = (1.0, 1.0, 2.0, 4.0)  # how uneven a batch's contexts are
PREFILL_ONLY = 0.2  # share of the episodes
NO_HISTORY = 0.4  # share of the injections
REPEATED = 0.3  # share of the episodes that compute the same chunks twice
DENSE = 32  # counts up to here are all warm, whatever a step takes
COUNTS_PER_OCTAVE = 10
AT_THE_ENDS = 0.05
FILL = 0.9  # of the KV blocks, at most
NUM_HISTORIES = 4  # streams that histories are taken from


@dataclass(frozen=True)
class Limits:
    """What an episode must stay within; `num_blocks` are those that requests can use."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    dense: int = DENSE  # counts up to here are all warm

    @classmethod
    def of(cls, facts: EngineFacts) -> Limits:
        """Those of an engine, without vLLM's null block."""
        return cls(
            facts.max_num_seqs,
            facts.max_num_batched_tokens,
            facts.max_model_len,
            facts.block_size,
            facts.num_gpu_blocks - 1,
        )

    @cached_property
    def warm_tokens(self) -> tuple[int, ...]:
        """Token counts that steps with prefills are given."""
        return counts(self.max_num_batched_tokens, self.dense)

    @cached_property
    def warm_decodes(self) -> tuple[int, ...]:
        """Batch sizes."""
        return counts(self.largest_batch, self.dense)

    @cached_property
    def most_decode_steps(self) -> int:
        """The longest that a batch decodes alone: contexts grow meanwhile."""
        return int(np.clip(self.max_model_len * MAX_DECODE_SHARE, 2 * MIN_DECODE_STEPS, MAX_DECODE_STEPS))

    @cached_property
    def largest_batch(self) -> int:
        """Requests of `MIN_CONTEXT` that run at once, in half of the memory."""
        lifetime = MIN_CONTEXT + _num_steps(self, 0)
        return max(1, min(self.max_num_seqs, int(self.num_blocks * FILL / 2) // self.blocks(lifetime)))

    def blocks(self, num_tokens: int) -> int:
        """What that many tokens of one request take."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True)
class Injection:
    """A prompt put into the batch: `history` tokens that are computed before, and those to compute in chunks."""

    stream: int
    history: int
    num_tokens: int


@dataclass(frozen=True)
class Episode:
    """One draw: contexts of the decodes, prompts, and how many tokens each step with prefills may compute."""

    index: int
    contexts: tuple[int, ...]
    injections: tuple[Injection, ...]
    budgets: tuple[int, ...]
    num_decode_steps: int  # of the batch alone
    num_repeats: int
    num_steps: int  # that a decode lives at most: its context grows by so much

    @property
    def num_decodes(self) -> int:
        """Requests that decode."""
        return len(self.contexts)


def counts(highest: int, dense: int = DENSE) -> tuple[int, ...]:
    """1 to `highest`: every number up to `dense`, and others, ever fewer."""
    every = range(1, min(dense, highest) + 1)
    if highest <= DENSE:
        return tuple(every)
    num_wide = ceil(np.log2(highest / DENSE) * COUNTS_PER_OCTAVE) + 1
    wide = np.geomspace(DENSE, highest, num_wide).round().astype(int)
    return tuple(sorted({*every, *map(int, wide)}))


def draw(limits: Limits, seed: int, index: int) -> Episode:
    """Episode `index` of the series of `seed`."""
    rng = np.random.default_rng([seed, index])
    is_decoding = rng.random() >= PREFILL_ONLY
    num_decodes = _near(limits.warm_decodes, _log_uniform(rng, 1, limits.largest_batch)) if is_decoding else 0
    contexts = _contexts(limits, rng, num_decodes)
    room = min(MAX_PROMPTS, limits.max_num_seqs - num_decodes)
    num_repeats = 2 if rng.random() < REPEATED else 1
    budgets = _budgets(limits, rng, num_decodes) if room else ()
    injections = _injections(limits, rng, budgets, num_decodes, room)
    decode_steps = _decode_steps(limits, rng, num_decodes)
    return Episode(index, contexts, injections, budgets, decode_steps, num_repeats, _num_steps(limits, sum(contexts)))


def stream_tokens(stream: int, length: int, vocab_size: int, seed: int) -> list[int]:
    """The first `length` tokens of a stream; a longer piece begins with a shorter one."""
    rng = np.random.default_rng([seed, stream])
    return list(map(int, rng.integers(0, vocab_size, size=length)))


def _num_steps(limits: Limits, num_context_tokens: int) -> int:
    """Steps from a batch's first decode to its end: building it, decoding, prefills twice, catching up."""
    building = 2 * ceil(num_context_tokens / limits.max_num_batched_tokens)
    catching_up = 2 * ceil(limits.max_model_len / limits.max_num_batched_tokens)
    return building + catching_up + limits.most_decode_steps + 2 * MAX_MIXED_STEPS + 8


def _contexts(limits: Limits, rng: np.random.Generator, num_decodes: int) -> tuple[int, ...]:
    if not num_decodes:
        return ()
    blocks_each = int(limits.num_blocks * FILL / 2) // num_decodes
    most = min(limits.max_model_len, blocks_each * limits.block_size)
    most -= _num_steps(limits, num_decodes * most) + TAIL[1]
    mean = _log_uniform(rng, MIN_CONTEXT, max(MIN_CONTEXT, most))
    spread = float(rng.choice(SPREADS))
    drawn = np.exp(rng.uniform(np.log(mean / spread), np.log(mean * spread), size=num_decodes))
    longest = limits.max_model_len - _num_steps(limits, num_decodes * mean) - TAIL[1]
    drawn = np.minimum(drawn * mean / drawn.mean(), longest)
    return tuple(_aligned(limits, rng, int(context)) for context in drawn)


def _decode_steps(limits: Limits, rng: np.random.Generator, num_decodes: int) -> int:
    """Those between two arrivals, at a drawn number of output tokens."""
    if not num_decodes:
        return 0
    between = _log_uniform(rng, *OUTPUT_TOKENS) / num_decodes
    return int(np.clip(between, MIN_DECODE_STEPS, limits.most_decode_steps))


def _aligned(limits: Limits, rng: np.random.Generator, context: int) -> int:
    """A context of whole blocks that the cache can give, and a few tokens."""
    whole = context // limits.block_size * limits.block_size
    return whole + int(rng.integers(*TAIL)) if whole >= 2 * limits.block_size else max(1, context)


def _budgets(limits: Limits, rng: np.random.Generator, num_decodes: int) -> tuple[int, ...]:
    if num_decodes >= limits.max_num_batched_tokens:
        return ()
    num_steps = int(rng.integers(1, MAX_MIXED_STEPS + 1))
    most = limits.max_num_batched_tokens - num_decodes
    drawn = (num_decodes + _log_uniform(rng, 1, most) for _ in range(num_steps))
    return tuple(_near(limits.warm_tokens, tokens, above=num_decodes) for tokens in drawn)


def _injections(
    limits: Limits, rng: np.random.Generator, budgets: tuple[int, ...], num_decodes: int, room: int
) -> tuple[Injection, ...]:
    """One to three prompts that last for all budgets; the first may have a history."""
    if not budgets:
        return ()
    num_prompts = int(rng.integers(1, room + 1))
    tokens = sum(budgets) - len(budgets) * num_decodes + len(budgets)
    tokens = min(tokens, limits.max_model_len - 1, int(limits.num_blocks * FILL / 4) * limits.block_size)
    cuts = np.sort(rng.integers(0, tokens + 1, size=num_prompts - 1))
    parts = [int(part) for part in np.diff([0, *cuts, tokens]) if part]
    stream = -1 - int(rng.integers(NUM_HISTORIES))
    history = 0 if rng.random() < NO_HISTORY else _history(limits, rng, parts[0])
    return tuple(Injection(stream, 0 if i else history, part) for i, part in enumerate(parts))


def _history(limits: Limits, rng: np.random.Generator, num_tokens: int) -> int:
    """In whole blocks, so that the cache gives all of it."""
    most = min(limits.max_model_len - 1 - num_tokens, int(limits.num_blocks * FILL / 4) * limits.block_size)
    if most < limits.block_size:
        return 0
    return _log_uniform(rng, limits.block_size, most) // limits.block_size * limits.block_size


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number, the ends more often than the rest."""
    share = np.clip((rng.random() - AT_THE_ENDS) / (1 - 2 * AT_THE_ENDS), 0, 1)
    return round(float(low * (high / low) ** share))


def _near(values: tuple[int, ...], number: int, above: int = 0) -> int:
    return min((value for value in values if value > above), key=lambda value: abs(value - number))
