"""Queue, batch size, blocks and output tokens over time, read off a run's spans of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, RunRecord, bounds, slices
from simbatch.sim.metrics.columns import kept, let_in
from simbatch.sim.metrics.step_function import Curve, Pieces, StepFunction

Ints = NDArray[np.int64]
Rows = NDArray[np.void]
NEVER = np.iinfo(np.int64).max


def span_ps(rows: Rows) -> Ints:
    """How long each of these segments lasts, from the begin of the first step to the device's end of the last."""
    before_last = rows["num_steps"] - 1
    last_start = first_steps_ps(rows["period_ps"], rows["period_slope_ps"], before_last)
    paced = last_start + rows["duration_ps"] + rows["slope_ps"] * before_last
    return np.where(rows["period_ps"] > 0, paced, work_ps(rows))


def work_ps(rows: Rows) -> Ints:
    """How long the device works in each of them: num_steps steps, each slope_ps longer than the one before."""
    return first_steps_ps(rows["duration_ps"], rows["slope_ps"], rows["num_steps"])


@kept
def spans_ps(record: RunRecord) -> Ints:
    """How long each of its segments lasts."""
    return works_ps(record) if _is_gapless(record) else _column(record, span_ps)


@kept
def works_ps(record: RunRecord) -> Ints:
    """How long the device works in each of its segments."""
    return _column(record, work_ps)


@kept
def _is_gapless(record: RunRecord) -> bool:
    """Whether each step of a segment follows on the one before, so that the device's work is all there is."""
    return not any((rows["period_ps"] > 0).any() for rows in slices(record.segments))


def _column(record: RunRecord, values_of: Callable[[Rows], Ints]) -> Ints:
    """Of each segment; slice by slice, so that what it takes stays small."""
    values = np.empty(len(record.segments), dtype=np.int64)
    for part in bounds(len(values)):
        values[part] = values_of(record.segments[part])
    return values


def busy_ps(record: RunRecord) -> int:
    """How long the device works."""
    return int(works_ps(record).sum())


@kept
def waiting(record: RunRecord) -> Curve:
    """Requests that have arrived and not yet been scheduled for the first time; who is turned away never waits."""
    requests = record.requests
    waits = let_in(requests)
    scheduled = requests.scheduled_ps[waits]
    left = np.where(scheduled < 0, max(record.end_ps, int(requests.arrival_ps.max(initial=0))), scheduled)
    return Curve.counting(requests.arrival_ps[waits], left)


def waiting_with_preempted(record: RunRecord) -> StepFunction:
    """Requests that wait, no fewer than the scheduler saw at each segment, preempted ones included."""
    if record.replicas:
        return Curve.total([waiting_with_preempted(part) for part in record.parts()])
    arrived = waiting(record)
    if not record.num_preemptions or not len(record.segments):
        return arrived
    values = np.append(0, arrived.values)

    def pieces() -> Iterator[Curve]:
        begin = 0
        for _, rows, next_start in _with_following(record):
            end = int(np.searchsorted(arrived.times, next_start[-1]))
            times = np.concatenate([arrived.times[begin:end], rows["start_ps"]])
            order = np.argsort(times, kind="stable")
            position = np.searchsorted(arrived.times, times, side="right")
            never_ran = values[position]
            never_ran[end - begin :] = np.maximum(never_ran[end - begin :], rows["num_waiting"])
            yield Curve(times[order], never_ran[order])
            begin = end

    return Pieces(pieces)


def concurrency(record: RunRecord) -> Curve:
    """Finished requests that are in flight as the client sees it, [send, response), as vLLM's sweep counts them."""
    requests = record.requests
    done = requests.status == FINISHED
    return Curve.counting(requests.arrival_ps[done], record.client_finish_ps[done])


def batch_size(record: RunRecord) -> StepFunction:
    """Requests in the running step, or the newest one, decodes and prefills; 0 while nothing is in flight.

    Of a cluster in the steps of all replicas, as `used_blocks` are those of all.
    """
    return _held_over(record, batch_sizes)


def batch_sizes(rows: Rows) -> Ints:
    """Requests in a step of each of these segments, decodes and prefills."""
    sizes: Ints = rows["num_decodes"] + rows["num_prefills"]
    return sizes


def used_blocks(record: RunRecord) -> StepFunction:
    """Blocks in use after each segment; none once the last request has left."""
    if record.replicas:
        return Curve.total([used_blocks(part) for part in record.parts()])
    return _held_over(record, lambda rows: record.num_gpu_blocks - 1 - rows["free_blocks"])


def in_flight(record: RunRecord) -> Iterator[tuple[slice, Ints, Ints]]:
    """Slices of the segments, until when requests are in flight after each, and when the next one starts (ps).

    They are until the next one starts, or until all that have begun have ended: then until the last one's end.
    """
    until = _until_ps(record)
    for part, _, next_start in _with_following(record):
        yield part, until[part], next_start


