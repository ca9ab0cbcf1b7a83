"""What a step computes, in the numbers that cost models know, and how long it lasts on the integer picosecond clock.

Every coefficient is rounded once, here, so that spans of steps and single steps agree exactly.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.host import ATTENTION_SHIFT, HALF, WindowCost


class CostModel(Protocol):
    """Step durations in integer ps."""

    @property
    def decode_context_ps(self) -> int:
        """What one token of context costs in a decode-only step (context: tokens computed before, over all decodes)."""
        ...

    @property
    def windows(self) -> WindowCost | None:
        """What layers with a window add to every step, if there are any."""
        ...

    def decode_ps(self, num_decodes: int, /) -> int:
        """The rest of a decode-only step: `decode_ps(n) + decode_context_ps * context`, and what windows add."""
        ...

    def mixed_ps(
        self, num_decodes: int, decode_context: int, prefill_tokens: int, prefill_context: int, prefill_attention: int
    ) -> int:
        """A step with any prefill, but for what windows add.

        For a prefill of q tokens after h computed ones: `prefill_tokens` is the sum of q, `prefill_context` of h + q,
        `prefill_attention` of q * (2h + q).
        """
        ...


@dataclass(frozen=True, slots=True)
class LinearCost:
    """Four terms: base, prefill tokens, decodes, and context (computed before + scheduled now, over all entries).

    Where steps are padded to CUDA graphs (`capture_sizes`), padding costs as many tokens of its kind, without context.
    """

    base_ps: int
    per_prefill_token_ps: int
    per_decode_seq_ps: int
    per_context_token_ps: int
    capture_sizes: tuple[int, ...] = ()

    @property
    def decode_context_ps(self) -> int:
        """What one token of context costs in a decode-only step, ps."""
        return self.per_context_token_ps

    @property
    def windows(self) -> WindowCost | None:
        """None."""
        return None

    def decode_ps(self, num_decodes: int, /) -> int:
        """A decode-only step but for its context: the token that a decode computes now counts as context too."""
        num_computed = padded(num_decodes, self.capture_sizes) if self.capture_sizes else num_decodes
        return self.base_ps + self.per_decode_seq_ps * num_computed + self.per_context_token_ps * num_decodes

    def mixed_ps(
        self, num_decodes: int, decode_context: int, prefill_tokens: int, prefill_context: int, prefill_attention: int
    ) -> int:
        """A step with any prefill, in full: `prefill_attention` costs nothing here."""
        del prefill_attention
        num_tokens, padding = num_decodes + prefill_tokens, 0
        if self.capture_sizes:
            padding = padded(num_tokens, self.capture_sizes) - num_tokens
        return (
            self.base_ps
            + self.per_prefill_token_ps * (prefill_tokens + padding)
            + self.per_decode_seq_ps * num_decodes
            + self.per_context_token_ps * (decode_context + num_decodes + prefill_context)
        )


def padded(count: int, capture_sizes: Sequence[int]) -> int:
    """How many tokens the GPU computes for `count`: the next capture size, or as many above the largest."""
    index = bisect_left(capture_sizes, count)
    return capture_sizes[index] if index < len(capture_sizes) else count


class PiecewiseLinear:
    """A function of a count, linear between its knots and above them, constant below them, as integers.

    A count is padded to the next of `capture_sizes`, if any. Values are computed once and kept: the engine asks for the
    same few thousand counts millions of times.
    """

    def __init__(self, counts: Sequence[int], values_ps: Sequence[int], capture_sizes: Sequence[int] = ()) -> None:
        self._counts = tuple(counts)
        self._values = tuple(values_ps)
        self._sizes = tuple(capture_sizes)
        self.table: list[int] = []

    def __call__(self, count: int, /) -> int:
        """The value at `count` (0 or more), in ps."""
        if count >= len(self.table):
            self.table.extend(map(self._at, range(len(self.table), count + 1)))
        return self.table[count]

    def _at(self, count: int) -> int:
        count = padded(count, self._sizes)
        if count <= self._counts[0] or len(self._counts) == 1:
            return self._values[0]
        right = min(bisect_left(self._counts, count), len(self._counts) - 1)
        x0, x1 = self._counts[right - 1], self._counts[right]
        y0, y1 = self._values[right - 1], self._values[right]
        return y0 + ((y1 - y0) * (count - x0) * 2 + (x1 - x0)) // (2 * (x1 - x0))


class TwoRegimeCost:
    """Decode-only steps and steps with any prefill, each with its own terms.

    decode-only: decode(n) + decode_context * context
    any prefill: tokens(T) + seq * n + seq_token * n * P + context * decode context + prefill_context * sum of (h + q)
                 + attention * sum of q * (2h + q)
    with n decodes, P prefill tokens and T = P + n. A decode's context costs two to four times as much beside a prefill,
    whose attention kernel is another one: one coefficient cannot serve both. That kernel also starts, for every
    sequence, as many thread blocks as its longest chunk needs (n * P), and a short chunk waits for its history to be
    read (h + q) rather than computed with (q * (2h + q)).
    """

    def __init__(
        self,
        *,
        decode: PiecewiseLinear,
        decode_context_ps: int,
        tokens: PiecewiseLinear,
        seq_ps: int,
        seq_token_ps: int,
        context_ps: int,
        prefill_context_ps: int,
        attention_s: float,
        windows: WindowCost | None = None,
    ) -> None:
        self.decode_ps = decode
        self.decode_context_ps = decode_context_ps
        self.windows = windows
        self._tokens = tokens
        self._table = tokens.table
        self._seq_ps = seq_ps
        self._seq_token_ps = seq_token_ps
        self._context_ps = context_ps
        self._prefill_context_ps = prefill_context_ps
        self._attention = attention_of(attention_s)

    def mixed_ps(
        self, num_decodes: int, decode_context: int, prefill_tokens: int, prefill_context: int, prefill_attention: int
    ) -> int:
        """A step with any prefill, in full, ps."""
        num_tokens, table = prefill_tokens + num_decodes, self._table
        return (
            (table[num_tokens] if num_tokens < len(table) else self._tokens(num_tokens))
            + (self._seq_ps + self._seq_token_ps * prefill_tokens) * num_decodes
            + self._context_ps * decode_context
            + self._prefill_context_ps * prefill_context
            + ((self._attention * prefill_attention + HALF) >> ATTENTION_SHIFT)
        )


def attention_of(unit_s: float) -> int:
    """A coefficient of attention with more bits than a ps has."""
    return round(unit_s * PS_PER_S * (1 << ATTENTION_SHIFT))


class Features(NamedTuple):
    """A batch: decodes and the sum of their contexts; of prefills (q tokens after h computed ones) three sums.

    The last two are what is inside windows, 0 where the cost model has none (`WindowCost`).
    """

    num_decodes: int
    decode_context: int  # tokens computed before
    prefill_tokens: int  # sum of q
    prefill_context: int  # sum of h + q
    prefill_attention: int  # sum of q * (2h + q)
    num_prefills: int
    decode_window: int = 0
    prefill_window: int = 0

    @property
    def num_requests(self) -> int:
        """Entries of the batch."""
        return self.num_decodes + self.num_prefills

    @property
    def num_tokens(self) -> int:
        """Scheduled tokens."""
        return self.num_decodes + self.prefill_tokens


# The same as a plain tuple, which the engine's loops unpack in a third of the time.
Sums = tuple[int, int, int, int, int, int, int, int]


def is_decode(num_tokens: int, num_computed_tokens: int, num_prompt_tokens: int, samples: bool = True) -> bool:
    """Whether a request's share of a step is a decode: one token, after its prompt, that gives the next one."""
    return samples and num_tokens == 1 and num_computed_tokens >= num_prompt_tokens


