"""Decode-only steps of one batch in closed form, where host and device take time: who sets the pace, and until when.

With S the begin of a step on the host, P the device's end of the step before, h and o what a launch and an update take,
and d, d + s, d + 2s, ... what the device takes. Asynchronous, from one step to the next:

    S' = max(S + h, P) + o,    P' = max(max(P, S + lag) + d, S + h + tail)

The device sets the pace where P is never before S + lag and S + h, nor P' before S + h + tail: once that holds it goes
on, since no step is shorter than the one before. The host does where the device is done before the next launch: until
d has grown too long. In between (where `lag` or `tail` decides) S hangs on the step before the last, and steps are done
one by one. Synchronous: S' = S + max(lag + d, h + max(tail, 0)) + o.
"""

from __future__ import annotations

from typing import NamedTuple

from simbatch.sim.engine.spans import span_ps, steps_until


class HostPart(NamedTuple):
    """What a decode-only step of one batch takes beside the device, ps."""

    launch_ps: int
    update_ps: int
    lag_ps: int
    tail_ps: int


class Pace(NamedTuple):
    """`num_steps` steps under one rule; the k-th update is the begin of the (k+1)-th step on the host."""

    num_steps: int
    start_ps: int  # the device begins the first one
    period_ps: int  # from there to the second one's begin, each further period longer by `period_slope_ps`
    period_slope_ps: int
    updated_ps: int  # the first update; the next comes `gap_ps` later, each further gap longer by `gap_slope_ps`
    gap_ps: int
    gap_slope_ps: int
    free_ps: int  # the device is done with the last one
    waited_ps: int  # the device had nothing to do

    def start_of(self, k: int) -> int:
        """When the device begins step k, from 0."""
        return self.start_ps + span_ps(k, self.period_ps, self.period_slope_ps)

    def updated_of(self, k: int) -> int:
        """The end of update k, from 0."""
        return self.updated_ps + span_ps(k, self.gap_ps, self.gap_slope_ps)


def device_paced(schedule_ps: int, free_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int) -> Pace | None:
    """Asynchronous steps one after the other on the device; None where it is not the device that sets the pace."""
    h, o, lag, tail = host
    first = max(lag, h)
    if free_ps < schedule_ps + first or d < o + first:
        return None
    if free_ps + d < schedule_ps + h + tail or 2 * d + s < o + h + tail:
        return None
    num_steps = min(most, 1 + steps_until(cut_ps - free_ps - o, d, s))
    return Pace(num_steps, free_ps, d, s, free_ps + o, d, s, free_ps + span_ps(num_steps, d, s), 0)


def host_paced(schedule_ps: int, free_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int) -> Pace | None:
    """Asynchronous steps whose launches follow one another; None where it is not the host that sets the pace."""
    h, o, lag, tail = host
    gap_ps = h + o
    room_ps = gap_ps + min(lag, h)  # a step must be done that long after its begin, or the next one finds it busy
    if free_ps > schedule_ps + min(lag, h) or h + tail > room_ps or lag + d > room_ps or gap_ps <= 0:
        return None
    num_steps = min(most, -(-(cut_ps - schedule_ps) // gap_ps))
    if s:
        num_steps = min(num_steps, 2 + (room_ps - lag - d) // s)
    ends_ps = sum_of_longer(num_steps - 1, lag + d, s, h + tail)
    waited_ps = schedule_ps + lag - free_ps + (num_steps - 1) * (lag + gap_ps) - ends_ps
    last_ps = schedule_ps + (num_steps - 1) * gap_ps + max(lag + d + (num_steps - 1) * s, h + tail)
    return Pace(num_steps, schedule_ps + lag, gap_ps, 0, schedule_ps + gap_ps, gap_ps, 0, last_ps, waited_ps)


def synchronous(schedule_ps: int, free_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int) -> Pace:
    """Steps of which each begins when the one before is taken in."""
    h, o, lag, tail = host
    launch_ps = h + max(tail, 0)
    if lag + d > launch_ps:  # the device's time decides, now and later
        gap_ps, slope_ps, num_steps = lag + d + o, s, most
    else:
        gap_ps, slope_ps = launch_ps + o, 0
        num_steps = min(most, 1 + (launch_ps - lag - d) // s) if s else most
    num_steps = min(num_steps, max(steps_until(cut_ps - schedule_ps, gap_ps, slope_ps), 1))
    begin_ps = schedule_ps + span_ps(num_steps - 1, gap_ps, slope_ps)
    free_after_ps = begin_ps + max(lag + d + (num_steps - 1) * s, h + tail)
    ends_ps = sum_of_longer(num_steps - 1, lag + d, s, h + tail)
    waited_ps = schedule_ps + lag - free_ps + span_ps(num_steps - 1, gap_ps, slope_ps) + (num_steps - 1) * lag - ends_ps
    return Pace(
        num_steps, schedule_ps + lag, gap_ps, slope_ps, schedule_ps + gap_ps, gap_ps + slope_ps, slope_ps,
        free_after_ps, waited_ps,
    )  # fmt: skip


def sum_of_longer(count: int, first: int, slope: int, least: int) -> int:
    """Sum of max(first + k * slope, least) for k from 0 to count - 1; the slope is 0 or more."""
    if count <= 0:
        return 0
    if first >= least:
        return span_ps(count, first, slope)
    num_short = min(count, -(-(least - first) // slope)) if slope else count
    return num_short * least + span_ps(count - num_short, first + num_short * slope, slope)