@kept
def begun_ps(record: RunRecord) -> Ints:
    """When requests were scheduled for the first time, in order of time."""
    scheduled = record.requests.scheduled_ps
    return np.sort(scheduled[scheduled >= 0], kind="stable")  # ten times as quick where it is in order, or nearly


@kept
def _until_ps(record: RunRecord) -> Ints:
    """Until when requests are in flight after each segment."""
    scheduled, finished = begun_ps(record), record.requests.finish_ps
    finished = np.sort(finished[finished >= 0], kind="stable")
    left_ps = np.full(len(scheduled) + 1, NEVER)  # [n]: when n requests have ended
    left_ps[0], left_ps[1 : len(finished) + 1] = 0, finished[: len(scheduled)]
    until_ps = record.segments["start_ps"] + spans_ps(record)
    for part, rows, next_start in _with_following(record):
        start, until = rows["start_ps"], until_ps[part]
        idle = np.flatnonzero(until < next_start)
        num_begun = np.searchsorted(scheduled, start[idle], side="right")
        until[idle] = np.minimum(np.maximum(until[idle], left_ps[num_begun]), next_start[idle])
    return until_ps


def mean_used_blocks(record: RunRecord, duration_ps: int) -> float:
    """Time-weighted; within a span its n decodes fill n/block_size blocks a step, the last one as recorded."""
    if not duration_ps or not len(record.segments):
        return 0.0
    if record.replicas:
        return sum(mean_used_blocks(part, duration_ps) for part in record.parts())
    filling, spans = np.empty(len(record.segments)), spans_ps(record)
    for part in bounds(len(filling)):
        rows = record.segments[part]
        filling[part] = rows["num_decodes"] * (rows["num_steps"] - 1) / (2 * record.block_size) * spans[part]
    mean = used_blocks(record).mean_per_bin(np.array([0, duration_ps], dtype=np.int64))[0]
    return max(0.0, float(mean) - float(filling.sum()) / duration_ps)


def _held_over(record: RunRecord, values_of: Callable[[Rows], Ints]) -> StepFunction:
    """A value from each segment's start to the next one's; 0 from when the last request has left in between."""
    if record.replicas:
        return Curve.total([_held_over(part, values_of) for part in record.parts()])

    def pieces() -> Iterator[Curve]:
        for part, until, next_start in in_flight(record):
            rows, idle = record.segments[part], np.flatnonzero(until < next_start)
            times, values = rows["start_ps"], values_of(rows)
            yield Curve(np.insert(times, idle + 1, until[idle]), np.insert(values, idle + 1, 0))

    def highest() -> int:
        return max((int(values_of(rows).max()) for rows in slices(record.segments)), default=0)

    return Pieces(pieces, highest)


def _with_following(record: RunRecord) -> Iterator[tuple[slice, Rows, Ints]]:
    """Slices of the segments, and when the segment after each starts (ps)."""
    starts = record.segments["start_ps"]
    for part in bounds(len(starts)):
        following_ps = int(starts[part.stop]) if part.stop < len(starts) else NEVER
        yield part, record.segments[part], np.append(starts[part][1:], following_ps)


class Totals(NamedTuple):
    """Over all steps: the tokens that they computed, those computed again too, their requests, the most requests."""

    num_tokens: int
    num_requests: int
    max_requests: int


@kept
def totals(record: RunRecord) -> Totals:
    """In one pass over the rows: each column that is read is a walk through all of them."""
    num_tokens = num_requests = most = 0
    for rows in slices(record.segments):
        steps, decodes = np.ascontiguousarray(rows["num_steps"]), np.ascontiguousarray(rows["num_decodes"])
        sizes = decodes + rows["num_prefills"]
        num_tokens += int(rows["prefill_tokens"].sum()) + int(np.dot(decodes, steps))
        num_requests += int(np.dot(sizes, steps))
        most = max(most, int(sizes.max()))
    return Totals(num_tokens, num_requests, most)


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
    num_seconds = (int(record.client_finish_ps.max()) - origin_ps) // PS_PER_S + 1  # hardly ever more
    seconds = (record.client_first_token_ps[done] - origin_ps) // PS_PER_S
    totals = np.bincount(seconds, minlength=num_seconds).astype(np.float64)
    for rows in slices(record.token_rows):  # their times are the server's: the network comes later by as much for all
        totals = _with_decoded(totals, rows, origin_ps - record.client_overhead_ps)
    return totals


def _with_decoded(totals: Floats, rows: NDArray[np.void], origin_ps: int) -> Floats:
    """`totals` and what the spans add, rows without decodes nothing; a span is split by the seconds of its tokens."""
    names = ("num_decodes", "num_steps", "duration_ps", "slope_ps", "start_ps")
    decodes, steps, duration, slope, begin = (np.ascontiguousarray(rows[name]) for name in names)
    begin = begin - origin_ps
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
    if (more := offset + len(added) - len(totals)) > 0:
        totals = np.pad(totals, (0, more))
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
