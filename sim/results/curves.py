"""How many at each moment: waiting requests, batch, blocks, tokens per second, as step functions of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A step function: `values[i]` from `times[i]` (ps, ascending) until the next; 0 before the first."""

    times: Ints
    values: Ints

    @classmethod
    def counting(cls, begins: Ints, ends: Ints) -> Curve:
        """How many of the half-open intervals [begin, end) hold each moment."""
        times = np.concatenate([ends, begins])
        changes = np.repeat(np.array([-1, 1]), [len(ends), len(begins)])
        order = np.argsort(times, kind="stable")
        times, values = times[order], np.cumsum(changes[order])
        is_last = np.append(times[1:] != times[:-1], True)[: len(times)]
        return cls(times[is_last], values[is_last])

    @property
    def max(self) -> int:
        """The highest value, 0 for an empty curve."""
        return int(self.values.max(initial=0))

    def mean_per_bin(self, edges: Ints) -> Floats:
        """The time-weighted mean between each two edges (ps)."""
        held = self.values[:-1] * np.diff(self.times).astype(np.float64)
        integral = np.concatenate([[0.0, 0.0], np.cumsum(held)])
        position = np.searchsorted(self.times, edges, side="right")
        since = (edges - np.concatenate([edges[:1], self.times])[position]).astype(np.float64)
        value = np.concatenate([[0], self.values])[position]
        means: Floats = np.diff(integral[position] + value * since) / np.diff(edges)
        return means

    def max_per_bin(self, edges: Ints) -> Ints:
        """The highest value between each two edges (ps): a peak is never lost, however narrow."""
        position = np.searchsorted(self.times, edges[:-1], side="right")
        peaks = np.concatenate([[0], self.values])[position]
        which = np.searchsorted(edges, self.times, side="right") - 1
        inside = (which >= 0) & (which < len(peaks)) & (self.times < edges[-1])
        np.maximum.at(peaks, which[inside], self.values[inside])
        return peaks


