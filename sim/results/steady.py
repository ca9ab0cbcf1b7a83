"""What a run says of the steady state: what users would feel if these arrivals went on for ever.

1. Nothing is said, but why, when there is no such state or this run does not show it: the queue keeps growing
   (overloaded), the rate never stays the same, or it has gone up and down fewer than 20 times.
2. The first 10 % of the requests (by arrival) are left out as warm-up, since a run begins empty, and all that arrived
   within the P99 of E2EL from the first arrival; likewise those within it before the last arrival, since ever fewer
   come after them.
3. Of the others, means and P99s with 95 % intervals by 20 batches (`simbatch.sim.statistics.batches`).

Why not MSER-5 for the warm-up: it cuts where the rest looks calmest, which takes busy periods away from the mean
(docs/statistics.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, UNFINISHED, RunRecord
from simbatch.sim.results.columns import decoding_ps, e2el_ps, let_in, ttft_ps
from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.overload import is_overloaded
from simbatch.sim.statistics.batches import MIN_BATCH, NUM_BATCHES, Batches, Refusal
from simbatch.sim.statistics.intervals import Interval

WARM_UP_SHARE = 0.1
MIN_SHARE_USED = 0.5
MIN_REQUESTS = NUM_BATCHES * MIN_BATCH
MIN_CYCLES = 20
OVERLOADED = "overloaded"
FIGURES = tuple(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99"))
Ints = NDArray[np.int64]


def steady_state(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """The block `steady_state` of summary.json: per figure `value`, `low` and `high` (ms), or why there is none."""
    try:
        first, used, last = _split(record, facts)
    except Refusal as refusal:
        nothing = {key: _figure() for key in FIGURES}
        return {"refused": str(refusal), "left_out_first": None, "left_out_last": None, "num_batches": None, **nothing}
    series = _series(record, used)
    figures = {key: figure for name, values in series.items() for key, figure in _figures_of(name, values).items()}
    for part in ("ttft", "tpot"):  # its slow swings hide in the spread of the whole, which is that of the lengths
        reason, whole = figures[f"mean_{part}_ms"]["refused"], figures["mean_e2el_ms"]
        if reason is not None and len(series[part]) >= MIN_REQUESTS:
            figures["mean_e2el_ms"] = _figure(whole["value"], refused=whole["refused"] or f"{part.upper()} {reason}")
    return {"refused": None, "left_out_first": first, "left_out_last": last, "num_batches": NUM_BATCHES, **figures}


def _split(record: RunRecord, facts: RunFacts) -> tuple[int, Ints, int]:
    """How many requests are left out first and last, and the indices of the others, in order of arrival."""
    requests = record.requests
    arrivals = requests.arrival_ps[let_in(requests)]
    if (requests.status == UNFINISHED).any():
        raise Refusal("requests never finished: the engine was stuck")
    if not len(arrivals) or arrivals.min() == arrivals.max():
        raise Refusal("nothing arrived over time")
    if is_overloaded(record):
        raise Refusal(OVERLOADED)
    done = np.flatnonzero(requests.status == FINISHED)
    order = done[np.argsort(requests.arrival_ps[done], kind="stable")]
    times = requests.arrival_ps[order]
    longest_ps = int(np.quantile(e2el_ps(record)[order], 0.99)) if len(order) else 0
    filled = int(np.searchsorted(times, int(arrivals.min()) + longest_ps, side="left"))
    first = max(int(WARM_UP_SHARE * len(order)), filled)
    end = int(np.searchsorted(times, int(arrivals.max()) - longest_ps, side="right"))
    if end - first < MIN_REQUESTS:
        raise Refusal(f"too short: {max(end - first, 0):,} requests after warm-up, {MIN_REQUESTS} are needed")
    if end - first < MIN_SHARE_USED * len(order):
        raise Refusal("too short: it takes a good part of the arrivals until a request ends")
    _check_arrivals(facts, float(times[end - 1] - times[first]) / PS_PER_S)
    return first, order[first:end], len(order) - end


def _check_arrivals(facts: RunFacts, used_s: float) -> None:
    """Refusal when the rate changes for good, or up and down fewer than 20 times."""
    workload = facts.scenario.get("workload", {})
    for traffic in workload.get("mix") or [workload]:
        _check_process(traffic.get("arrival") or {}, used_s)


def _check_process(process: Mapping[str, Any], used_s: float) -> None:
    match process.get("process"):
        case "ramp":
            raise Refusal("the request rate never stays the same (ramp)")
        case "on_off":
            period_s = process["on_s"] + process["off_s"]
        case "daily":
            period_s = process["period_s"]
        case _:
            return
    if used_s < MIN_CYCLES * period_s:
        times = f"{used_s / period_s:.1f}"
        raise Refusal(f"too short: the arrivals go up and down {times} times after warm-up, {MIN_CYCLES} are needed")


def _series(record: RunRecord, used: Ints) -> dict[str, NDArray[np.float64]]:
    """TTFT, TPOT and E2EL (ms) of these requests, in this order."""
    requests = record.requests
    several = used[requests.num_output_tokens[used] > 1]
    return {
        "ttft": ttft_ps(record)[used] / PS_PER_MS,
        "tpot": decoding_ps(record, several) / (requests.num_output_tokens[several] - 1) / PS_PER_MS,
        "e2el": e2el_ps(record)[used] / PS_PER_MS,
    }


def _figures_of(name: str, series: NDArray[np.float64]) -> dict[str, Any]:
    mean, p99 = f"mean_{name}_ms", f"p99_{name}_ms"
    try:
        batches = Batches(series)
    except Refusal as refusal:
        return {key: _figure(refused=str(refusal)) for key in (mean, p99)}
    return {
        mean: _of(float(series.mean()), batches.mean),
        p99: _of(float(np.quantile(series, 0.99)), lambda: batches.quantile(0.99)),
    }


def _of(value: float, interval: Callable[[], Interval]) -> dict[str, Any]:
    """The interval's figures, or the value alone with the reason."""
    try:
        known = interval()
    except Refusal as refusal:
        return _figure(value, refused=str(refusal))
    return _figure(known.estimate, max(known.low, 0.0), known.high)  # a latency is not below 0


def _figure(
    value: float | None = None, low: float | None = None, high: float | None = None, refused: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "refused": refused}