def sums_of(
    entries: Iterable[tuple[int, int, bool]],
    num_decodes: int = 0,
    decode_context: int = 0,
    windows: WindowCost | None = None,
    decode_window: int = 0,
) -> Sums:
    """What `Features` has, of entries (tokens, tokens computed before, whether it is a decode).

    The decodes beside them are counted already.
    """
    num_prefills = tokens = context = attention = in_window = 0
    for n, computed, decodes in entries:
        if decodes:
            num_decodes += 1
            decode_context += computed
            if windows is not None:
                decode_window += min(computed, windows.size)
        else:
            num_prefills += 1
            tokens += n
            context += computed + n
            attention += n * (2 * computed + n)
            if windows is not None:
                in_window += windows.units(n, computed)
    return num_decodes, decode_context, tokens, context, attention, num_prefills, decode_window, in_window


def step_ps(cost: CostModel, sums: Sums) -> int:
    """How long the device works on a step."""
    num_decodes, context, tokens, prefill_context, attention, _, decode_window, prefill_window = sums
    if tokens:
        duration_ps = cost.mixed_ps(num_decodes, context, tokens, prefill_context, attention)
    else:
        duration_ps = cost.decode_ps(num_decodes) + cost.decode_context_ps * context
    if cost.windows is not None:
        duration_ps += cost.windows.added_ps(decode_window, tokens, prefill_window)
    return duration_ps


def step_ps_beside(cost: CostModel, decoding: tuple[int, int], num_tokens: int, num_computed: int) -> int:
    """A step of so many prompt tokens, after `num_computed` others, beside decodes: their number and context."""
    windows = cost.windows
    entries = [(num_tokens, num_computed, False)] if num_tokens else []
    in_window = windows.alike(*decoding) if windows is not None else 0
    return step_ps(cost, sums_of(entries, *decoding, windows, in_window))


def step_ps_alike(
    cost: CostModel,
    num_decodes: int,
    context: int,
    prefill_tokens: int = 0,
    prefill_context: int = 0,
    prefill_attention: int = 0,
) -> int:
    """A step of which only sums are known: decodes with as much context each, and one prefill, if there is any."""
    windows, in_window, units = cost.windows, 0, 0
    if windows is not None:
        in_window = windows.alike(num_decodes, context)
        units = windows.units(prefill_tokens, prefill_context - prefill_tokens)
    sums = (num_decodes, context, prefill_tokens, prefill_context, prefill_attention, prefill_tokens > 0)
    return step_ps(cost, Features(*sums, in_window, units))
