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
from typing import TYPE_CHECKING

import simpy

from simbatch.sim.engine.lane import Lane
from simbatch.sim.engine.replica import Process
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import FAR, Traffic
from simbatch.sim.scheduler.request import Request

if TYPE_CHECKING:
    from simbatch.sim.engine.gateway import Gateway
    from simbatch.sim.engine.published import Published
    from simbatch.sim.engine.replica import Replica


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
    ) -> None:
        self.env, self.traffic, self.gateway, self.published = env, traffic, gateway, published
        self.lanes, self.replicas = lanes, replicas
        self.sent_to = sent_to  # of each request, the replica
        self.now_ps = 0
        self._processes: list[Process | None] = [loop.run() for loop in loops]
        # heap of (when its horizon must be there before it has anything to do, which replica); some are out of date
        self._due: list[tuple[int, int]] = [(0, lane.index) for lane in lanes]

    def run(self) -> Process:
        """The SimPy process."""
        traffic, published = self.traffic, self.published
        while True:
            next_ps = traffic.next_ps
            first_ps = self._first_ps()
            # in a closed loop it is not known yet how many rounds of asking there are until then
            is_open = not traffic.is_limited or traffic.is_over
            ask_ps = published.due_ps(next_ps if is_open else min(next_ps, first_ps))
            if first_ps < FAR and first_ps <= min(next_ps, ask_ps):
                self._go_on(min(next_ps, ask_ps if is_open else published.next_ps), is_open)
            elif ask_ps < FAR:
                self.now_ps = ask_ps
                published.ask(ask_ps)
            elif next_ps < FAR:
                traffic.take_one(self._send)
            else:
                break
        for lane in self.lanes:
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
        at_ps = self.now_ps = request.arrival_ps
        index = self.gateway.choose(request, at_ps)
        self.sent_to[request.index] = index
        lane = self.lanes[index]
        lane.send(request, at_ps)
        self._note(lane)

    def _go_on(self, next_ps: int, is_open: bool) -> None:
        """Let the replica go on that is due first, as far as is known who comes."""
        due_ps, index = heapq.heappop(self._due)
        lane = self.lanes[index]
        if not is_open:  # another one may let a request be sent when it is due
            lane.wake_ps = FAR  # it is no other
            next_ps = min(next_ps, self._first_ps() - 1)
        lane.horizon_ps = max(due_ps, next_ps)
        self._resume(lane)

    def _first_ps(self) -> int:
        """When the first of them is due."""
        due, lanes = self._due, self.lanes
        while due and due[0][0] != lanes[due[0][1]].wake_ps:
            heapq.heappop(due)
        return due[0][0] if due else FAR

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
