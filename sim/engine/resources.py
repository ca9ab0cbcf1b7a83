"""Host (the engine's thread) and device (the GPU), a step on its way through both, and many alike in closed form.

Of decode-only steps of one batch a closed form says who sets the pace, and until when. With S the begin of a step on
the host, P the device's end of the step before, h and o what a launch and an update take (`before_ps`: the update of
the step before the first one), and d, d + s, d + 2s, ... what the device takes. Asynchronous, from one step to the
next:

    S' = max(S + h, P) + o,    P' = max(max(P, S + lag) + d, S + h + tail)

The device sets the pace where P is never before S + lag and S + h, nor P' before S + h + tail: once that holds it goes
on, since no step is shorter than the one before. The host does where the device is done before the next launch: until
d has grown too long. In between (where `lag` or `tail` decides) S hangs on the step before the last, and steps are done
one by one. Synchronous: S' = S + max(lag + d, h + max(tail, 0)) + o.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE, HostDraws, HostTimes, NoiseDraws
from simbatch.sim.cost.model import CostModel, Features, Sums, step_ps
from simbatch.sim.scheduler.request import NEVER, Batch, Request


class Host:
    """What vLLM's EngineCore takes on its thread, in ps, and when the device may begin and end beside it."""

    def __init__(self, times: HostTimes, max_capture_size: int, draws: HostDraws | None = None) -> None:
        self.times = times
        self.lag_ps, self.tail_ps = times.lag_ps, times.tail_ps
        self.max_graph_requests = self.max_piecewise_tokens = max_capture_size
        self.draws = draws
        # of a batch, a request, a prefill and a token; whole graphs have none of the last two
        self._launch = {GRAPH: (times.graph.base_ps, times.graph.per_seq_ps, 0, 0)}
        for kind, each in ((PIECEWISE, times.piecewise), (NONE, times.none)):
            self._launch[kind] = (each.base_ps, each.per_seq_ps, each.per_prefill_ps, each.per_token_ps)

    def kind(self, num_requests: int, num_prefills: int, num_tokens: int) -> str:
        """How a batch is launched: a whole CUDA graph, pieces of one, or none."""
        if not num_prefills and num_requests <= self.max_graph_requests:
            return GRAPH
        return PIECEWISE if num_tokens <= self.max_piecewise_tokens else NONE

    def launch_ps(self, num_requests: int, num_prefills: int, num_tokens: int) -> int:
        """How long scheduling and launching a batch takes; the next draw, where launches of its kind are spread."""
        if not num_prefills and num_requests <= self.max_graph_requests:  # as `kind`, one frame less for each launch
            kind = GRAPH
        else:
            kind = PIECEWISE if num_tokens <= self.max_piecewise_tokens else NONE
        base_ps, per_seq_ps, per_prefill_ps, per_token_ps = self._launch[kind]
        mean_ps = base_ps + per_seq_ps * num_requests + per_prefill_ps * num_prefills + per_token_ps * num_tokens
        draws = self.draws
        return mean_ps if draws is None or not draws.draws_for(kind) else draws.launch_ps(mean_ps, kind)

    def draws_for(self, num_decodes: int) -> bool:
        """Whether the launch of so many decodes and nothing else is drawn."""
        return self.draws is not None and self.draws.draws_for(self.kind(num_decodes, 0, num_decodes))

    def update_ps(self, num_requests: int) -> int:
        """How long it takes to take in the tokens of a batch."""
        return self.times.update_base_ps + self.times.update_per_seq_ps * num_requests

    def admit_ps(self, num_prompt_tokens: int) -> int:
        """How long it takes to take in a request."""
        return self.times.admit_base_ps + self.times.admit_per_prompt_token_ps * num_prompt_tokens


class Device:
    """How long it works on a batch, and when it is free."""

    def __init__(self, cost: CostModel, noise: NoiseDraws | None = None) -> None:
        self.cost = cost
        self.noise = noise
        self.free_ps = 0  # end of the batch that was launched last

    def work_ps(self, sums: Sums) -> int:
        """How long it works on a batch; the next draw, if its times are noisy."""
        duration_ps = step_ps(self.cost, sums)
        if self.noise is None:
            return duration_ps
        return self.noise.step_ps(duration_ps, sums[2] > 0)


