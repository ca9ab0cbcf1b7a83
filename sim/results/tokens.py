"""Output tokens per second of simulated time, from spans of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.results.slices import slices

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def output_tokens_per_second(record: RunRecord) -> Floats:
    """Output tokens in each whole second from the first send of a finished request, as vLLM's buckets.

    A token that a preempted request gets at the end of its recomputation is not among them: nothing says when it came.
    """
    requests = record.requests
    done = requests.status == FINISHED
    if not done.any():
        return np.zeros(0)
    origin_ps = int(requests.arrival_ps[done].min())
    totals = np.bincount((record.client_first_token_ps[done] - origin_ps) // PS_PER_S).astype(np.float64)
    for rows in slices(record.token_rows):  # their times are the server's: the network comes later by as much for all
        totals = _with_decoded(totals, rows[rows["num_decodes"] > 0], origin_ps - record.client_overhead_ps)
    return totals


def _with_decoded(totals: Floats, rows: NDArray[np.void], origin_ps: int) -> Floats:
    """`totals` and what the spans add; a span is split by the seconds in which its steps' tokens come."""
    decodes, steps, duration, slope = (
        np.ascontiguousarray(rows[name]) for name in ("num_decodes", "num_steps", "duration_ps", "slope_ps")
    )
    begin = rows["start_ps"] - origin_ps
    second = (begin + duration) // PS_PER_S
    last = (begin + first_steps_ps(duration, slope, steps)) // PS_PER_S
    whole = second == last
    split = np.flatnonzero(~whole)
    totals = _added(totals, second[whole], decodes[whole] * steps[whole])
    pieces = last[split] - second[split] + 1
    row = np.repeat(split, pieces)
    starts = np.cumsum(pieces) - pieces
    second = second[row] + np.arange(len(row)) - np.repeat(starts, pieces)
    ended = _num_steps_before(duration[row], slope[row], steps[row], (second + 1) * PS_PER_S - begin[row])
    earlier = np.append(0, ended)[:-1]
    earlier[starts] = 0
    return _added(totals, second, (ended - earlier) * decodes[row])


def _added(totals: Floats, second: Ints, tokens: Ints) -> Floats:
    """`totals`, longer when need be, with so many tokens more in these seconds; those before 0 are left out."""
    if second.min(initial=0) < 0:
        second, tokens = second[second >= 0], tokens[second >= 0]
    if not len(second):
        return totals
    offset = int(second.min())
    added = np.bincount(second - offset, weights=tokens)
    totals = np.pad(totals, (0, max(0, offset + len(added) - len(totals))))
    totals[offset : offset + len(added)] += added
    return totals


def _num_steps_before(duration: Ints, slope: Ints, num_steps: Ints, bound: Ints) -> Ints:
    """How many of a span's steps end before `bound` (ps after its start): bisection, all spans at once.

    As many as there would be if each step were as long as the longest one, or as the shortest, are the first bounds.
    """
    last = duration + slope * (num_steps - 1)
    shortest, longest = np.minimum(duration, last), np.maximum(duration, last)
    low = np.clip((bound - 1) // np.maximum(longest, 1), 0, num_steps)
    high = np.where(shortest > 0, np.clip((bound - 1) // np.maximum(shortest, 1), 0, num_steps), num_steps)
    while (low < high).any():
        middle = (low + high + 1) // 2
        before = first_steps_ps(duration, slope, middle) < bound
        low = np.where(before, middle, low)
        high = np.where(before, high, middle - 1)
    return low


def first_steps_ps(duration: Ints, slope: Ints, num_steps: Ints) -> Ints:
    """How long the first `num_steps` steps of spans last, each step `slope` longer than the one before."""
    return num_steps * duration + slope * (num_steps * (num_steps - 1) // 2)
