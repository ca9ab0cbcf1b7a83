"""Several replicas behind a gateway, in one SimPy environment.

The cluster goes from one request to the next. Before a request is sent, every replica has gone as far as anything of
it may show by then: it has planned all steps that are scheduled before, except spans of decode-only steps that last
longer, of which nothing shows. So the router sees what a gateway would see at that moment, and a span is cut when a
request really comes to its replica.

Where the end of a request lets another one be sent (a limit on concurrency), a replica goes no further than the others
can have let one be sent.
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import simpy

from simbatch.sim.engine.gateway import Gateway
from simbatch.sim.engine.replica import Process, Replica
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import FAR, Lane, Traffic
from simbatch.sim.scheduler.names import num_known
from simbatch.sim.scheduler.request import Request


class Switch(NamedTuple):
    """A replica goes down, or up again; one that drains is only sent nobody."""

    at_ps: int
    is_up: bool
    replica: int
    drains: bool = False


class Cluster:
    """Lets the replicas go on, and sends each request where the gateway says."""

    def __init__(
        self,
        env: simpy.Environment,
        traffic: Traffic,
        gateway: Gateway,
        published: Published,
        lanes: list[Lane],
        replicas: list[Replica],
        loops: list[Stepwise],
        sent_to: array[int],
        events: list[Switch],
    ) -> None:
        self.env, self.traffic, self.gateway, self.published = env, traffic, gateway, published
        self.lanes, self.replicas = lanes, replicas
        self.sent_to = sent_to  # of each request, the replica
        self.events = events  # in the order of time
        self.held: list[Request] = []  # by the gateway, while every replica is down
        self.num_sent_again = self.num_lost_tokens = 0
        self.now_ps = 0
        self._processes: list[Process | None] = [loop.run() for loop in loops]
        # heap of (when its horizon must be there before it has anything to do, which replica); some are out of date
        self._due: list[tuple[int, int]] = [(0, lane.index) for lane in lanes]

    def run(self) -> Process:
        """The SimPy process."""
        traffic, published, due, lanes = self.traffic, self.published, self._due, self.lanes
        is_limited, processes = traffic.is_limited, self._processes
        is_plain = not (is_limited or self.events or published.refresh_ps)
        while True:
            next_ps = traffic.next_ps
            while due:
                first_ps, index = due[0]
                lane = lanes[index]
                if first_ps != lane.wake_ps:  # out of date
                    heapq.heappop(due)
                elif is_plain and first_ps <= next_ps and (process := processes[index]) is not None:
                    # the most frequent case, in short: `_go_on` of who is due first, up to the next arrival
                    lane.horizon_ps = next_ps
                    try:
                        next(process)
                    except StopIteration:
                        processes[index], lane.wake_ps = None, FAR
                    if lane.wake_ps < FAR:
                        heapq.heapreplace(due, (lane.wake_ps, index))
                else:
                    break
            first_ps = due[0][0] if due else FAR
            # in a closed loop it is not known yet when the next request comes
            is_open = not is_limited or traffic.is_over
            until_ps, ask_ps, event_ps = next_ps, FAR, FAR
            if self.events or published.refresh_ps:
                event_ps = self.events[0].at_ps if self.events else FAR
                ask_ps = published.due_ps(min(next_ps, event_ps) if is_open else min(next_ps, event_ps, first_ps))
                until_ps = min(next_ps, ask_ps, event_ps)
            if due and first_ps <= until_ps:
                self._go_on(until_ps, is_open)
            elif event_ps < FAR and event_ps <= until_ps and (next_ps < FAR or due or self.held):
                self._change(self.events.pop(0))
            elif ask_ps < FAR:
                self.now_ps = ask_ps
                published.ask(ask_ps)
            elif next_ps < FAR:
                traffic.take_one(self._send)
            else:
                break
        for lane in lanes:
            if not lane.is_down:
                lane.horizon_ps = FAR
                self._resume(lane)
        end_ps = max(replica.now_ps for replica in self.replicas)
        yield self.env.timeout(end_ps - self.env.now)

    def bring_up(self, index: int) -> None:
        """Let a replica come to this moment, though nothing shows of it: somebody looks inside."""
        lane = self.lanes[index]
        if lane.is_waiting:
            lane.horizon_ps, lane.is_forced = self.now_ps, True
            self._resume(lane)
            lane.is_forced = False

    def _send(self, request: Request) -> None:
        """A client sends a request."""
        self.now_ps = request.arrival_ps
        self._forward(request)

    def _forward(self, request: Request) -> None:
        """The gateway sends a request to a replica, or keeps it until there is one."""
        at_ps = self.now_ps
        if not self.gateway.up:
            self.held.append(request)
            return
        index = self.gateway.choose(request, at_ps)
        self.sent_to[request.index] = index
        lane = self.lanes[index]
        lane.send(request, at_ps)
        self._note(lane)

    def _change(self, change: Switch) -> None:
        """A replica goes down, or comes up again; its requests, and those that waited for one, are sent again."""
        at_ps = self.now_ps = change.at_ps
        lane, again = self.lanes[change.replica], self.held
        self.gateway.set_up(change.replica, change.is_up)
        if change.is_up:
            self.held = []
        elif not change.drains:
            again = self._fail(lane, at_ps)
        else:
            return
        if change.is_up and lane.is_down:
            lane.is_down = False
            lane.horizon_ps = at_ps
            self._resume(lane)
        for request in again:
            self._forward(request)

    def _fail(self, lane: Lane, at_ps: int) -> list[Request]:
        """Who was there when a replica went down, as new."""
        lane.horizon_ps, lane.is_forced, lane.is_down = at_ps, True, True
        self._resume(lane)
        lane.is_forced = False
        again = []
        for request in lane.evicted:
            self.num_lost_tokens += request.num_computed_tokens
            self.gateway.left(lane.index, request, at_ps)
            again.append(request.anew(at_ps))
        lane.evicted = []
        self.num_sent_again += len(again)
        return again

    def _go_on(self, until_ps: int, is_open: bool) -> None:
        """Let the replica go on that is due first, as far as is known who comes."""
        due = self._due
        due_ps, index = heapq.heappop(due)
        lane = self.lanes[index]
        if not is_open:  # others may let a request be sent when they are due
            lane.wake_ps = FAR
            while due and due[0][0] != self.lanes[due[0][1]].wake_ps:
                heapq.heappop(due)
            event_ps = self.events[0].at_ps if self.events else FAR
            until_ps = min(until_ps, self.published.next_ps, event_ps, due[0][0] - 1 if due else FAR - 1)
        lane.horizon_ps = until_ps if until_ps > due_ps else due_ps
        self._resume(lane)

    def _resume(self, lane: Lane) -> None:
        process = self._processes[lane.index]
        if process is None:
            return
        try:
            next(process)
        except StopIteration:
            self._processes[lane.index], lane.wake_ps = None, FAR
        self._note(lane)

    def _note(self, lane: Lane) -> None:
        if lane.wake_ps < FAR:
            heapq.heappush(self._due, (lane.wake_ps, lane.index))


@dataclass
class Snapshot:
    """A replica as it was when the gateway last asked; `cached` None: nobody has looked at a cache yet."""

    state: tuple[int, int, int]
    cached: dict[int, int] | None = None


class Published:
    """The engines' own figures, as of their last schedule() before now or before the last of the rounds of asking.

    `refresh_ps` is how long a round's answers are used, 0: each is asked anew at each look (`Publisher`).
    """

    def __init__(self, refresh_ps: int) -> None:
        self.cluster: Cluster
        self.refresh_ps = refresh_ps
        self._asked_ps = 0  # when the last round was
        self._snapshots: list[Snapshot] = []
        self._wants_cached = False

    def due_ps(self, until_ps: int) -> int:
        """When the last round of asking is that somebody sees who is sent then or later; `FAR` if that has been."""
        if not self.refresh_ps or until_ps >= FAR:
            return FAR
        last_ps = until_ps // self.refresh_ps * self.refresh_ps
        return last_ps if last_ps > self._asked_ps else FAR

    @property
    def next_ps(self) -> int:
        """When the next round is."""
        return self._asked_ps + self.refresh_ps if self.refresh_ps else FAR

    def ask(self, at_ps: int) -> None:
        """Ask every engine; all of them have come to this moment."""
        self._asked_ps = at_ps
        for i in range(len(self.cluster.replicas)):
            self.cluster.bring_up(i)
        cached = [replica.kv.cached() if self._wants_cached else None for replica in self.cluster.replicas]
        self._snapshots = [Snapshot(r.shown_at(at_ps), c) for r, c in zip(self.cluster.replicas, cached, strict=True)]

    def state(self, index: int) -> tuple[int, int, int]:
        """Requests that hold a seat, requests in the engine's queue, and free KV blocks."""
        replica = self.cluster.replicas[index]
        if self.refresh_ps:
            return self._snapshots[index].state if self._snapshots else (0, 0, replica.kv.num_usable)
        self.cluster.bring_up(index)
        return replica.shown_at(self.cluster.now_ps)

    def num_cached(self, index: int, request: Request) -> int:
        """How many blocks of the prompt, from the first on, are in the prefix cache."""
        kv = self.cluster.replicas[index].kv
        if not self.refresh_ps:
            self.cluster.bring_up(index)
            return kv.num_cached(request)
        self._wants_cached = True
        known = self._snapshots[index].cached if self._snapshots else None
        if known is None:
            return 0
        return num_known(request.prompt_names(kv.block_size), lambda name: known.get(name, 0))
