"""Whom a run waited for: how long the device worked, waited for the host, or had nothing to do.

The device waits for the host while requests are in the engine and it works on none of them: the host has not launched
their next step, or its launch still goes on. Such a wait belongs to the step before it: a launch that lasts longer than
its own work ends its step late, and vLLM's loop then schedules the next step late. In an empty engine it belongs to the
step that comes; a policy that holds requests back is no host, so that under one of these only requests that have begun
count. Tokens wait for the front end while it still sends those of the step before; the device may work meanwhile, so
that this share is none of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.columns import RunFacts, kept, queued_ps
from simbatch.sim.metrics.latencies import duration_ps, ratio

KINDS = (GRAPH, PIECEWISE, NONE)
FULL = "full"  # steps of whatever kind that took all of `max_num_batched_tokens`
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
