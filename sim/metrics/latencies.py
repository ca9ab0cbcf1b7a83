"""Latencies, throughputs and goodput by the definitions of `vllm bench serve` (`calculate_metrics` in its serve.py).

A request counts as completed when it finished; the rejected, the refused and the unfinished are `failed` and enter no
latency. Every time is the client's. The benchmark's clock runs from 0, when the client starts, to the last response, a
rejection's included: `duration`. Throughputs divide by it. Where nothing was measured the value is None, not vLLM's 0.

Inter-token latency needs no timestamp per token: it is exact statistics of pooled arithmetic progressions. A span of m
decode-only steps gives every decode the gaps d, d + s, ..., d + (m-1)s, so the pool of all gaps is a weighted union of
progressions. Its k-th smallest value v is the least integer with C(v) >= k, where C(x), the number of gaps up to x, is
closed per progression. Rows that end by x bound C(x) from below and rows that begin by x from above; counted once in
narrow logarithmic bins, they say which bins v can be in. Only the rows that reach into these are looked at one by one,
and bisection drops them as it goes. A gap that is not a step's duration is a progression of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.engine.record import FINISHED, RunRecord, bounds, slices
from simbatch.sim.metrics.columns import SloLimits, decoding_ps, e2el_ps, kept, let_in, ttft_ps
from simbatch.sim.statistics import between, linear_percentiles, rank_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LIMB_BITS, LIMB = 20, (1 << 20) - 1  # sum of weights * 2**20 stays inside int64 for 8e12 gaps
MAX_INT64 = int(np.iinfo(np.int64).max)
# A bin holds the values whose floats agree in their exponent and the first 12 bits after the point: 0.024 % wide.
BIN_SHIFT = 52 - 12
BIN_ORIGIN = int(np.float64(0.5).view(np.int64)) >> BIN_SHIFT  # 0 and what is below 1 fall into bin 0
NUM_BINS = (int(np.float64(2.0**63).view(np.int64)) >> BIN_SHIFT) - BIN_ORIGIN + 1
SKETCH_PIECES, MAX_SKETCH_ROWS = 8, 200_000


@dataclass(frozen=True)
class PooledGaps:
    """A multiset: `weight` times each of `first + j * slope`, j < `count`; ps, one row per progression, slope > 0."""

    first: Ints
    slope: Ints
    count: Ints
    weight: Ints

    @staticmethod
    @kept
    def of(record: RunRecord) -> PooledGaps:
        """All gaps of a run as clients see them; those of unfinished requests too, which spans do not tell apart."""
        pool = PooledGaps(*(np.empty(len(record.token_rows) + len(record.gaps), dtype=np.int64) for _ in range(4)))
        end = 0
        for rows in slices(record.token_rows):
            is_span = rows["num_regular"] > 0  # a column at a time: a whole row is ten times what is asked of it
            names = ("duration_ps", "slope_ps", "num_steps", "num_regular")
            spans = PooledGaps.from_progressions(*(rows[name][is_span] for name in names))
            begin, end = end, end + len(spans.first)
            pool.first[begin:end], pool.slope[begin:end] = spans.first, spans.slope
            pool.count[begin:end], pool.weight[begin:end] = spans.count, spans.weight
        rest = slice(end, end := end + len(record.gaps))
        pool.first[rest], pool.slope[rest], pool.count[rest], pool.weight[rest] = record.gaps, 1, 1, 1
        return PooledGaps(pool.first[:end], pool.slope[:end], pool.count[:end], pool.weight[:end])

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

    @property
    def last(self) -> Ints:
        """The largest value of each row."""
        return self.first + self.slope * (self.count - 1)

    @property
    def mass(self) -> Ints:
        """How many gaps each row stands for."""
        return self.weight * self.count

    @cached_property
    def size(self) -> int:
        """How many gaps there are."""
        return int(np.dot(self.weight, self.count))

    @cached_property
    def mean_ps(self) -> float:
        """The mean: an exact integer sum, divided once."""
        return sum(_exact_dot(part.mass, part.first + part.last) for part in self._parts()) / (2 * self.size)

    def std_ps(self) -> float:
        """The population's standard deviation, to 12 digits, which no split of the spans changes.

        A progression of m varies round its own middle by s*s*(m*m - 1)/12.
        """
        mean, total = self.mean_ps, 0.0
        for part in self._parts():
            middle = (part.first + part.last) / 2 - mean
            inside = part.slope.astype(np.float64) ** 2 * (part.count.astype(np.float64) ** 2 - 1) / 12
            total += float((part.mass * (middle**2 + inside)).sum())
        return float(f"{math.sqrt(total / self.size):.12g}")

    def percentiles_ps(self, percents: Sequence[float]) -> list[float]:
        """Percentiles (ps) that `numpy.percentile` would give for the expanded multiset (method `linear`)."""
        ranks = (rank_of(percent, self.size) for percent in percents)
        return [between(*self.order_statistics(rank), share) for rank, share in ranks]

    def order_statistics(self, rank: int) -> tuple[int, int]:
        """The gaps of rank `rank` and `rank + 1` in ascending order, from 0; the last one twice at the end."""
        wanted = rank + 1
        begun, ended = self._num_by_bin
        low, high = int(np.searchsorted(begun, wanted)), int(np.searchsorted(ended, wanted))
        rows = self._reaching_into(low, high)
        num_below = int(ended[low - 1]) if low else 0
        value = rows._least_with(wanted - num_below)
        is_shared = wanted == self.size or num_below + rows._num_up_to(value) > wanted
        return value, value if is_shared else min(rows._next_after(value), self._next_first(value))

    def sketch(self) -> tuple[Floats, Floats]:
        """Values (ps, ascending, one per bin) and the shares up to them, good enough to draw.

        A row counts in a few equal pieces, or at its middle where there are many rows.
        """
        mass, is_short = np.zeros(NUM_BINS), len(self.first) <= MAX_SKETCH_ROWS
        for part in self._parts():
            middle: Floats = (part.count - 1) / 2
            values, weights = part.first + part.slope * middle, part.mass.astype(np.float64)
            if is_short:
                values, weights = part._in_pieces()
            mass += np.bincount(_bins(values), weights=weights, minlength=NUM_BINS)
        used = np.flatnonzero(mass)
        return _begin_of(used + 1), np.cumsum(mass[used]) / self.size

    def _in_pieces(self) -> tuple[Floats, Floats]:
        """The middles of a few equal pieces of each row, and for how many gaps each stands."""
        pieces = np.minimum(self.count, SKETCH_PIECES)
        row = np.repeat(np.arange(len(pieces)), pieces)
        piece = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        position = (piece + 0.5) / pieces[row] * self.count[row] - 0.5
        return self.first[row] + self.slope[row] * position, (self.mass / pieces)[row]

    def _parts(self) -> Iterator[PooledGaps]:
        """The rows in slices, as views."""
        for part in bounds(len(self.first)):
            yield PooledGaps(self.first[part], self.slope[part], self.count[part], self.weight[part])

    @cached_property
    def _num_by_bin(self) -> tuple[Ints, Ints]:
        """By bin: how many gaps are in rows that begin in it or below, and in rows that end in it or below."""
        begun, ended = np.zeros(NUM_BINS), np.zeros(NUM_BINS)  # floats hold whole numbers to 9e15
        for part in self._parts():
            mass = part.mass
            begun += np.bincount(_bins(part.first), weights=mass, minlength=NUM_BINS)
            ended += np.bincount(_bins(part.last), weights=mass, minlength=NUM_BINS)
        return np.cumsum(begun.astype(np.int64)), np.cumsum(ended.astype(np.int64))

    def _reaching_into(self, low: int, high: int) -> PooledGaps:
        """The rows with a value that may be in the bins from `low` to `high`."""
        # compared with the floats that a bin stands between, no value's own bin has to be found
        begin, end = _begin_of(np.array([low, high + 1])).tolist()
        parts = [part._only((part.first < end) & ((part.last >= begin) | (low == 0))) for part in self._parts()]
        columns = zip(*((part.first, part.slope, part.count, part.weight) for part in parts), strict=True)
        return PooledGaps(*map(np.concatenate, columns))

    def _only(self, chosen: NDArray[np.bool_]) -> PooledGaps:
        return PooledGaps(self.first[chosen], self.slope[chosen], self.count[chosen], self.weight[chosen])

    def _next_first(self, value: int) -> int:
        """The least value above `value` that a row begins with."""
        return min(int(part.first[part.first > value].min(initial=MAX_INT64)) for part in self._parts())

    def _next_after(self, value: int) -> int:
        """The least value above `value` in rows that have begun by it."""
        inside = (self.first <= value) & (self.last > value)
        first, slope = self.first[inside], self.slope[inside]
        following = first + ((value - first) // slope + 1) * slope
        return int(following.min(initial=MAX_INT64))

    def _num_up_to(self, value: int) -> int:
        return int((np.clip((value - self.first) // self.slope + 1, 0, self.count) * self.weight).sum())

    def _least_with(self, wanted: int) -> int:
        """The least integer with at least `wanted` gaps up to it: bisection."""
        rows, low, high = self, int(self.first.min()), int(self.last.max())
        while low < high:
            middle = (low + high) // 2
            if rows._num_up_to(middle) >= wanted:
                high = middle
            else:
                low = middle + 1
            last = rows.last
            wanted -= int(rows.mass[last < low].sum())
            rows = rows._only((last >= low) & (rows.first <= high))
            low, high = max(low, int(rows.first.min())), min(high, int(rows.last.max()))
        return low


def _bins(values: NDArray[np.generic]) -> Ints:
    """Which bin each value (from 0 to 2**63) is in; never lower for a higher value."""
    bits: Ints = values.astype(np.float64).view(np.int64) >> BIN_SHIFT
    bits -= BIN_ORIGIN
    return np.maximum(bits, 0, out=bits)


def _begin_of(bins: Ints) -> Floats:
    """The least float of each bin but the first, which has all below it."""
    return ((bins + BIN_ORIGIN) << BIN_SHIFT).view(np.float64)


def _exact_dot(weights: Ints, values: Ints) -> int:
    """The sum of weights * values as a Python integer, where int64 would overflow; values from 0 to 2**62."""
    total = 0
    for shift, mask in ((0, LIMB), (LIMB_BITS, LIMB), (2 * LIMB_BITS, -1)):
        total += int((weights * ((values >> shift) & mask)).sum()) << shift
    return total


Bools = NDArray[np.bool_]
Number = float | int | None
PERCENTS = (50, 90, 95, 99)
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")


def duration_ps(record: RunRecord) -> int:
    """From 0 to the last response that a client gets (`benchmark_duration`, which waits for every request)."""
    requests = record.requests
    finished, turned_away = requests.status == FINISHED, ~let_in(requests)
    if not (finished | turned_away).any():
        return record.end_ps
    ends_ps = (record.client_finish_ps[finished], requests.arrival_ps[turned_away])
    return max(int(times.max(initial=0)) for times in ends_ps)


def latencies_ms(record: RunRecord, chosen: Bools | Ints) -> dict[str, NDArray[np.float64]]:
    """`ttft`, `tpot` and `e2el` of the chosen finished requests, in their order; TPOT of those with several tokens."""
    indices: NDArray[Any] = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen
    several = indices[record.requests.num_output_tokens[indices] > 1]
    return {
        "ttft": ttft_ps(record)[chosen] / PS_PER_MS,
        "tpot": decoding_ps(record, several) / (record.requests.num_output_tokens[several] - 1) / PS_PER_MS,
        "e2el": e2el_ps(record)[chosen] / PS_PER_MS,
    }


def within_slo(record: RunRecord, slo: SloLimits, only: str | None = None) -> Bools:
    """Which requests finished within every limit (or within one: ttft, tpot, e2el), the limit itself included.

    A single token has no TPOT and is within it, as in vLLM's goodput. Compared in whole picoseconds.
    """
    requests = record.requests
    good: Bools = requests.status == FINISHED
    for name, limit_ms in slo.limits().items():
        if only in (None, name):
            good &= _latency_ps(record, name) <= min(round(limit_ms * PS_PER_MS), MAX_INT64)
    return good


def describe(values_ms: NDArray[np.float64]) -> dict[str, Number]:
    """Mean, median, population deviation and linear percentiles; None without values."""
    if not len(values_ms):
        return dict.fromkeys(STATISTICS)
    median, *percentiles = linear_percentiles(values_ms, PERCENTS)
    figures = (values_ms.mean(), median, values_ms.std(), *percentiles)
    return {name: float(figure) for name, figure in zip(STATISTICS, figures, strict=True)}


def describe_gaps(gaps: PooledGaps) -> dict[str, Number]:
    """Mean, median, population deviation and linear percentiles (ms) of pooled inter-token gaps; None without any."""
    if not gaps.size:
        return dict.fromkeys(STATISTICS)
    median, *percentiles = gaps.percentiles_ps(PERCENTS)
    figures = (gaps.mean_ps, median, gaps.std_ps(), *percentiles)
    return {name: figure / PS_PER_MS for name, figure in zip(STATISTICS, figures, strict=True)}


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, None when there is nothing to divide by."""
    return numerator / denominator if denominator else None


def _latency_ps(record: RunRecord, name: str) -> NDArray[np.int64]:
    if name != "tpot":
        return ttft_ps(record) if name == "ttft" else e2el_ps(record)
    several = record.requests.num_output_tokens > 1
    tpot_ps = np.zeros(len(several), dtype=np.int64)
    # rounded up: above a whole limit exactly when the quotient is
    tpot_ps[several] = -(-decoding_ps(record, several) // (record.requests.num_output_tokens[several] - 1))
    return tpot_ps