def span_ps(record: RunRecord) -> Ints:
    """How long each segment lasts: num_steps steps, each slope_ps longer than the one before."""
    rows = record.segments
    steps: Ints = rows["num_steps"]
    duration: Ints = steps * rows["duration_ps"] + rows["slope_ps"] * (steps * (steps - 1) // 2)
    return duration


def waiting(record: RunRecord) -> Curve:
    """Requests that have arrived and not yet been scheduled for the first time; the rejected never wait."""
    requests = record.requests
    waits = requests.status != REJECTED
    scheduled = requests.scheduled_ps[waits]
    left = np.where(scheduled < 0, max(record.end_ps, int(requests.arrival_ps.max(initial=0))), scheduled)
    return Curve.counting(requests.arrival_ps[waits], left)


def waiting_with_preempted(record: RunRecord) -> Curve:
    """The same, but no lower than what the scheduler saw at each segment, preempted requests included."""
    arrived = waiting(record)
    if not record.num_preemptions:
        return arrived
    times = np.concatenate([arrived.times, record.segments["start_ps"]])
    order = np.argsort(times, kind="stable")
    position = np.searchsorted(arrived.times, times, side="right")
    never_ran = np.concatenate([[0], arrived.values])[position]
    seen = np.concatenate([np.zeros_like(arrived.values), record.segments["num_waiting"]])
    return Curve(times[order], np.maximum(never_ran, seen)[order])


def concurrency(record: RunRecord) -> Curve:
    """Finished requests that are in flight as the client sees it, [send, response), as vLLM's sweep counts them."""
    requests = record.requests
    done = requests.status == FINISHED
    return Curve.counting(requests.arrival_ps[done], requests.finish_ps[done] + record.client_overhead_ps)


def batch_size(record: RunRecord) -> Curve:
    """Requests in the running step, decodes and prefills; 0 while the device is idle."""
    rows = record.segments
    return _held_over(record, rows["num_decodes"] + rows["num_prefills"], np.zeros(len(rows), dtype=np.int64))


def used_blocks(record: RunRecord) -> Curve:
    """Blocks in use after each segment; while the device is idle, none unless a request still runs."""
    used = record.num_gpu_blocks - 1 - record.segments["free_blocks"]
    end = record.segments["start_ps"] + span_ps(record)
    return _held_over(record, used, np.where(num_started(record, end) > 0, used, 0))


def mean_used_blocks(record: RunRecord, duration_ps: int) -> float:
    """Time-weighted; within a span its n decodes fill n/block_size blocks a step, the last one as recorded."""
    rows, curve = record.segments, used_blocks(record)
    if not duration_ps or not len(rows):
        return 0.0
    filling = rows["num_decodes"] * (rows["num_steps"] - 1) / (2 * record.block_size) * span_ps(record)
    edges = np.array([0, duration_ps], dtype=np.int64)
    return max(0.0, float(curve.mean_per_bin(edges)[0]) - float(filling.sum()) / duration_ps)


def num_started(record: RunRecord, moments: Ints) -> Ints:
    """How many requests have been scheduled and not finished, at each moment (ps)."""
    requests = record.requests
    scheduled = np.sort(requests.scheduled_ps[requests.scheduled_ps >= 0])
    finished = np.sort(requests.finish_ps[requests.finish_ps >= 0])
    begun: Ints = np.searchsorted(scheduled, moments, side="right")
    return begun - np.searchsorted(finished, moments, side="right")


def output_tokens_per_second(record: RunRecord) -> Floats:
    """Output tokens in each whole second from the first send of a finished request, as vLLM's buckets.

    A token that a preempted request gets at the end of its recomputation is not among them: nothing says when it came.
    """
    requests = record.requests
    done = requests.status == FINISHED
    if not done.any():
        return np.zeros(0)
    origin_ps = int(requests.arrival_ps[done].min()) - record.client_overhead_ps
    firsts = np.bincount((requests.first_token_ps[done] - origin_ps) // PS_PER_S).astype(np.float64)
    second, tokens = _decoded_tokens(record, origin_ps)
    decoded = np.bincount(second[second >= 0], weights=tokens[second >= 0], minlength=len(firsts))
    return np.asarray(decoded + np.pad(firsts, (0, len(decoded) - len(firsts))), dtype=np.float64)


def _decoded_tokens(record: RunRecord, origin_ps: int) -> tuple[Ints, Ints]:
    """Pairs (second, tokens): one per segment, or one per second that a segment's step ends fall into."""
    rows = record.segments[record.segments["num_decodes"] > 0]
    decodes, steps = rows["num_decodes"], rows["num_steps"]
    begin = rows["start_ps"] - origin_ps
    duration, slope = rows["duration_ps"], rows["slope_ps"]
    second = (begin + duration) // PS_PER_S
    last = (begin + _first_steps_ps(duration, slope, steps)) // PS_PER_S
    pieces = last - second + 1
    row = np.repeat(np.arange(len(rows)), pieces)
    second = second[row] + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    ended = steps[row]
    crosses = pieces[row] > 1
    row_crossing, bound = row[crosses], (second[crosses] + 1) * PS_PER_S - begin[row[crosses]]
    ended[crosses] = _num_steps_before(duration[row_crossing], slope[row_crossing], steps[row_crossing], bound)
    earlier = np.concatenate([[0], ended[:-1]]) if len(ended) else ended
    earlier[np.cumsum(pieces) - pieces] = 0
    return second, (ended - earlier) * decodes[row]


def _num_steps_before(duration: Ints, slope: Ints, num_steps: Ints, bound: Ints) -> Ints:
    """How many of a span's steps end before `bound` (ps after its start): bisection, all spans at once."""
    low, high = np.zeros_like(num_steps), num_steps.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        before = _first_steps_ps(duration, slope, middle) < bound
        low = np.where(before, middle, low)
        high = np.where(before, high, middle - 1)
    return low


def _first_steps_ps(duration: Ints, slope: Ints, num_steps: Ints) -> Ints:
    return num_steps * duration + slope * (num_steps * (num_steps - 1) // 2)


def _held_over(record: RunRecord, values: Ints, idle_values: Ints) -> Curve:
    """`values` from each segment's start, `idle_values` from its end until the next one's start."""
    start = record.segments["start_ps"]
    end = start + span_ps(record)
    idle = np.append(end[:-1] < start[1:], True)[: len(start)]
    times = np.concatenate([start, end[idle]])
    order = np.argsort(times, kind="stable")
    return Curve(times[order], np.concatenate([values, idle_values[idle]])[order])
