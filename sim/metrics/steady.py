"""When a run says less than it seems to, and what it says of the steady state: of these arrivals for ever.

1. Nothing is said, but why, when there is no such state or this run does not show it: the queue keeps growing
   (overloaded), the rate never stays the same, or it has gone up and down fewer than 20 times.
2. The first 10 % of the requests (by arrival) are left out as warm-up, since a run begins empty, and all that arrived
   within the P99 of E2EL from the first arrival; likewise those within it before the last arrival, since ever fewer
   come after them.
3. Of the others, means and P99s with 95 % intervals by 20 batches (`simbatch.sim.statistics`).

Why not MSER-5 for the warm-up: it cuts where the rest looks calmest, which takes busy periods away from the mean
(docs/statistics.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, REFUSED, REJECTED, UNFINISHED, RunRecord
from simbatch.sim.metrics.columns import RunFacts, e2el_ps, let_in
from simbatch.sim.metrics.curves import totals, used_blocks, waiting
from simbatch.sim.metrics.latencies import duration_ps, latencies_ms
from simbatch.sim.metrics.step_function import Curve
from simbatch.sim.statistics import MIN_BATCH, NUM_BATCHES, NUM_PERIODS, BatchMeans, Interval, NoClaim, keeps_growing

MIN_BACKLOG = 10
MIN_BACKLOG_SHARE = 0.05
GROWTH = 1.25  # a queue that grows linearly has a mean 7/5 as long in its last quarter as in the third
MIN_SHARE_IN_RANGE = 0.99
MIN_PREEMPTIONS = 300  # in all, and a request: fewer cost little, and come and go with the seed
MIN_PREEMPTIONS_PER_REQUEST = 0.1
FULL = 0.99  # of the KV cache
MAX_REQUESTS_PER_S = 1000  # one process that takes HTTP, tokenises and streams: about 1 ms a request
MIN_HOSTED = 100  # requests: fewer at once are over before a host could fall behind


def warnings_of(record: RunRecord, facts: RunFacts) -> list[str]:
    """Plain sentences, the gravest first."""
    status = record.requests.status
    num_rejected, num_refused, num_unfinished = (int((status == s).sum()) for s in (REJECTED, REFUSED, UNFINISHED))
    warnings = []
    if is_overloaded(record):
        warnings.append(_overload_text(record))
    if num_unfinished:
        warnings.append(f"{num_unfinished:,} of {len(status):,} requests never finished: the engine was stuck.")
    if num_rejected:
        warnings.append(f"{num_rejected:,} of {len(status):,} requests were rejected: `rejected_reasons` says why.")
    if num_refused:
        warnings.append(
            f"{num_refused:,} of {len(status):,} requests got a 503 of the front end: `refused_reasons` says why."
        )
    if _is_thrashing(record):
        warnings.append(_preemption_text(record))
    if facts.has_free_host and _requests_per_s(record) > MAX_REQUESTS_PER_S:
        warnings.append(
            f"{_requests_per_s(record):,.0f} requests a second were served, and this profile has no times of the host "
            f"(HTTP, tokenising, scheduling): one front end serves some {MAX_REQUESTS_PER_S:,}. These figures are the "
            "GPU's, and no single server would reach them."
        )
    if record.num_truncated:
        cut = f"{record.num_truncated:,} of {len(status):,} requests"
        warnings.append(f"{cut} had their output cut, as vLLM does where prompt and output reach max_model_len.")
    share = facts.share_in_range
    if share is not None and share < MIN_SHARE_IN_RANGE:
        outside = f"{100 * (1 - share):.1f} % of the steps are outside what the profile measured"
        warnings.append(f"{outside}: their times are extrapolated.")
    if facts.profile_is_estimate:
        warnings.append("The profile is an estimate: nobody measured this model on this GPU.")
    if facts.without_effect:
        keys = ", ".join(f"engine.{key}" for key in facts.without_effect)
        lacking = "the profile has no `host` or `front_end` section that says what it costs"
        warnings.append(f"Without effect: {keys}; {lacking}.")
    return [*warnings, *facts.unread, *facts.vllm_notes, *facts.profile_caveats]


def _is_thrashing(record: RunRecord) -> bool:
    """Whether preemptions are many, and many a request."""
    least = max(MIN_PREEMPTIONS, MIN_PREEMPTIONS_PER_REQUEST * len(record.requests))
    return record.num_preemptions >= least


def _preemption_text(record: RunRecord) -> str:
    """How many, what they cost, and what to do."""
    count, share = record.num_preemptions, record.num_recomputed_tokens / max(1, totals(record).num_tokens)
    is_full = used_blocks(record).max >= FULL * record.num_usable_blocks
    mend = (
        "Lower engine.max_num_seqs, or give it more KV blocks." if is_full else "It is the policy that preempts them."
    )
    return (
        f"Requests lost their KV blocks {count:,} times, {count / len(record.requests):.2g} times each on average, and "
        f"{100 * share:.1f} % of all tokens were computed again. {mend}"
    )


def _requests_per_s(record: RunRecord) -> float:
    """Served from the first second to the last; 0 for a handful."""
    num_done = int((record.requests.status == FINISHED).sum())
    return num_done / (duration_ps(record) / PS_PER_S) if num_done >= MIN_HOSTED else 0.0


def is_overloaded(record: RunRecord) -> bool:
    """Whether the queue kept growing for as long as requests arrived.

    When the last request arrives, at least 10 wait for their first step, and the queue grew in one of two ways. Fast:
    5 % of all wait, and in the last quarter of the arrivals the queue was on average at least 1.25 times as long as in
    any earlier quarter. Or slowly and all the time (a long run a little above what the system can do): of its means
    over 20 equal periods, the growth from one to the next is above zero on average, beyond doubt (1 %, t test).
    """
    arrivals = record.requests.arrival_ps[let_in(record.requests)]
    if len(arrivals) < MIN_BACKLOG:
        return False
    begin, end = int(arrivals.min()), int(arrivals.max())
    if end - begin < 4:
        return False
    queue = waiting(record)
    backlog = _at(queue, end)
    if backlog < MIN_BACKLOG:
        return False
    if backlog >= MIN_BACKLOG_SHARE * len(arrivals):
        *earlier, last = queue.mean_per_bin(np.linspace(begin, end, 5).astype(np.int64)).tolist()
        if last >= GROWTH * max(earlier):
            return True
    if end - begin <= NUM_PERIODS:
        return False
    return keeps_growing(queue.mean_per_bin(np.linspace(begin, end, NUM_PERIODS + 1).astype(np.int64)))


def _at(curve: Curve, moment: int) -> int:
    position = int(np.searchsorted(curve.times, moment, side="right"))
    return int(curve.values[position - 1]) if position else 0


def _overload_text(record: RunRecord) -> str:
    """How fast requests came and went, while they came."""
    requests = record.requests
    accepted = requests.arrival_ps[let_in(requests)]
    begin, end = int(accepted.min()), int(accepted.max())
    period_s = (end - begin) / PS_PER_S
    finish = requests.finish_ps[requests.status == FINISHED]
    left = int(((finish >= begin) & (finish <= end)).sum())
    return (
        f"Overloaded: the queue kept growing. Requests arrived at {(len(accepted) - 1) / period_s:.2f}/s and left at "
        f"{left / period_s:.2f}/s, and {_at(waiting(record), end):,} were waiting when the last one arrived. "
        "Latencies say how long the run was, not what this system can do: lower the rate."
    )


WARM_UP_SHARE = 0.1
MIN_SHARE_USED = 0.5
MIN_REQUESTS = NUM_BATCHES * MIN_BATCH
MIN_CYCLES = 20
OVERLOADED = "overloaded"
AT_ONCE = "nothing arrived over time"
FIGURES = tuple(f"{statistic}_{name}_ms" for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99"))
Ints = NDArray[np.int64]


def steady_state(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """The block `steady_state` of summary.json: per figure `value`, `low` and `high` (ms), or why there is none."""
    try:
        first, used, last = _split(record, facts)
    except NoClaim as refusal:
        nothing = {key: _figure() for key in FIGURES}
        return {"refused": str(refusal), "left_out_first": None, "left_out_last": None, "num_batches": None, **nothing}
    series = latencies_ms(record, used)
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
        raise NoClaim("requests never finished: the engine was stuck")
    if not len(arrivals) or arrivals.min() == arrivals.max():
        raise NoClaim(AT_ONCE)
    if is_overloaded(record):
        raise NoClaim(OVERLOADED)
    done = np.flatnonzero(requests.status == FINISHED)
    order = done[np.argsort(requests.arrival_ps[done], kind="stable")]
    times = requests.arrival_ps[order]
    longest_ps = int(np.quantile(e2el_ps(record)[order], 0.99)) if len(order) else 0
    filled = int(np.searchsorted(times, int(arrivals.min()) + longest_ps, side="left"))
    first = max(int(WARM_UP_SHARE * len(order)), filled)
    end = int(np.searchsorted(times, int(arrivals.max()) - longest_ps, side="right"))
    if end - first < MIN_REQUESTS:
        raise NoClaim(f"too short: {max(end - first, 0):,} requests after warm-up, {MIN_REQUESTS} are needed")
    if end - first < MIN_SHARE_USED * len(order):
        raise NoClaim("too short: it takes a good part of the arrivals until a request ends")
    _check_arrivals(facts, float(times[end - 1] - times[first]) / PS_PER_S)
    return first, order[first:end], len(order) - end


def _check_arrivals(facts: RunFacts, used_s: float) -> None:
    """NoClaim when the rate changes for good, or up and down fewer than 20 times."""
    workload = facts.scenario.get("workload", {})
    for traffic in workload.get("mix") or [workload]:
        _check_process(traffic.get("arrival") or {}, used_s)


def _check_process(process: Mapping[str, Any], used_s: float) -> None:
    match process.get("process"):
        case "ramp":
            raise NoClaim("the request rate never stays the same (ramp)")
        case "on_off":
            period_s = process["on_s"] + process["off_s"]
        case "daily":
            period_s = process["period_s"]
        case _:
            return
    if used_s < MIN_CYCLES * period_s:
        times = f"{used_s / period_s:.1f}"
        raise NoClaim(f"too short: the arrivals go up and down {times} times after warm-up, {MIN_CYCLES} are needed")


def _figures_of(name: str, series: NDArray[np.float64]) -> dict[str, Any]:
    mean, p99 = f"mean_{name}_ms", f"p99_{name}_ms"
    try:
        batches = BatchMeans(series)
    except NoClaim as refusal:
        return {key: _figure(refused=str(refusal)) for key in (mean, p99)}
    return {
        mean: _of(float(series.mean()), batches.mean),
        p99: _of(float(np.quantile(series, 0.99)), lambda: batches.quantile(0.99)),
    }


def _of(value: float, interval: Callable[[], Interval]) -> dict[str, Any]:
    """The interval's figures, or the value alone with the reason."""
    try:
        known = interval()
    except NoClaim as refusal:
        return _figure(value, refused=str(refusal))
    return _figure(known.estimate, max(known.low, 0.0), known.high)  # a latency is not below 0


def _figure(
    value: float | None = None, low: float | None = None, high: float | None = None, refused: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "refused": refused}
