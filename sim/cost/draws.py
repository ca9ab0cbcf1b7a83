"""Seeded draws from spreads of times: of the device's steps, and of the host's launches.

A stream is the raw output of PCG64, each draw an index into a table of equally likely ratios, and times are multiplied
in integers: the same seed gives the same times on any machine and with any version of numpy. Nothing here needs
pydantic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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
