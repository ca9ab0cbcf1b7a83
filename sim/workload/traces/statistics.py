"""What a trace is like, in one pass that keeps counts and no requests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S, to_s
from simbatch.sim.workload.chunk import RequestChunk, RequestSource
from simbatch.sim.workload.turns import Turns, turns_in

WINDOWS_S = (1, 10, 60)
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass
class LengthCounts:
    """How often each length occurs."""

    counts: Counter[int] = field(default_factory=Counter)

    def summary(self) -> dict[str, float | int]:
        """Mean, cv, total, extremes and quantiles (linear, as numpy's)."""
        values = np.array(sorted(self.counts), dtype=np.int64)
        weights = np.array([self.counts[int(value)] for value in values], dtype=np.int64)
        n, total = int(weights.sum()), int((values * weights).sum())
        mean = total / n
        variance = float((weights * (values - mean) ** 2).sum()) / n
        ends = np.cumsum(weights)
        facts: dict[str, float | int] = {"mean": mean, "cv": math.sqrt(variance) / mean, "min": int(values[0])}
        facts |= {f"p{round(100 * q)}": _quantile(values, ends, q) for q in QUANTILES}
        return facts | {"max": int(values[-1]), "total": total}


def _quantile(values: Any, ends: Any, q: float) -> float:
    position = q * (int(ends[-1]) - 1)
    low, high = (values[np.searchsorted(ends, at, side="right")] for at in (math.floor(position), math.ceil(position)))
    return float(low + (high - low) * (position - math.floor(position)))


class Gaps:
    """Mean and variance of the gaps between arrivals (Chan's update, a chunk at a time)."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, 0.0, 0.0
        self._last: int | None = None

    def add(self, arrival_ps: list[int]) -> None:
        """Take the next arrivals."""
        times = arrival_ps if self._last is None else [self._last, *arrival_ps]
        self._last = arrival_ps[-1]
        gaps: Any = np.diff(np.array(times, dtype=np.int64)) / PS_PER_S
        if not len(gaps):
            return
        mean, n = float(gaps.mean()), self.n + len(gaps)
        step = mean - self.mean
        self._squares += float(((gaps - mean) ** 2).sum()) + step**2 * self.n * len(gaps) / n
        self.mean += step * len(gaps) / n
        self.n = n

    @property
    def cv(self) -> float | None:
        """Standard deviation / mean; 1 for Poisson arrivals."""
        return math.sqrt(self._squares / self.n) / self.mean if self.n and self.mean else None


class PrefixBlocks:
    """How many of the prompts' hashed blocks had been seen before with all that precedes them."""

    def __init__(self) -> None:
        self.total = self.repeated = 0
        self._seen: set[int] = set()

    def add(self, rows: list[tuple[int, ...]]) -> None:
        """Take the next prompts' hashes."""
        seen = self._seen
        for hash_ids in rows:
            chain = 0
            for hash_id in hash_ids:
                chain = hash((chain, hash_id))
                self.repeated += chain in seen
                seen.add(chain)
            self.total += len(hash_ids)


def session_facts(turns: Turns) -> dict[str, Any]:
    """How many sessions there are, how many turns they have, and what is between these; times in seconds."""
    later = np.array(turns.num_awaited) > 0
    delays = np.array(turns.delay_ps)[later] / PS_PER_S
    return {
        "num_sessions": turns.num_sessions,
        "num_turns": LengthCounts(Counter(Counter(turns.session).values())).summary(),
        "num_forks": int((np.diff(np.array(turns.first)) > 1).sum()),
        "num_joins": int((np.array(turns.num_awaited) > 1).sum()),
        "delay_s": {
            "mean": float(delays.mean()),
            "p50": float(np.median(delays)),
            "p95": float(np.percentile(delays, 95)),
            "max": float(delays.max()),
        },
    }


class TraceStatistics:
    """Everything that `simbatch trace describe` says; of turns of sessions arrivals are the sessions' beginnings."""

    def __init__(self, turns: Turns | None = None) -> None:
        self.turns = turns
        self.num_requests = self.num_arrivals = 0
        self.first_ps = self.last_ps = 0
        self.gaps = Gaps()
        self.prompts, self.outputs = LengthCounts(), LengthCounts()
        self.per_second: Counter[int] = Counter()  # requests by the second after the first one
        self.priorities: Counter[int] = Counter()
        self.tenants: Counter[str] = Counter()
        self.blocks = PrefixBlocks()

    def add(self, chunk: RequestChunk) -> None:
        """Take the next requests."""
        if self.turns is None:
            self.arrive(chunk.arrival_ps)
        self.num_requests += len(chunk)
        self.prompts.counts.update(chunk.num_prompt_tokens)
        self.outputs.counts.update(chunk.num_output_tokens)
        self.priorities.update(chunk.priority or ())
        self.tenants.update(tenant for tenant in chunk.tenant or () if tenant is not None)
        self.blocks.add(chunk.hash_ids or [])

    def arrive(self, arrival_ps: list[int]) -> None:
        """Take the next arrivals, in their order."""
        if not self.num_arrivals:
            self.first_ps = arrival_ps[0]
        self.num_arrivals += len(arrival_ps)
        self.last_ps = arrival_ps[-1]
        self.gaps.add(arrival_ps)
        self.per_second.update((ps - self.first_ps) // PS_PER_S for ps in arrival_ps)

    def rates(self, window_s: int) -> Any:
        """Requests per second in each window after the first arrival, as an array; the last one may be cut short."""
        counts = np.zeros((self.last_ps - self.first_ps) // PS_PER_S // window_s + 1)
        for second, n in self.per_second.items():
            counts[second // window_s] += n
        return counts / window_s

    def summary(self) -> dict[str, Any]:
        """Plain numbers; times in seconds, None where a figure has no meaning."""
        duration_s = to_s(self.last_ps - self.first_ps)
        mean_rate = (self.num_arrivals - 1) / duration_s if duration_s else None
        lasting = [window for window in WINDOWS_S if duration_s >= 2 * window]
        peaks = {f"{w}s": float(self.rates(w).max()) / mean_rate for w in lasting if mean_rate is not None}
        facts: dict[str, Any] = {
            "num_requests": self.num_requests,
            "first_arrival_s": to_s(self.first_ps),
            "duration_s": duration_s,
            "mean_request_rate": mean_rate if self.turns is None else None,
            "gap_cv": self.gaps.cv,
            "burstiness": self.gaps.cv**-2 if self.gaps.cv else None,
            "peak_to_mean_rate": peaks,
            "num_prompt_tokens": self.prompts.summary(),
            "num_output_tokens": self.outputs.summary(),
        }
        if self.turns is not None:
            facts["sessions"] = {**session_facts(self.turns), "mean_session_rate": mean_rate}
        if self.blocks.total:
            share = self.blocks.repeated / self.blocks.total
            facts["prefix_blocks"] = {"total": self.blocks.total, "repeated": self.blocks.repeated, "share": share}
        if self.priorities:
            facts["priorities"] = {str(level): n for level, n in sorted(self.priorities.items())}
        if self.tenants:
            facts["num_tenants"] = len(self.tenants)
        return facts


def describe(source: RequestSource, progress: Callable[[int], None] | None = None) -> TraceStatistics:
    """Read a source to its end; `progress` is told the number of requests so far."""
    turns, starts = turns_in(source), list[int]()
    statistics = TraceStatistics(turns)
    for chunk in source.chunks():
        if turns is not None:
            first = statistics.num_requests
            starts += [ps for row, ps in enumerate(chunk.arrival_ps, first) if not turns.num_awaited[row]]
        statistics.add(chunk)
        if progress:
            progress(statistics.num_requests)
    if starts:
        statistics.arrive(sorted(starts))
    return statistics
