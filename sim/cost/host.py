"""Terms of a step's time in integer ps: host and front end beside the device, draws from spreads, attention's windows.

A launch is of kind `graph` (no prefills, at most as many requests as the largest CUDA graph holds), `piecewise` (other
batches of at most that many tokens) or `none` (the rest, and every batch where graphs are off).

Draws are seeded: a stream is the raw output of PCG64, each draw an index into a table of equally likely ratios, and
times are multiplied in integers: the same seed gives the same times on any machine and with any version of numpy.
Nothing here needs pydantic.

In layers that look at a window of the newest tokens a decode after k computed ones reads min(k, window) of them:

    window 4, decodes after 2, 3 and 9 tokens: 2 + 3 + 4 = 9 tokens, a step later 3 + 4 + 4 = 11, then 12 for ever

Prompts are counted in the unit of the other layers, q * (2h + q) for q tokens after h: the same sum, where each token
looks back at no more than a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

GRAPH, PIECEWISE, NONE = "graph", "piecewise", "none"


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """Host time to schedule and launch a batch of one kind."""

    base_ps: int = 0
    per_seq_ps: int = 0
    per_prefill_ps: int = 0  # per entry that is not a decode
    per_token_ps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """Host time of launches, updates and admissions; when the device can begin and end relative to a launch."""

    graph: LaunchTimes = LaunchTimes()
    piecewise: LaunchTimes = LaunchTimes()
    none: LaunchTimes = LaunchTimes()
    update_base_ps: int = 0
    update_per_seq_ps: int = 0
    admit_base_ps: int = 0
    admit_per_prompt_token_ps: int = 0
    lag_ps: int = 0  # the device can begin a batch this long after its schedule() began
    tail_ps: int = 0  # and ends it no earlier than this long after its launch has returned


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndTimes:
    """What the server's processes do to a request on its way in, and to its tokens on their way out."""

    per_request_ps: int = 0
    per_prompt_token_ps: int = 0
    per_chunk_ps: int = 0
    network_ps: int = 0


class HostDraws(Protocol):
    """Noise of launches; a stream of draws in the order of the launches that draw."""

    def draws_for(self, kind: str) -> bool:
        """Whether launches of this kind are spread."""

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        """How long the next launch of this kind lasts that takes `mean_ps` on average."""


TABLE_BITS = 14  # a table of 16,384 ratios: 4 of them are beyond the 99.98th percentile
RATIO_SHIFT = 24  # ratios are integers of that many more bits
BLOCK = 4096  # draws at once
# Apart from arrivals, lengths, priorities and prefixes, which draw from the same seed, and from each other.
STEP_STREAM, LAUNCH_STREAM = 0x5EED0F5, 0x5EED1A7

_HALF = 1 << (RATIO_SHIFT - 1)


def ratio_table(share: Sequence[float], ratio: Sequence[float]) -> list[int]:
    """Equally likely ratios of the distribution with these quantiles, as integers; their mean is 1 to the last bit."""
    size = 1 << TABLE_BITS
    values = np.interp((np.arange(size) + 0.5) / size, share, ratio)
    ratios = [round(value * (1 << RATIO_SHIFT)) for value in (values / values.mean()).tolist()]
    ratios[size // 2] += size * (1 << RATIO_SHIFT) - sum(ratios)  # what rounding left: a few millionths of one ratio
    return ratios


class _Indices:
    """The stream of one replica: `next()` is an index into a table, every one as likely."""

    def __init__(self, stream: int, seed: int, replica: int) -> None:
        entropy = [stream, seed, replica] if replica else [stream, seed]
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))
        self._block: list[int] = []

    def next(self) -> int:
        if not self._block:
            raw = self._bits.random_raw(BLOCK) >> np.uint64(64 - TABLE_BITS)  # the highest bits
            self._block = [int(value) for value in raw[::-1]]  # the first draw last: `pop` takes from there
        return self._block.pop()


class NoiseDraws:
    """Noise of the device; draw i belongs to the i-th step that an engine plans, in spans as one by one."""

    def __init__(self, decode: list[int], mixed: list[int], seed: int, replica: int = 0) -> None:
        self._decode, self._mixed = decode, mixed
        self._indices = _Indices(STEP_STREAM, seed, replica)

    def step_ps(self, duration_ps: int, has_prefill: bool) -> int:
        """How long the next step lasts that the cost model says takes `duration_ps`; at least 1 ps."""
        ratio = (self._mixed if has_prefill else self._decode)[self._indices.next()]
        return (duration_ps * ratio + _HALF >> RATIO_SHIFT) or 1


class LaunchDraws:
    """Noise of the host (a `HostDraws`): the j-th launch that draws takes the j-th draw, of whichever kind it is.

    `tables` has the kinds of launch that are spread; launches of the others take no draw.
    """

    def __init__(self, tables: Mapping[str, list[int]], seed: int, replica: int = 0) -> None:
        self._tables = dict(tables)
        self._indices = _Indices(LAUNCH_STREAM, seed, replica)

    def draws_for(self, kind: str) -> bool:
        """Whether launches of this kind are spread."""
        return kind in self._tables

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        """How long the next launch of a kind lasts that is spread, where it takes `mean_ps` on average."""
        return mean_ps * self._tables[kind][self._indices.next()] + _HALF >> RATIO_SHIFT


ATTENTION_SHIFT: Final = 20  # of attention coefficients: a few thousand ps per unit, multiplied by up to 1e9 units
HALF: Final = 524288  # 1 << (ATTENTION_SHIFT - 1), as a number that compiled code knows


@dataclass(frozen=True, slots=True)
class WindowCost:
    """Coefficients of all layers with a window of `size` tokens; `attention` keeps ATTENTION_SHIFT more bits."""

    size: int
    decode_ps: int  # a token inside a decode's window, in a decode-only step
    mixed_ps: int  # the same beside a prefill
    attention: int  # of a prompt's unit

    def added_ps(self, decode_window: int, prefill_tokens: int, prefill_window: int) -> int:
        """What they add to a step: `decode_window` tokens inside the windows of all decodes, units of its prompts."""
        if not prefill_tokens:
            return self.decode_ps * decode_window
        return self.mixed_ps * decode_window + ((self.attention * prefill_window + HALF) >> ATTENTION_SHIFT)

    def units(self, num_tokens: int, num_computed: int) -> int:
        """Of a prefill of so many tokens after so many others: q * (2h + q) while it is inside the window."""
        return self._square(num_computed + num_tokens) - self._square(num_computed)

    def alike(self, num_decodes: int, context: int) -> int:
        """Tokens inside the windows of decodes that have as much context each."""
        return min(context, num_decodes * self.size)

    def _square(self, length: int) -> int:
        """Of a sequence: its square, and from the window on a straight line."""
        size = self.size
        return length * length if length <= size else size * (2 * length - size)
