"""One engine on one GPU: a door, a scheduler with its KV cache, a host, a device, and a log of what happened.

A replica is advanced by stepping (`stepwise`, vLLM's own loops) or by leaping (`leap`, over steps that nothing can
change); both use what is here: taking requests in, launching a batch, taking its tokens in, letting requests go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

import simpy

from simbatch.sim.cost.host import HostDraws, HostTimes, NoiseDraws
from simbatch.sim.cost.model import CostModel, Sums
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.door import Door, Inbox, ShownEngine
from simbatch.sim.engine.front_end import FrontEnd
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.record import pack_step, pack_token
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.resources import Device, Host, Step
from simbatch.sim.engine.traffic import FAR, Feed, Lane
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.decisions import Decisions
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.planned import PlannedScheduler
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import Scheduler
from simbatch.sim.scheduler.views import PolicyEngine

# of SimPy events; in a cluster, which does without them, of None: until more is known of who comes (`Lane`)
Process = Generator[Any, Any, None]


class Replica(ShownEngine):
    """The parts of one engine, and its clock: `now_ps` is where the engine's thread is."""

    def __init__(
        self,
        env: simpy.Environment,
        config: EngineConfig,
        cost: CostModel,
        policy: Policy,
        inbox: Inbox,
        recorder: Recorder,
        left: Callable[[Request, int], None],
        *,
        noise: NoiseDraws | None = None,
        host_noise: HostDraws | None = None,
        listener: Listener | None = None,
        host: Host | None = None,
        lane: Lane | None = None,
    ) -> None:
        self.env = env
        self.config = config
        self.cost = cost
        self.inbox = inbox
        self.feed = inbox if isinstance(inbox, Feed) else None  # the same, where compiled code knows its class
        self.front_end = inbox if isinstance(inbox, FrontEnd) else None
        self.lane = lane  # in a cluster: what is sent here, and until when all of it is known
        self.recorder = recorder
        self._write_segment, self._write_tokens = recorder.segments.extend, recorder.tokens.extend
        self.listener = listener
        self.decisions = Decisions(config, policy)
        self._listens: bool = self.decisions.listens
        self.kv = KVCache(config)
        kind = PlannedScheduler if self.decisions.plans else Scheduler
        self.scheduler = kind(config, self.kv, self.decisions)  # declared above: mypyc would hold it twice
        self.scheduler.on_shed = self._shed
        if listener is not None:
            self.scheduler.on_preempt = listener.preempted
        self.host = host or Host(config.host or HostTimes(), config.max_capture_size, host_noise)
        # whether a step has times on the host or at the front end, so that its tokens come after the device's end
        self.is_timed: bool = recorder.is_timed
        self.door = Door(self.scheduler, recorder, left, listener, self.host)
        self.count_waiting = self.scheduler.waiting.count if self.door.backlog is None else self._count_with_backlog
        self.device = Device(cost, noise)
        self.group = DecodeGroup(config.block_size, cost.windows.size if cost.windows is not None else 0)
        self.now_ps = 0
        self.number = -1  # of the newest step
        self.sent_ps = 0  # when the newest tokens left the front end, if anything has times
        self._left = left
        self._ended: list[Request] = []  # members of a static batch that wait for its longest
        # what it publishes of its last schedule(): running and waiting requests, free blocks; when nobody was left
        self.shown_running, self.shown_waiting, self.shown_free = 0, 0, self.kv.free
        self.idle_ps = NEVER
        self.has_unreported = False  # requests have ended since the last schedule(); the workers do not know yet
        self.decisions.start(PolicyEngine(config, self))

    @property
    def has_work(self) -> bool:
        """Whether any request is in the engine."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.door.backlog)

    def unfinished(self) -> Iterator[Request]:
        """Requests that are still in the engine."""
        backlog = self.door.backlog.requests() if self.door.backlog else ()
        return chain(self.scheduler.running, self.scheduler.waiting.requests(), backlog, self._ended)

    def _count_with_backlog(self) -> int:
        return len(self.scheduler.waiting) + len(self.door.backlog or ())

    def wait_until(self, time_ps: int) -> Process:
        """Let the clock run; it never goes back.

        A replica that is alone in its environment looks ahead instead: nothing else can happen meanwhile.
        """
        if time_ps > self.now_ps:
            if self.env.peek() < math.inf:
                yield self.env.timeout(time_ps - self.env.now)
            self.now_ps = time_ps

    def take_in(self) -> Process:
        """Take in every request that has come, each for its price on the host; others may come meanwhile."""
        lane = self.lane
        while True:
            if lane is not None and lane.horizon_ps <= self.now_ps:
                yield from self.until_known(lane)
                if lane.is_down:
                    return
            if self.inbox.next_ps > self.now_ps:
                break
            yield from self.wait_until(self.admit())
        if self.door.backlog:
            self.door.form_batch(self.now_ps)

    def until_known(self, lane: Lane) -> Process:
        """Wait until everybody is known who comes by now."""
        while lane.horizon_ps <= self.now_ps and not lane.is_down:
            lane.wake_ps, lane.is_waiting = self.now_ps + 1, False
            yield None

    def until_sent(self, wake_ps: int) -> Process:
        """Let the clock run to the next arrival, `wake_ps` at the latest; not at all where there is neither."""
        lane, inbox = self.lane, self.inbox
        if lane is not None:
            while (next_ps := min(inbox.next_ps, wake_ps)) > lane.horizon_ps and not lane.is_down:
                lane.wake_ps, lane.is_waiting = next_ps, True
                yield None
            if lane.is_down:
                return
        next_ps = min(inbox.next_ps, wake_ps)
        if next_ps < FAR:
            yield from self.wait_until(next_ps)

    def cut_ps(self) -> int:
        """When somebody comes, or may come: nothing is known of the time after it."""
        next_ps, lane = self.inbox.next_ps if self.feed is None else self.feed.next_ps, self.lane
        return next_ps if lane is None or next_ps < lane.horizon_ps else lane.horizon_ps

    @property
    def is_over(self) -> bool:
        """Whether nobody will come any more."""
        return self.inbox.next_ps >= FAR and (self.lane is None or self.lane.horizon_ps >= FAR)

    def admit(self) -> int:
        """Take in who has come by now; returns the clock after that."""
        return self.inbox.take(self.now_ps, self.door.add)

    def launch(self, num_requests: int, num_prefills: int, num_tokens: int, work_ps: int) -> tuple[int, int, int]:
        """Give the device a batch now: when the launch has returned, when the device begins, and when it is done.

        L = S + host,  D = max(max(D of the batch before, S + lag) + device, L + tail); the host is busy until L.
        """
        host, device, schedule_ps = self.host, self.device, self.now_ps
        launched_ps = schedule_ps + host.launch_ps(num_requests, num_prefills, num_tokens)
        start_ps = schedule_ps + host.lag_ps
        if start_ps < device.free_ps:
            start_ps = device.free_ps
        end_ps, tail_ps = start_ps + work_ps, launched_ps + host.tail_ps
        device.free_ps = end_ps = end_ps if end_ps > tail_ps else tail_ps
        return launched_ps, start_ps, end_ps

    def send(self, updated_ps: int, num_chunks: int, num_decodes: int, num_regular: int) -> int:
        """Tokens of a step exist: they leave through the front end; returns when the last one has left (V)."""
        if not self.is_timed:
            return updated_ps
        before_ps = self.sent_ps
        self.sent_ps = updated_ps if self.front_end is None else self.front_end.send(updated_ps, num_chunks)
        self._write_tokens(pack_token(before_ps, 1, self.sent_ps - before_ps, num_decodes, num_regular))
        return self.sent_ps

    def note_tokens(self, requests: list[Request], updated_ps: int, sent_ps: int) -> None:
        """These get a token that is their first, or that does not come one step after the one before."""
        for request in requests:
            if request.first_token_ps >= 0:
                self.recorder.gaps.append(sent_ps - request.last_token_ps)
            else:
                request.first_token_ps = updated_ps
                if self.is_timed:
                    request.first_sent_ps = sent_ps
                    if self.front_end is not None:
                        self.front_end.first_token(request, sent_ps)
            request.last_token_ps = sent_ps

    def release(self, finished: list[Request], updated_ps: int, sent_ps: int) -> None:
        """Let go of requests whose last token exists at `updated_ps` and leaves the front end at `sent_ps`."""
        self.has_unreported = True
        self.door.held_until_ps = 0
        for request in finished:
            if self.kv.shares:
                self.kv.register(request, request.num_computed_tokens)
            self.scheduler.end(request)
        if self.door.backlog is not None:
            self._ended += finished
            if self.scheduler.running or self.scheduler.waiting:
                return
            finished, self._ended = self._ended, []
        for request in finished:
            request.finish_ps = updated_ps
            request.finish_sent_ps = sent_ps
            self.recorder.finished(request)
            if self._listens:
                self.decisions.finished(request)
            self._left(request, sent_ps)
        if self.lane is not None and not self.has_work:
            self.idle_ps = updated_ps

    def evict(self, lane: Lane) -> None:
        """The engine ends: whoever is here, or on the way, is handed back, and what has been computed is lost."""
        requests = [*self.scheduler.evict(), *self._ended, *lane.empty()]
        if self.front_end is not None:
            requests += self.front_end.empty()
        if (backlog := self.door.backlog) is not None:
            for request in backlog.requests():
                requests.append(request)
                backlog.drop(request)
        self._ended, self.door.held_until_ps = [], 0
        lane.evicted = sorted(requests, key=lambda request: request.index)
        self.idle_ps = lane.horizon_ps

    def publish(self) -> None:
        """A step has been scheduled: what a gateway is shown until the next one, or until nobody is left."""
        self.shown_running, self.shown_waiting = len(self.scheduler.running), self.count_waiting()
        self.shown_free, self.idle_ps = self.kv.free, NEVER

    def shown_at(self, at_ps: int) -> tuple[int, int, int]:
        """Running and waiting requests and free blocks, as a gateway sees them then; the replica has come to there."""
        if self.idle_ps != NEVER and self.idle_ps <= at_ps:
            return 0, 0, self.kv.num_usable
        return self.shown_running, self.shown_waiting, self.shown_free

    def close(self) -> None:
        """Let go of what points back here: a circle of compiled objects is not collected (mypyc 2.4)."""
        self.scheduler.on_shed, self.scheduler.on_preempt, self.listener = _nobody_is_told, None, None
        self.count_waiting = _nobody_waits
        del self.decisions.view

    def _shed(self, request: Request, reason: str) -> None:
        """The policy drops a request that waits."""
        self.door.turn_away(request, reason, self.now_ps)

    def log_batch(self, start_ps: int, work_ps: int, sums: Sums, num_regular: int) -> None:
        """Write a row for one step that the device has been given."""
        num_decodes, context, tokens, _, attention, num_prefills, _, _ = sums
        self._write_segment(pack_step(
            start_ps, 1, work_ps, num_decodes, num_regular, context, tokens, num_prefills, attention,
            len(self.scheduler.running), self.count_waiting(), self.kv.free,
        ))  # fmt: skip

    def log_step(self, step: Step, finished: list[Request]) -> None:
        """Write a step in full; the counts are those after its update."""
        self.recorder.step(step, finished, self.kv.free, len(self.scheduler.running), self.num_waiting)


def _nobody_waits() -> int:
    """In a run that is over."""
    return 0


def _nobody_is_told(request: Request, reason: str) -> None:
    """Of a run that is over."""