NOTHING = Features(0, 0, 0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class Step:
    """A scheduled batch; times in ps. An empty one has no number and takes no time."""

    batch: Batch
    schedule_ps: int  # S: schedule() begins on the host
    launched_ps: int  # L: the launch has returned
    start_ps: int  # the device begins
    end_ps: int  # D: the device is done
    features: Features = NOTHING
    number: int = NEVER
    num_regular: int = 0  # decodes whose previous token came with the step before
    noted: list[Request] = field(default_factory=list)  # those who get a token that is not such a decode's
    updated_ps: int = NEVER  # U: the update is over, its tokens exist


class Pace(NamedTuple):
    """`num_steps` steps under one rule, and as many updates: update k is the begin of step k + 1 on the host."""

    num_steps: int
    start_ps: int  # the device begins step 0
    period_ps: int  # from there to the begin of step 1, each further period longer by `period_slope_ps`
    period_slope_ps: int
    updated_ps: int  # update 0
    second_ps: int  # update 1; the next comes `gap_ps` later, each further gap longer by `gap_slope_ps`
    gap_ps: int
    gap_slope_ps: int
    last_start_ps: int  # the device begins the last step
    last_updated_ps: int  # the last update
    free_ps: int  # the device is done with the last step

    def start_of(self, k: int) -> int:
        """When the device begins step k."""
        return self.start_ps + span_ps(k, self.period_ps, self.period_slope_ps)

    def updated_of(self, k: int) -> int:
        """The end of update k."""
        return self.second_ps + span_ps(k - 1, self.gap_ps, self.gap_slope_ps) if k else self.updated_ps


# The fields of a pace as they are handed on in the engine's loops: a plain tuple is made and unpacked in half the time.
PaceFields = tuple[int, int, int, int, int, int, int, int, int, int, int]


class HostPart:
    """What the host takes of a decode-only step of one batch, ps; made once for a batch."""

    def __init__(self, launch_ps: int, update_ps: int, before_ps: int, lag_ps: int, tail_ps: int) -> None:
        self.launch_ps = launch_ps
        self.update_ps = update_ps
        self.before_ps = before_ps  # the update of the step before the first one
        self.lag_ps = lag_ps
        self.tail_ps = tail_ps
        # a device that is busy for so long after S begins each step where it ends the one before
        self.first_ps = max(lag_ps, launch_ps)
        # and it sets the pace, whatever else, if its steps last as long as this
        self.enough_ps = max(update_ps, before_ps) + max(self.first_ps, launch_ps + tail_ps)


def device_paced(
    schedule_ps: int, free_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int
) -> PaceFields | None:
    """Asynchronous steps one after the other on the device; None where it is not the device that sets the pace."""
    o, before, first = host.update_ps, host.before_ps, host.first_ps
    if free_ps - schedule_ps < first:
        return None
    if d < host.enough_ps:
        longest, done = (o if o > before else before), host.launch_ps + host.tail_ps
        if free_ps + d < schedule_ps + done or d < longest + first or d + d + s < longest + done:
            return None
    updated_ps, left_ps = free_ps + before, cut_ps - free_ps - o
    num_more = most - 1 if updated_ps < cut_ps else 0
    after_ps = num_more * d + s * (num_more * (num_more - 1) // 2)  # until the device begins the last step
    if after_ps >= left_ps and num_more > 1:
        num_more, after_ps = fewest_steps(left_ps, d, s) if left_ps > 0 else (1, d)
    last_ps = free_ps + after_ps
    last_updated_ps = last_ps + o if num_more else updated_ps
    return (
        num_more + 1, free_ps, d, s, updated_ps, free_ps + d + o, d + s, s,
        last_ps, last_updated_ps, last_ps + d + num_more * s,
    )  # fmt: skip


def host_paced(
    schedule_ps: int, free_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int
) -> PaceFields | None:
    """Asynchronous steps whose launches follow one another; None where it is not the host that sets the pace."""
    h, o, before, lag, tail = host.launch_ps, host.update_ps, host.before_ps, host.lag_ps, host.tail_ps
    first = lag if lag < h else h
    gap_ps, gap_before_ps = h + o, h + before
    # a step must be done that long after its begin, or the next one finds the device busy
    room_ps = (gap_ps if gap_ps < gap_before_ps else gap_before_ps) + first
    if free_ps > schedule_ps + first or h + tail > room_ps or lag + d > room_ps or gap_ps <= 0:
        return None
    second_ps = schedule_ps + gap_before_ps  # begin of step 1
    num_steps = 1 if second_ps >= cut_ps else min(most, 1 - (second_ps - cut_ps) // gap_ps)
    if s:
        num_steps = min(num_steps, 2 + (room_ps - lag - d) // s)
    num_more = num_steps - 1
    last_ps = second_ps + (num_more - 1) * gap_ps if num_more else schedule_ps  # begin of the last step
    free_after_ps = last_ps + max(lag + d + num_more * s, h + tail)
    # the first period is the update's of another batch: rows of one period want it alike
    if num_more and gap_before_ps != gap_ps:
        return None
    return (
        num_steps, schedule_ps + lag, gap_ps, 0, second_ps, second_ps + gap_ps, gap_ps, 0,
        last_ps + lag, second_ps + num_more * gap_ps, free_after_ps,
    )  # fmt: skip


def synchronous(schedule_ps: int, d: int, s: int, host: HostPart, most: int, cut_ps: int) -> PaceFields:
    """Steps of which each begins when the one before is taken in."""
    h, o, lag, tail = host.launch_ps, host.update_ps, host.lag_ps, host.tail_ps
    launch_ps = h + max(tail, 0)
    if lag + d > launch_ps:  # the device's time decides, now and later
        gap_ps, slope_ps, num_steps = lag + d + o, s, most
    else:
        gap_ps, slope_ps = launch_ps + o, 0
        num_steps = min(most, 1 + (launch_ps - lag - d) // s) if s else most
    num_steps = min(num_steps, max(steps_until(cut_ps - schedule_ps, gap_ps, slope_ps), 1))
    num_more = num_steps - 1
    begin_ps = schedule_ps + span_ps(num_more, gap_ps, slope_ps)  # of the last one
    free_after_ps = begin_ps + max(lag + d + num_more * s, h + tail)
    updated_ps, second_ps = schedule_ps + gap_ps, schedule_ps + gap_ps + gap_ps + slope_ps
    gap_next_ps = gap_ps + 2 * slope_ps
    return (
        num_steps, schedule_ps + lag, gap_ps, slope_ps, updated_ps, second_ps, gap_next_ps, slope_ps,
        begin_ps + lag, begin_ps + gap_ps + num_more * slope_ps, free_after_ps,
    )  # fmt: skip


def span_ps(num_steps: int, duration_ps: int, slope_ps: int) -> int:
    """Time of steps that last d, d + s, d + 2s, ..."""
    return num_steps * duration_ps + slope_ps * (num_steps * (num_steps - 1) // 2)


def steps_until(time_ps: int, duration_ps: int, slope_ps: int) -> int:
    """The fewest such steps that last `time_ps` or longer."""
    return fewest_steps(time_ps, duration_ps, slope_ps)[0] if time_ps > 0 else 0


def fewest_steps(time_ps: int, duration_ps: int, slope_ps: int) -> tuple[int, int]:
    """The fewest such steps that last `time_ps`, which is above 0, or longer, and how long they last."""
    if not slope_ps:
        j = -(-time_ps // duration_ps)
        return j, j * duration_ps
    b = float(2 * duration_ps - slope_ps)  # slope*j^2 + b*j >= 2*time; floats find it, or a neighbour
    j = int((sqrt(b * b + 8.0 * float(slope_ps) * float(time_ps)) - b) / (2.0 * float(slope_ps))) + 1
    last_ps = duration_ps + slope_ps * (j - 1)  # the newest of them
    lasts_ps = j * duration_ps + slope_ps * (j * (j - 1) // 2)
    while lasts_ps < time_ps:
        j, last_ps = j + 1, last_ps + slope_ps
        lasts_ps += last_ps
    while lasts_ps - last_ps >= time_ps:
        j, lasts_ps, last_ps = j - 1, lasts_ps - last_ps, last_ps - slope_ps
    return j, lasts_ps
