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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.errors import Problem, UserError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
HeldBy = Callable[[Ints], Ints]
RISK = 0.01
NUM_DRAWS = 100_000  # where lengths vary without a trace; the seed is always 0


@dataclass(frozen=True)
class RequestLengths:
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

    def within(self, max_model_len: int) -> RequestLengths:
        """What vLLM runs of them: prompts of `max_model_len` are rejected, longer outputs cut."""
        kept = self.num_prompt_tokens < max_model_len
        prompts = self.num_prompt_tokens[kept]
        return RequestLengths(prompts, np.minimum(self.num_output_tokens[kept], max_model_len - prompts), self.source)


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


def whole_blocks(block_size: int) -> HeldBy:
    """Of a cache that keeps all tokens: whole blocks of so many."""
    return lambda num_tokens: -(-num_tokens // block_size)


def held_blocks(lengths: RequestLengths, held_by: HeldBy) -> Floats:
    """Entry b: the probability that a request, met in a random step, holds b blocks."""
    begins, ends = lengths.num_prompt_tokens, lengths.num_prompt_tokens + lengths.num_output_tokens
    changes = np.bincount(begins, minlength=int(ends.max()) + 1) - np.bincount(ends)
    steps_at_tokens = np.cumsum(changes)[:-1]
    blocks = held_by(np.arange(len(steps_at_tokens)))
    steps_at_blocks = np.bincount(blocks, weights=steps_at_tokens)
    held: Floats = steps_at_blocks / steps_at_blocks.sum()
    return held


def fit(lengths: RequestLengths, usable_blocks: int, held_by: HeldBy, risk: float = RISK) -> Fit:
    """How many of these requests run at once on so many blocks; `held_by` says the blocks that tokens take."""
    held = held_blocks(lengths, held_by)
    mean_blocks = float(held @ np.arange(len(held)))
    longest = int(held_by((lengths.num_prompt_tokens + lengths.num_output_tokens).max(keepdims=True) - 1)[0])
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


def lengths_of(
    prompt_len: int | None, prompt_cv: float, output_len: int | None, output_cv: float
) -> RequestLengths | None:
    """What the flags say; None without them, UserError when one is missing."""
    if prompt_len is None or output_len is None:
        if prompt_len is None and output_len is None and not prompt_cv and not output_cv:
            return None
        missing = "--prompt-len" if prompt_len is None else "--output-len"
        raise UserError(Problem(missing, "a request has a prompt and an output", mend="give both lengths"))
    if not prompt_cv and not output_cv:
        return RequestLengths(np.array([prompt_len]), np.array([output_len]), f"{prompt_len:,} + {output_len:,} tokens")
    from simbatch.sim.workload.chunk import Purpose, stream
    from simbatch.sim.workload.sessions import FixedLength, Length, Lognormal
    from simbatch.sim.workload.synthetic import length_draw

    def drawn(mean: int, cv: float, purpose: Purpose) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        kind: Length = FixedLength(distribution="fixed", mean=mean)
        if cv:
            kind = Lognormal(distribution="lognormal", mean=mean, cv=cv)
        return length_draw(kind, folder=Path(), of="num_prompt_tokens")(stream(0, purpose), NUM_DRAWS)

    return RequestLengths(
        drawn(prompt_len, prompt_cv, Purpose.PROMPT_LEN),
        drawn(output_len, output_cv, Purpose.OUTPUT_LEN),
        f"lognormal, means {prompt_len:,} and {output_len:,}, cv {prompt_cv:g} and {output_cv:g} ({NUM_DRAWS:,} draws)",
    )


def lengths_of_flags(flags: Mapping[str, Any]) -> RequestLengths | None:
    """RequestLengths by flags or of a trace; UserError for both, or half of one."""
    trace, trace_format = flags["trace"], flags["trace_format"]
    given = lengths_of(flags["prompt_len"], flags["prompt_len_cv"], flags["output_len"], flags["output_len_cv"])
    if trace is None:
        if trace_format is not None:
            raise UserError(Problem("--trace-format", "there is no trace", trace_format, "add --trace FILE"))
        return given
    if given is not None:
        mend = "leave out --prompt-len and --output-len"
        raise UserError(Problem("--trace", "a trace brings its own lengths", mend=mend))
    return lengths_of_trace(trace, trace_format, flags["columns"])


def lengths_of_trace(path: Path, trace_format: str | None, columns: object = None) -> RequestLengths:
    """Those of a trace, row by row; rows without output are left out. UserError when it cannot be read."""
    from simbatch.sim.workload.formats import Trace
    from simbatch.sim.workload.traces import open_trace

    trace = Trace.model_validate({"path": str(path), "format": trace_format, "columns": columns, "on_empty": "skip"})
    prompts: list[int] = []
    outputs: list[int] = []
    for chunk in open_trace(trace, place="", wanted=("prompt", "output")).chunks():
        prompts += chunk.num_prompt_tokens
        outputs += chunk.num_output_tokens
    return RequestLengths(np.array(prompts), np.array(outputs), f"{path.name} ({len(prompts):,} requests)")


def runnable(lengths: RequestLengths, max_model_len: int, place: str) -> tuple[RequestLengths, list[str]]:
    """Without what vLLM rejects or cuts, and sentences that say so; UserError when nothing is left."""
    kept = lengths.within(max_model_len)
    mend = "raise --max-model-len, or give shorter lengths"
    if not len(kept):
        rule = f"every prompt is as long as max_model_len ({max_model_len:,}) or longer, so vLLM rejects it"
        raise UserError(Problem(place, rule, mend=mend))
    notes = []
    rejected = len(lengths) - len(kept)
    if rejected:
        notes.append(f"{rejected:,} of {len(lengths):,} prompts reach max_model_len ({max_model_len:,}): left out")
    too_long = lengths.num_prompt_tokens + lengths.num_output_tokens > max_model_len
    if cut := int(too_long.sum()) - rejected:
        notes.append(f"{cut:,} of {len(lengths):,} outputs are cut at max_model_len, as vLLM does")
    return kept, notes
