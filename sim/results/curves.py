"""How many at each moment: waiting requests, batch, blocks, as step functions of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.results.slices import bounds, slices
from simbatch.sim.results.step_function import Curve, Pieces, StepFunction
from simbatch.sim.results.tokens import first_steps_ps

Ints = NDArray[np.int64]
Rows = NDArray[np.void]
NEVER = np.iinfo(np.int64).max


def span_ps(rows: Rows) -> Ints:
    """How long each of these segments lasts: num_steps steps, each slope_ps longer than the one before."""
    return first_steps_ps(rows["duration_ps"], rows["slope_ps"], rows["num_steps"])


def busy_ps(record: RunRecord) -> int:
    """How long the device works."""
    return sum(int(span_ps(rows).sum()) for rows in slices(record.segments))


def waiting(record: RunRecord) -> Curve:
    """Requests that have arrived and not yet been scheduled for the first time; the rejected never wait."""
    requests = record.requests
    waits = requests.status != REJECTED
    scheduled = requests.scheduled_ps[waits]
    left = np.where(scheduled < 0, max(record.end_ps, int(requests.arrival_ps.max(initial=0))), scheduled)
    return Curve.counting(requests.arrival_ps[waits], left)


def waiting_with_preempted(record: RunRecord) -> StepFunction:
    """The same, but no lower than what the scheduler saw at each segment, preempted requests included."""
    arrived = waiting(record)
    if not record.num_preemptions or not len(record.segments):
        return arrived
    values = np.append(0, arrived.values)

    def pieces() -> Iterator[Curve]:
        begin = 0
        for rows, following_ps in _with_following(record):
            end = int(np.searchsorted(arrived.times, following_ps))
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
    return Curve.counting(requests.arrival_ps[done], requests.finish_ps[done] + record.client_overhead_ps)


def batch_size(record: RunRecord) -> StepFunction:
    """Requests in the running step, decodes and prefills; 0 while the device is idle."""
    return _held_over(record, batch_sizes, lambda _, values: np.zeros_like(values))


def batch_sizes(rows: Rows) -> Ints:
    """The same for each of these segments."""
    sizes: Ints = rows["num_decodes"] + rows["num_prefills"]
    return sizes


def used_blocks(record: RunRecord) -> StepFunction:
    """Blocks in use after each segment; while the device is idle, none unless a request still runs."""
    requests = record.requests
    scheduled = np.sort(requests.scheduled_ps[requests.scheduled_ps >= 0])
    finished = np.sort(requests.finish_ps[requests.finish_ps >= 0])

    def while_idle(end_ps: Ints, used: Ints) -> Ints:
        begun = np.searchsorted(scheduled, end_ps, side="right")
        return np.where(begun > np.searchsorted(finished, end_ps, side="right"), used, 0)

    return _held_over(record, lambda rows: record.num_gpu_blocks - 1 - rows["free_blocks"], while_idle)


def mean_used_blocks(record: RunRecord, duration_ps: int) -> float:
    """Time-weighted; within a span its n decodes fill n/block_size blocks a step, the last one as recorded."""
    if not duration_ps or not len(record.segments):
        return 0.0
    filling = np.empty(len(record.segments))
    for part in bounds(len(filling)):
        rows = record.segments[part]
        filling[part] = rows["num_decodes"] * (rows["num_steps"] - 1) / (2 * record.block_size) * span_ps(rows)
    mean = used_blocks(record).mean_per_bin(np.array([0, duration_ps], dtype=np.int64))[0]
    return max(0.0, float(mean) - float(filling.sum()) / duration_ps)


def _held_over(
    record: RunRecord, values_of: Callable[[Rows], Ints], idle_values_of: Callable[[Ints, Ints], Ints]
) -> StepFunction:
    """A value from each segment's start; from its end until the next one's start, that for idle times.

    `idle_values_of` gets the ends (ps) of the segments that such a time follows, and their values.
    """

    def pieces() -> Iterator[Curve]:
        for rows, following_ps in _with_following(record):
            start = rows["start_ps"]
            times = np.stack([start, start + span_ps(rows)], axis=1)
            values = np.repeat(values_of(rows), 2).reshape(-1, 2)
            is_shown = np.ones(times.shape, dtype=np.bool_)
            is_shown[:, 1] = idle = times[:, 1] < np.append(start[1:], following_ps)
            values[idle, 1] = idle_values_of(times[idle, 1], values[idle, 1])
            yield Curve(times[is_shown], values[is_shown])

    return Pieces(pieces)


def _with_following(record: RunRecord) -> Iterator[tuple[Rows, int]]:
    """The segments in slices, each with the start (ps) of the segment after it."""
    starts = record.segments["start_ps"]
    for part in bounds(len(starts)):
        yield record.segments[part], int(starts[part.stop]) if part.stop < len(starts) else NEVER


def computed_tokens(record: RunRecord) -> int:
    """Tokens that all steps computed, prompts and decodes, those computed again among them."""
    computed = 0
    for rows in slices(record.segments):
        computed += int((rows["prefill_tokens"] + rows["num_decodes"] * rows["num_steps"]).sum())
    return computed
