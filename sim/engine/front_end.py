"""The server's own processes: what they do to a request on its way in, and to its tokens on their way out.

In: one of `api_server_count` servers, the first that is free, works `per_request + per_prompt_token * n` on a request,
one after the other, so that a cohort which comes at once passes in a line. The same threads send the streams: with the
share `busy` of their time taken by chunks a request takes 1 / (1 - busy) times as long (processor sharing). `busy` is
what the newest step's chunks took of the time between two steps when the request was sent.

Out: the chunks of a step leave at V = max(U, V before) + per_chunk * chunks / servers, where U is when its tokens
exist; what the network adds is the same for all and no matter of this module.

Queue limits (vLLM's `max_num_queued_reqs`, `max_num_queued_tokens`, v1/engine/async_llm.py `check_admission`) are
checked when a request is sent: requests in the server, and whole prompts of those that have no token yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simbatch.sim.cost.host import FrontEndTimes
from simbatch.sim.engine.lane import Lane
from simbatch.sim.engine.traffic import FAR, Traffic
from simbatch.sim.scheduler.request import Request

BUSY_BITS = 20
MAX_BUSY = int(0.95 * (1 << BUSY_BITS))  # however many streams there are, requests get in


class FrontEnd:
    """What stands between the clients and one engine; `next_ps` is when it has something to do next."""

    def __init__(
        self,
        times: FrontEndTimes,
        num_servers: int,
        traffic: Traffic | Lane,
        refuse: Callable[[Request, str], None],
        max_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.times = times
        self.late_ps = 0  # tokens that were ready waited so long for those of the step before
        self.sent_ps = 0  # V: when the newest chunks have left
        self._traffic = traffic
        self._refuse = refuse
        self._num_servers = num_servers
        self._free_ps = [0] * num_servers  # when each server has let its last request go
        self._ready: list[tuple[int, int, Request]] = []  # on their way: (when they reach the engine, number, request)
        self._newest = self._before = (0, 0, 0)  # the two newest updates: U, the time since the one before, work
        self._limits = (max_requests, max_tokens)
        self._has_limits = max_requests is not None or max_tokens is not None
        self._num_requests = self._num_tokens = 0  # in the server; prompts without a first token
        self._leaving: list[tuple[int, int, int]] = []  # heap of (when, requests, prompt tokens) to be taken off then
        self.next_ps = traffic.next_ps

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""
        return self._traffic.is_limited

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over every request that has come through by `now_ps`; returns the clock after their admission."""
        if now_ps >= FAR:
            raise OverflowError("the clock has run past what its columns hold")
        while self.next_ps <= now_ps:
            self.look(now_ps)
            if self._ready and self._ready[0][0] <= now_ps:
                now_ps += add(heapq.heappop(self._ready)[2], now_ps)
            self.plan()
        return now_ps

    def send(self, updated_ps: int, num_chunks: int) -> int:
        """Tokens exist; returns when the last of them has left."""
        work_ps = self.work_ps(num_chunks)
        self._before, self._newest = self._newest, (updated_ps, updated_ps - self._newest[0], work_ps)
        begin_ps = self.sent_ps
        if begin_ps > updated_ps:
            self.late_ps += begin_ps - updated_ps
        else:
            begin_ps = updated_ps
        self.sent_ps = begin_ps + work_ps
        return self.sent_ps

    def work_ps(self, num_chunks: int) -> int:
        """How long it sends so many chunks."""
        return self.times.per_chunk_ps * num_chunks // self._num_servers

    def send_alike(self, last_ps: int, gap_ps: int, gap_before_ps: int, num_steps: int, num_chunks: int) -> None:
        """The same for steps with which it keeps up: when the last one's tokens exist, its gap and the one before."""
        if num_steps == 1:
            self.send(last_ps, num_chunks)
            return
        work_ps = self.work_ps(num_chunks)
        self._before = (last_ps - gap_ps, gap_before_ps, work_ps)
        self._newest = (last_ps, gap_ps, work_ps)
        self.sent_ps = last_ps + work_ps

    def first_token(self, request: Request, sent_ps: int) -> None:
        """A request's prompt counts no longer in the queue."""
        if self._has_limits:
            heapq.heappush(self._leaving, (sent_ps, 0, request.num_prompt_tokens))

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the system: its client has all tokens, or has been turned away."""
        if self._has_limits:
            num_tokens = request.num_prompt_tokens if request.first_token_ps < 0 else 0
            heapq.heappush(self._leaving, (at_ps, 1, num_tokens))
        self._traffic.left(request, at_ps)
        self.plan()

    def look(self, now_ps: int) -> None:
        """Begin with every request that was sent by `now_ps`."""
        traffic = self._traffic
        while traffic.next_ps <= now_ps:
            traffic.take_one(self._begin)
        self.plan()

    def _begin(self, request: Request) -> None:
        at_ps = max(request.arrival_ps, request.sent_again_ps)
        if self._has_limits and (reason := self._over_limit(at_ps)) is not None:
            self._refuse(request, reason)
            self._traffic.left(request, at_ps)
            return
        self._num_requests += 1
        self._num_tokens += request.num_prompt_tokens
        times = self.times
        free_ps = heapq.heappop(self._free_ps)
        work_ps = times.per_request_ps + times.per_prompt_token_ps * request.num_prompt_tokens
        idle_share = (1 << BUSY_BITS) - self._busy(at_ps)
        through_ps = max(free_ps, at_ps) + (work_ps << BUSY_BITS) // idle_share
        heapq.heappush(self._free_ps, through_ps)
        heapq.heappush(self._ready, (through_ps, request.index, request))

    def _busy(self, at_ps: int) -> int:
        """The share of a thread's time that the streams take, in 2**-20."""
        updated_ps, gap_ps, work_ps = self._newest if self._newest[0] <= at_ps else self._before
        gap_ps = max(gap_ps, at_ps - updated_ps)
        return min((work_ps << BUSY_BITS) // gap_ps, MAX_BUSY) if gap_ps > 0 else 0

    def _over_limit(self, at_ps: int) -> str | None:
        leaving = self._leaving
        while leaving and leaving[0][0] <= at_ps:
            _, num_requests, num_tokens = heapq.heappop(leaving)
            self._num_requests -= num_requests
            self._num_tokens -= num_tokens
        max_requests, max_tokens = self._limits
        if max_requests is not None and self._num_requests >= max_requests:
            return f"max_num_queued_reqs: {self._num_requests} requests in the server, {max_requests} allowed"
        if max_tokens is not None and self._num_tokens >= max_tokens:
            return f"max_num_queued_tokens: {self._num_tokens} prompt tokens in prefill, {max_tokens} allowed"
        return None

    def empty(self) -> list[Request]:
        """Let go of all requests on their way, as a server that ends."""
        requests = [request for _, _, request in self._ready]
        self._ready.clear()
        self._leaving.clear()
        self._num_requests = self._num_tokens = 0
        self._free_ps = [0] * self._num_servers
        self.plan()
        return requests

    def plan(self) -> None:
        """Look when there is something to do next."""
        sent_ps = self._traffic.next_ps
        self.next_ps = min(sent_ps, self._ready[0][0]) if self._ready else sent_ps
