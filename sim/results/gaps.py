"""Inter-token latency without a timestamp per token: exact statistics of pooled arithmetic progressions.

A span of m decode-only steps gives every decode the gaps d, d + s, ..., d + (m-1)s, so the pool of all gaps is a
weighted union of progressions. Its k-th smallest value v is the least integer with C(v) >= k, where C(x), the number
of gaps up to x, is closed per progression. Rows that end by x bound C(x) from below and rows that begin by x from
above, so two sorted arrays bracket v; between, only the rows that straddle the bracket are counted, and bisection
drops them as it goes. A gap that is not a step's duration is a progression of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.engine.record import RunRecord

Ints = NDArray[np.int64]
LIMB_BITS = 20  # sum of weights * 2**20 stays inside int64 for 8e12 gaps


@dataclass(frozen=True)
class PooledGaps:
    """A multiset: `weight` times each of `first + j * slope`, j < `count`; ps, one row per progression, slope > 0."""

    first: Ints
    slope: Ints
    count: Ints
    weight: Ints

    @classmethod
    def of(cls, record: RunRecord) -> PooledGaps:
        """All gaps of a run; those of unfinished requests too, which the segments do not tell apart."""
        rows = record.segments[record.segments["num_regular"] > 0]
        first, slope, count = (np.ascontiguousarray(rows[name]) for name in ("duration_ps", "slope_ps", "num_steps"))
        ones = np.ones(len(record.gaps), dtype=np.int64)
        return cls.from_progressions(
            np.concatenate([first, record.gaps]),
            np.concatenate([slope, ones]),
            np.concatenate([count, ones]),
            np.concatenate([rows["num_regular"], ones]),
        )

    @classmethod
    def from_progressions(cls, first: Ints, slope: Ints, count: Ints, weight: Ints) -> PooledGaps:
        """Any progressions, constant and falling ones too."""
        first = np.where(slope < 0, first + slope * (count - 1), first)
        single = (slope == 0) | (count == 1)
        return cls(
            first,
            np.where(single, 1, np.abs(slope)),
            np.where(single, 1, count),
            np.where(single, weight * count, weight),
        )

    @cached_property
    def last(self) -> Ints:
        """The largest value of each row."""
        return self.first + self.slope * (self.count - 1)

    @cached_property
    def mass(self) -> Ints:
        """How many gaps each row stands for."""
        return self.weight * self.count

    @cached_property
    def size(self) -> int:
        """How many gaps there are."""
        return int(self.mass.sum())

    def mean_ps(self) -> float:
        """The mean: an exact integer sum, divided once."""
        return _exact_dot(self.mass, self.first + self.last) / (2 * self.size)

    def std_ps(self) -> float:
        """The population's standard deviation, to 12 digits, which no split of the spans changes.

        A progression of m varies round its own middle by s*s*(m*m - 1)/12.
        """
        middle = (self.first + self.last) / 2 - self.mean_ps()
        inside = self.slope.astype(np.float64) ** 2 * (self.count.astype(np.float64) ** 2 - 1) / 12
        variance = float((self.mass * (middle**2 + inside)).sum()) / self.size
        return float(f"{math.sqrt(variance):.12g}")

    def percentiles_ps(self, percents: Sequence[float]) -> list[float]:
        """As `numpy.percentile` gives them for the expanded multiset (method `linear`)."""
        return [self._percentile(percent) for percent in percents]

    def order_statistics(self, rank: int) -> tuple[int, int]:
        """The gaps of rank `rank` and `rank + 1` in ascending order, from 0; the last one twice at the end."""
        wanted = rank + 1
        low = int(self._firsts[0][np.searchsorted(self._firsts[1], wanted)])
        high = int(self._lasts[0][np.searchsorted(self._lasts[1], wanted)])
        rows = self._only((self.first <= high) & (self.last > low))
        num_below = self._num_in_rows_ending_by(low)
        value = rows._bisect(wanted - num_below, low, high)
        if wanted == self.size or num_below + rows._num_up_to(value) > wanted:
            return value, value
        return value, min(rows._next_after(value), self._next_first(value))

    def sketch(self, pieces: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values (ps, ascending) and their cumulative shares, good enough to draw: each row in a few equal pieces."""
        parts = np.minimum(self.count, pieces if len(self.first) < 500_000 else 1)
        row = np.repeat(np.arange(len(parts)), parts)
        piece = np.arange(len(row)) - np.repeat(np.cumsum(parts) - parts, parts)
        position = (piece + 0.5) / parts[row] * self.count[row] - 0.5
        values = self.first[row] + self.slope[row] * position
        order = np.argsort(values)
        shares = np.cumsum((self.mass[row] / parts[row])[order]) / self.size
        return values[order], shares

    def _percentile(self, percent: float) -> float:
        position = (self.size - 1) * (percent / 100)
        rank = min(math.floor(position), self.size - 1)
        low, high = self.order_statistics(rank)
        share = position - rank
        return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share

    @cached_property
    def _firsts(self) -> tuple[Ints, Ints]:
        return _with_running_mass(self.first, self.mass)

    @cached_property
    def _lasts(self) -> tuple[Ints, Ints]:
        return self._firsts if self.count.max() == 1 else _with_running_mass(self.last, self.mass)

    def _only(self, chosen: NDArray[np.bool_]) -> PooledGaps:
        return PooledGaps(self.first[chosen], self.slope[chosen], self.count[chosen], self.weight[chosen])

    def _num_in_rows_ending_by(self, value: int) -> int:
        lasts, mass = self._lasts
        position = int(np.searchsorted(lasts, value, side="right"))
        return int(mass[position - 1]) if position else 0

    def _next_first(self, value: int) -> int:
        firsts, _ = self._firsts
        position = int(np.searchsorted(firsts, value, side="right"))
        return int(firsts[position]) if position < len(firsts) else np.iinfo(np.int64).max

    def _next_after(self, value: int) -> int:
        """The least value above `value` in rows that have begun by it."""
        inside = (self.first <= value) & (self.last > value)
        first, slope = self.first[inside], self.slope[inside]
        following = first + ((value - first) // slope + 1) * slope
        return int(following.min(initial=np.iinfo(np.int64).max))

    def _num_up_to(self, value: int) -> int:
        return int((np.clip((value - self.first) // self.slope + 1, 0, self.count) * self.weight).sum())

    def _bisect(self, wanted: int, low: int, high: int) -> int:
        """The least integer from `low` to `high` with at least `wanted` gaps up to it."""
        rows = self
        while low < high:
            middle = (low + high) // 2
            if rows._num_up_to(middle) >= wanted:
                high = middle
            else:
                low = middle + 1
            done, alive = rows.last < low, (rows.last >= low) & (rows.first <= high)
            wanted -= int(rows.mass[done].sum())
            rows = rows._only(alive)
        return low


def _with_running_mass(values: Ints, mass: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(values)
    return values[order], np.cumsum(mass[order])


def _exact_dot(weights: Ints, values: Ints) -> int:
    """The sum of weights * values as a Python integer, where int64 would overflow; values from 0 to 2**62."""
    total = 0
    for shift in range(0, 60, LIMB_BITS):
        limb = values >> shift
        if shift < 60 - LIMB_BITS:
            limb &= (1 << LIMB_BITS) - 1
        total += int((weights * limb).sum()) << shift
    return total
