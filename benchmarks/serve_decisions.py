"""The decisions of a real server's engine beside the simulation's: recorded admissions and moments in, batches out.

A log of `simbatch serve --steps` says when each request was taken in and when each step was scheduled, launched, ended
and taken in. The simulation's engine is given these moments, and nothing of what was in the batches; its loop, its
scheduler and its KV cache must come to the same batches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import simpy

from simbatch.policies.vllm import VLLM
from simbatch.profiler.fit.streams.runs import engine_of
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.host import HostTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.door import Inbox
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host, Step
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request

Line = dict[str, Any]
PROFILE = "h100-llama-3.1-8b-bf16"
MOMENTS = ("s0", "s1", "x0", "x1", "m0", "m1", "d0", "d1", "u0", "u1")


class Differences(NamedTuple):
    """How many steps are alike, of how many, and the first that is not."""

    num_equal: int
    num_steps: int
    first: str


class Moments:
    """Of each step, in ps: its schedule(), its end, and when the engine's thread went on after launch and update."""

    def __init__(self, steps: list[Line]) -> None:
        self.schedule_ps = [_ps(step["s0"]) for step in steps]
        self.end_ps = [_ps(step["d1"]) for step in steps]
        updates = [(_ps(step["u0"]), _ps(step["u1"])) for step in steps]
        begins = sorted(self.schedule_ps)
        self.after_launch_ps = [self._next(begins, _ps(step["m1"]), updates) for step in steps]
        self.after_update_ps = [self._next(begins, end, updates) for _, end in updates]

    @staticmethod
    def _next(schedules: list[int], at_ps: int, updates: list[tuple[int, int]]) -> int:
        """The next schedule(), unless an update comes before it: then `at_ps`."""
        k = bisect_left(schedules, at_ps)
        schedule_ps = schedules[k] if k < len(schedules) else FAR - 1
        j = bisect_left(updates, (at_ps, 0))
        return at_ps if j < len(updates) and updates[j][0] < schedule_ps else min(schedule_ps, FAR - 1)


class RecordedAdds:
    """The requests, each at the schedule() before which it was taken in."""

    is_limited = False

    def __init__(self, adds: list[Line], moments: Moments, max_model_len: int) -> None:
        self._pending = list[Request]()
        schedules = sorted(moments.schedule_ps)
        for i, add in enumerate(sorted(adds, key=lambda line: line["t"])):
            k = bisect_left(schedules, _ps(add["t1"]))
            if k < len(schedules):
                outputs = min(add["max_tokens"], max_model_len - add["n"])
                self._pending.append(Request(i, add["add"], schedules[k], add["n"], outputs, 0))

    @property
    def next_ps(self) -> int:
        """When the next one comes."""
        return self._pending[0].arrival_ps if self._pending else FAR

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over whoever has come."""
        while self.next_ps <= now_ps:
            add(self._pending.pop(0), now_ps)
        return now_ps


class RecordedHost(Host):
    """Updates that last as recorded; admissions are in the moments already."""

    def __init__(self, moments: Moments) -> None:
        super().__init__(HostTimes(), 0)
        self.moments, self.num_updates = moments, 0
        self.now_ps: Callable[[], int] = int

    def update_ps(self, num_requests: int) -> int:
        """What is left until the thread's next recorded moment."""
        k, self.num_updates = self.num_updates, self.num_updates + 1
        return max(0, self.moments.after_update_ps[k] - max(self.now_ps(), self.moments.end_ps[k]))


class RecordedReplica(Replica):
    """Launches and ends as recorded."""

    num_launches = 0

    def launch(self, num_requests: int, num_prefills: int, num_tokens: int, work_ps: int) -> tuple[int, int, int]:
        """When the launch has returned, the device begins, and it is done, as recorded; never, behind its end."""
        k, self.num_launches = self.num_launches, self.num_launches + 1
        moments = cast("RecordedHost", self.host).moments
        if k >= len(moments.end_ps):
            return FAR - 2, FAR - 2, FAR - 2
        self.device.free_ps = moments.end_ps[k]
        return max(self.now_ps, moments.after_launch_ps[k]), self.now_ps, moments.end_ps[k]


class Lines(Listener):
    """Says what each step is, as the log does."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.lines: list[Line] = []

    def planned(self, step: Step) -> None:
        """Note a batch."""
        if not step.batch.entries:
            return
        assert self.replica is not None
        entries = [[e.request.request_id, e.num_tokens, e.num_computed_tokens] for e in step.batch.entries]
        preempted = sorted(request.request_id for request in step.batch.preempted)
        running, waiting = len(self.replica.scheduler.running), self.replica.num_waiting
        line = {"batch": sorted(entries), "preempted": preempted, "run": running, "wait": waiting}
        self.lines.append(line | {"free": self.replica.kv.free})


class NoColumns(Recorder):
    """Keeps nothing: the lines are the record."""

    def left(self, request: Request) -> None:
        """Not needed."""

    def finished(self, request: Request) -> None:
        """Not needed."""

    def rejected(self, request: Request, reason: str) -> None:
        """Not needed."""


def differences(log: list[Line], engine: dict[str, int]) -> Differences:
    """Replay a log's admissions and moments, and compare the batches; `engine` are the server's settings."""
    recorded = [line for line in log if "s0" in line]
    adds = [line for line in log if "add" in line]
    ours = replayed(recorded, adds, engine_of(PROFILE, engine).engine)
    keys = ("batch", "preempted", "run", "wait", "free")
    theirs = [{**line, "batch": sorted(line["batch"])} for line in recorded]
    equal = [all(a[key] == b[key] for key in keys) for a, b in zip(ours, theirs, strict=False)]
    num_steps = max(len(ours), len(theirs))
    if all(equal) and len(equal) == num_steps:
        return Differences(num_steps, num_steps, "")
    k = equal.index(False) if False in equal else len(equal)
    sides = [side[k] if k < len(side) else {} for side in (theirs, ours)]
    shown = "; ".join(
        f"{key} {sides[0].get(key)} here {sides[1].get(key)}" for key in keys if sides[0].get(key) != sides[1].get(key)
    )
    return Differences(sum(equal), num_steps, f"step {k}: {shown}"[:600])


def replayed(recorded: list[Line], adds: list[Line], config: EngineConfig) -> list[Line]:
    """The simulation's batches."""
    origin_s = min(line["t"] for line in adds)
    shifted = [{**line, **{key: line[key] - origin_s for key in MOMENTS}} for line in recorded]
    moments, lines = Moments(shifted), Lines()
    inbox = RecordedAdds(
        [{**add, "t": add["t"] - origin_s, "t1": add["t1"] - origin_s} for add in adds], moments, config.max_model_len
    )
    host, env = RecordedHost(moments), simpy.Environment(0)
    recorder = NoColumns(is_timed=True)
    cost = LinearCost(1, 0, 0, 0)
    lines.replica = replica = RecordedReplica(
        env, config, cost, VLLM(), cast("Inbox", inbox), recorder, lambda *_: None, listener=lines, host=host
    )
    host.now_ps = lambda: replica.now_ps
    env.process(Stepwise(replica, reports_ends=False).run())
    env.run()
    return lines.lines


def _ps(time_s: float) -> int:
    return round(time_s * 1e6) * (PS_PER_S // 10**6)
