"""The figures of one run, each computed when it is asked for: those of `vllm bench serve`, and ours of the engine.

Whom a run waited for: how long the device worked, waited for the host, or had nothing to do. The device waits for the
host while requests are in the engine and it works on none of them: the host has not launched their next step, or its
launch still goes on. Such a wait belongs to the step before it: a launch that lasts longer than its own work ends its
step late, and vLLM's loop then schedules the next step late. In an empty engine it belongs to the step that comes; a
policy that holds requests back is no host, so that under one of these only requests that have begun count. Tokens wait
for the front end while it still sends those of the step before; the device may work meanwhile, so that this share is
none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.columns import RunFacts, kept, let_in, queued_ps
from simbatch.sim.metrics.curves import output_tokens_per_second
from simbatch.sim.metrics.groups import mean_or_none, normalised_latencies_ms
from simbatch.sim.metrics.latencies import (
    Bools,
    Number,
    describe,
    duration_ps,
    latencies_ms,
    ratio,
    within_slo,
)
from simbatch.sim.metrics.sessions import SessionFigures

KINDS = (GRAPH, PIECEWISE, NONE)
FULL = "full"  # steps of whatever kind that took all of `max_num_batched_tokens`
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class RunFigures:
    """What the metrics of the registry ask of a run; shares are of 1, None where nothing was measured.

    `gaps` gives the statistics of inter-token latency, which are found beside the others.
    """

    def __init__(self, record: RunRecord, facts: RunFacts, gaps: Callable[[], dict[str, Number]]) -> None:
        self.record, self.facts, self._gaps = record, facts, gaps

    @cached_property
    def done(self) -> Bools:
        """Who finished."""
        done: Bools = self.record.requests.status == FINISHED
        return done

    @cached_property
    def sessions(self) -> SessionFigures | None:
        """What sessions felt; None where requests are not turns of sessions."""
        return SessionFigures.of(self.record)

    @cached_property
    def duration_ps(self) -> int:
        """From 0 to the last response."""
        return duration_ps(self.record)

    def duration_s(self) -> float:
        """From 0 to the last response, in seconds."""
        return self.duration_ps / PS_PER_S

    def num_completed(self) -> int:
        """Requests that finished."""
        return int(self.done.sum())

    def num_failed(self) -> int:
        """Requests that did not: rejected, refused, unfinished."""
        return int((~self.done).sum())

    def num_input_tokens(self) -> int:
        """Prompt tokens of the finished requests."""
        return int(self.record.requests.num_prompt_tokens[self.done].sum())

    def num_output_tokens(self) -> int:
        """Output tokens of the finished requests."""
        return int(self.record.requests.num_output_tokens[self.done].sum())

    def request_throughput(self) -> float | None:
        """Finished requests per second."""
        return ratio(self.num_completed(), self.duration_s())

    def request_goodput(self) -> float | None:
        """Requests within every limit per second; None without an SLO."""
        slo = self.facts.slo
        return ratio(int(within_slo(self.record, slo).sum()), self.duration_s()) if slo.limits() else None

    def session_goodput(self) -> float | None:
        """Sessions within every limit on sessions per second; None without sessions, or without such a limit."""
        limits = self.facts.slo.session_limits()
        return ratio(self.sessions.num_within(limits), self.duration_s()) if self.sessions and limits else None

    def session_slo_share(self) -> dict[str, Number]:
        """Of all sessions, those within all limits and within each; empty without sessions, or without such a limit."""
        limits = self.facts.slo.session_limits()
        if self.sessions is None or not limits:
            return {}
        asked = {"all": limits, **{name: {name: limit} for name, limit in limits.items()}}
        total = self.sessions.num_sessions()
        return {name: ratio(self.sessions.num_within(each), total) for name, each in asked.items()}

    def output_throughput(self) -> float | None:
        """Output tokens per second."""
        return ratio(self.num_output_tokens(), self.duration_s())

    def total_token_throughput(self) -> float | None:
        """Prompt and output tokens per second."""
        return ratio(self.num_input_tokens() + self.num_output_tokens(), self.duration_s())

    def max_output_tokens_per_s(self) -> float:
        """The most in one second of the clock, but for tokens that end a recomputation: their time is nowhere."""
        return float(output_tokens_per_second(self.record).max(initial=0.0))

    def max_concurrent_requests(self) -> int:
        """The most in the system at once."""
        return curves.concurrency(self.record).max

    @cached_property
    def latencies(self) -> dict[str, dict[str, Number]]:
        """Mean, median, deviation and percentiles (ms) of `ttft`, `tpot`, `itl` and `e2el`."""
        return {name: describe(values) for name, values in self._spans.items()} | {"itl": self._gaps()}

    def mean_normalised_latency_ms(self) -> float | None:
        """Of the finished requests, E2EL per output token."""
        return mean_or_none(normalised_latencies_ms(self.record))

    def mean_waiting(self) -> float | None:
        """Requests that arrived and were not yet scheduled for the first time, over time (Little's law)."""
        requests = self.record.requests
        waits = let_in(requests)
        never = waits & (requests.scheduled_ps < 0)
        never_ps = np.maximum(self.record.end_ps - requests.arrival_ps[never], 0)
        total_s = (self._wait_ps / PS_PER_S).sum() + (never_ps / PS_PER_S).sum()
        return ratio(float(total_s), self.duration_s())

    def max_waiting(self) -> int:
        """The most of them at once."""
        return curves.waiting(self.record).max

    @cached_property
    def waits(self) -> dict[str, Number]:
        """Mean, median, deviation and percentiles (ms) of the time from arrival to the first step."""
        return describe(self._wait_ps / PS_PER_MS)

    def mean_batch(self) -> float | None:
        """Requests per step, decodes and prefills together; over steps."""
        return ratio(curves.totals(self.record).num_requests, self.record.num_steps)

    def max_batch(self) -> int:
        """The most in a step."""
        return curves.totals(self.record).max_requests

    def mean_kv_use(self) -> float | None:
        """Share of the usable blocks that is taken, over time."""
        return ratio(curves.mean_used_blocks(self.record, self.duration_ps), self.record.num_usable_blocks)

    def peak_kv_use(self) -> float | None:
        """The most of it."""
        return ratio(curves.used_blocks(self.record).max, self.record.num_usable_blocks)

    def recomputed_tokens_share(self) -> float | None:
        """Their share of all tokens computed."""
        return ratio(self.record.num_recomputed_tokens, curves.totals(self.record).num_tokens)

    def mean_concurrent_requests(self) -> float | None:
        """Requests in the system on average, over time: the finished ones, from send to response."""
        return ratio(float(self._spans["e2el"].sum()), self.duration_ps / PS_PER_MS)

    def device_busy_share(self) -> float | None:
        """Share of `duration` in which the device worked; of a cluster, the mean of its devices."""
        return ratio(curves.busy_ps(self.record), self.duration_ps * self.record.num_replicas)

    def cached_tokens_share(self) -> float | None:
        """Prompt tokens found in the prefix cache when first scheduled, of all prompt tokens scheduled."""
        requests = self.record.requests
        # a client knows of a first token alone
        started = (requests.scheduled_ps >= 0) | (requests.first_token_ps >= 0)
        cached = int(requests.num_cached_tokens[started].sum())
        return ratio(cached, int(requests.num_prompt_tokens[started].sum()))

    @cached_property
    def _spans(self) -> dict[str, NDArray[np.float64]]:
        return latencies_ms(self.record, self.done)

    @cached_property
    def _wait_ps(self) -> NDArray[np.int64]:
        requests = self.record.requests
        started = let_in(requests) & (requests.scheduled_ps >= 0)
        return requests.scheduled_ps[started] - requests.arrival_ps[started]


def bound_by(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """The blocks `time_share` and `host_wait_after` of summary.json: shares of `duration`."""
    duration = duration_ps(record) * record.num_replicas
    device = ratio(curves.busy_ps(record), duration)
    waits = _waits_ps(record, facts) if facts.has_host else dict[str, int]()
    shares = {kind: ratio(waits[kind], duration) if waits else None for kind in (*KINDS, FULL)}
    host = ratio(sum(waits[kind] for kind in KINDS), duration) if waits else None
    return {
        "time_share": {
            "device": device,
            "host": host,
            "front_end": ratio(record.front_end_late_ps, duration) if facts.has_front_end else None,
            "idle": None if device is None else max(0.0, 1 - device - (host or 0)),
        },
        "host_wait_after": shares,
    }


def shares_per_bin(record: RunRecord, facts: RunFacts, edges: Ints) -> tuple[Floats, Floats]:
    """The shares of the time between each two edges (ps) in which the device worked, and in which it waited."""
    if record.replicas:
        shares = [shares_per_bin(part, facts, edges) for part in record.parts()]
        return np.mean([each[0] for each in shares], axis=0), np.mean([each[1] for each in shares], axis=0)
    worked, flown = np.zeros(len(edges)), np.zeros(len(edges))
    for part, begin, until in _flights(record, facts):
        start = record.segments["start_ps"][part]
        worked += _up_to(edges, start, start + curves.spans_ps(record)[part], curves.works_ps(record)[part])
        flown += _up_to(edges, begin, until, until - begin)
    width = np.diff(edges)
    device = np.diff(worked) / width
    return device, np.maximum(np.diff(flown) / width - device, 0.0)


def _waits_ps(record: RunRecord, facts: RunFacts) -> dict[str, int]:
    """How long the device waited for the host after steps of each kind of launch, and after full ones."""
    totals = dict.fromkeys((*KINDS, FULL), 0)
    if record.replicas:
        for part in record.parts():
            waits = _waits_ps(part, facts)
            totals = {kind: total + waits[kind] for kind, total in totals.items()}
        return totals
    budget = facts.engine.get("max_num_batched_tokens")
    for place, begin, until in _flights(record, facts):
        rows, wait = record.segments[place], until - begin - curves.works_ps(record)[place]
        tokens, size = rows["num_decodes"] + rows["prefill_tokens"], facts.max_capture_size
        is_graph = (rows["num_prefills"] == 0) & (rows["num_decodes"] <= size)
        is_piecewise = ~is_graph & (tokens <= size)
        chosen = {GRAPH: is_graph, PIECEWISE: is_piecewise, NONE: ~(is_graph | is_piecewise), FULL: tokens == budget}
        for kind, among in chosen.items():
            totals[kind] += int(wait[among].sum())
    return totals


def _flights(record: RunRecord, facts: RunFacts) -> Iterator[tuple[slice, Ints, Ints]]:
    """Slices of the segments, for each segment from when and until when requests were in the engine for it.

    From its start or, in an empty engine, from when the first request was taken in; until the next one starts, or
    until all have left.
    """
    scheduled, queued, spans = curves.begun_ps(record), _taken_in_ps(record), curves.spans_ps(record)
    last = 0
    for part, until, _ in curves.in_flight(record):
        begin = record.segments["start_ps"][part].copy()
        until = np.where(until < curves.NEVER, until, np.maximum(begin + spans[part], record.end_ps))
        if not facts.policy_holds:
            left = np.append(last, until[:-1])
            idle = np.flatnonzero(left < begin)
            waiting = queued[np.searchsorted(scheduled, left[idle], side="right")]
            begin[idle] = np.minimum(np.maximum(waiting, left[idle]), begin[idle])
        last = until[-1]
        yield part, begin, until


@kept
def _taken_in_ps(record: RunRecord) -> Ints:
    """When more than n of those who have begun had been taken in, for n = 0, 1, ..."""
    requests = record.requests
    return np.append(np.sort(queued_ps(requests)[requests.scheduled_ps >= 0], kind="stable"), curves.NEVER)


def _up_to(edges: Ints, begin: Ints, end: Ints, amount: Ints) -> Floats:
    """How much there was up to each edge, if each amount comes evenly from its begin to its end."""
    times = np.stack([begin, end], axis=1).ravel()
    so_far = np.cumsum(np.stack([np.zeros_like(amount), amount], axis=1).ravel())
    amounts: Floats = np.interp(edges, times, so_far, left=0.0)
    return amounts
