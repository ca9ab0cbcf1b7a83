"""Latencies, throughputs and goodput by the definitions of `vllm bench serve` (`calculate_metrics` in its serve.py).

A request counts as completed when it finished; the rejected, the refused and the unfinished are `failed` and enter no
latency. Every time is the client's. The benchmark's clock runs from 0, when the client starts, to the last response, a
rejection's included: `duration`. Throughputs divide by it. Where nothing was measured the value is None, not vLLM's 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.metrics.columns import decoding_ps, e2el_ps, let_in, ttft_ps
from simbatch.sim.metrics.facts import SloLimits
from simbatch.sim.metrics.gaps import PooledGaps

Bools = NDArray[np.bool_]
Number = float | int | None
PERCENTS = (50, 90, 95, 99)
STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")
MAX_INT64 = 2**63 - 1


def duration_ps(record: RunRecord) -> int:
    """From 0 to the last response that a client gets (`benchmark_duration`, which waits for every request)."""
    requests = record.requests
    finished, turned_away = requests.status == FINISHED, ~let_in(requests)
    if not (finished | turned_away).any():
        return record.end_ps
    last_finish = int(record.client_finish_ps[finished].max(initial=0))
    return max(last_finish, int(requests.arrival_ps[turned_away].max(initial=0)))


def latencies_ms(record: RunRecord, chosen: Bools) -> dict[str, NDArray[np.float64]]:
    """`ttft`, `tpot` and `e2el` of the chosen finished requests; TPOT only of those with several tokens."""
    several = chosen & (record.requests.num_output_tokens > 1)
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
    median, *percentiles = np.percentile(values_ms, PERCENTS)
    figures = (values_ms.mean(), median, values_ms.std(), *percentiles)
    return {name: float(figure) for name, figure in zip(STATISTICS, figures, strict=True)}


def describe_gaps(gaps: PooledGaps) -> dict[str, Number]:
    """Mean, median, population deviation and linear percentiles (ms) of pooled inter-token gaps; None without any."""
    if not gaps.size:
        return dict.fromkeys(STATISTICS)
    median, *percentiles = gaps.percentiles_ps(PERCENTS)
    figures = (gaps.mean_ps(), median, gaps.std_ps(), *percentiles)
    return {name: figure / PS_PER_MS for name, figure in zip(STATISTICS, figures, strict=True)}


def keyed(name: str, statistics: dict[str, Number]) -> dict[str, Number]:
    """With the keys of vLLM: `mean_ttft_ms`, `p99_ttft_ms`, ..."""
    return {f"{statistic}_{name}_ms": value for statistic, value in statistics.items()}


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, None when there is nothing to divide by."""
    return numerator / denominator if denominator else None


def _latency_ps(record: RunRecord, name: str) -> NDArray[np.int64]:
    if name == "ttft":
        return ttft_ps(record)
    if name == "e2el":
        return e2el_ps(record)
    several = record.requests.num_output_tokens > 1
    num_gaps = record.requests.num_output_tokens[several] - 1
    tpot_ps = np.zeros(len(several), dtype=np.int64)
    tpot_ps[several] = -(
        -decoding_ps(record, several) // num_gaps
    )  # rounded up: above a whole limit exactly when the quotient is
    return tpot_ps
