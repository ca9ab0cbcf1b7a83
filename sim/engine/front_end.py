"""The server's own processes: what they do to a request on its way in, and to its tokens on their way out.

In: a request is `per_request + per_prompt_token * n` of work for one of `api_server_count` threads, the one that will
be through with its own first. A thread takes requests in turn, two turns each (to read it, and to send it on when
it has been made into tokens), so that a cohort which comes at once comes through together, in the second half of what
all of it takes, and not one by one from the begin.

Out: the chunks of a step leave at V = max(U, V before) + per_chunk * chunks / servers, where U is when its tokens
exist; what the network adds is the same for all and no matter of this module. The same threads send them: meanwhile
requests have a quarter of the thread, and sending takes so much longer for them. So turns are reckoned on a clock of
their own, which goes at a quarter of the speed until H = max(U, H before) + 4/3 of the work.

Queue limits (vLLM's `max_num_queued_reqs`, `max_num_queued_tokens`, v1/engine/async_llm.py `check_admission`) are
checked when a request is sent: requests in the server, and whole prompts of those that have no token yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simbatch.sim.cost.host import FrontEndTimes
from simbatch.sim.engine.traffic import FAR, Feed, Lane, Traffic
from simbatch.sim.scheduler.request import Request


class FrontEnd(Feed):
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
        # By the clock of turns: when each server is through with the turns that it has, and whose end when
        self._free_ps = [0] * num_servers
        self._turns: list[tuple[int, int, int, Request]] = []  # a heap of first turns: (end, number, server, request)
        self._last_turns: list[tuple[int, int, Request]] = []  # a heap of last turns: then they reach the engine
        self.held_ps = 0  # H: until then the newest chunks hold requests up
        self._updated_ps = 0  # U: the newest
        self._chunks_ps = 0  # what all chunks have taken of the clock by H
        self._before = (0, 0)  # both as they were before the newest, for who was sent before and is known only now
        self._turned_ps = 0  # the clock of turns, as far as it has been looked at
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
            if self._last_turns and self._last_turns[0][0] <= self._turned_ps:
                now_ps += add(heapq.heappop(self._last_turns)[2], now_ps)
            elif self._traffic.horizon_ps < now_ps:  # who comes until then must be known first
                break
            self.plan()
        return now_ps

    def send(self, updated_ps: int, num_chunks: int) -> int:
        """Tokens exist; returns when the last of them has left."""
        work_ps, begin_ps = self.work_ps(num_chunks), self.sent_ps
        if begin_ps > updated_ps:
            self.late_ps += begin_ps - updated_ps
        else:
            begin_ps = updated_ps
        self._before = (self.held_ps, self._chunks_ps)
        self._updated_ps, hold_ps = updated_ps, self.hold_ps(work_ps)
        self._chunks_ps += hold_ps // 4 * 3
        self.held_ps = hold_ps + (self.held_ps if self.held_ps > updated_ps else updated_ps)
        self.sent_ps = begin_ps + work_ps
        return self.sent_ps

    def work_ps(self, num_chunks: int) -> int:
        """How long it sends so many chunks."""
        return self.times.per_chunk_ps * num_chunks // self._num_servers

    def hold_ps(self, work_ps: int) -> int:
        """How long chunks that take so much hold requests up: a multiple of 4, so that 3/4 of it are exact."""
        return (work_ps + 2) // 3 * 4

    def send_alike(self, last_ps: int, gap_ps: int, num_steps: int, num_chunks: int) -> None:
        """Tokens of several steps exist, with which it keeps up: when the last one's do, and its gap."""
        if num_steps > 1:
            work_ps = self.work_ps(num_chunks)
            hold_ps = self.hold_ps(work_ps)
            self.sent_ps, self.held_ps = last_ps - gap_ps + work_ps, last_ps - gap_ps + hold_ps
            self._chunks_ps += (num_steps - 1) * (hold_ps // 4 * 3)
        self.send(last_ps, num_chunks)

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
        """Begin with every request that was sent by `now_ps`, and get on with all until then, or as far as is known."""
        traffic = self._traffic
        while traffic.next_ps <= now_ps:
            traffic.take_one(self._begin)
        self._turn_until(self._turns_by(now_ps if now_ps < traffic.horizon_ps else traffic.horizon_ps))
        self.plan()

    def _begin(self, request: Request) -> None:
        at_ps = max(request.arrival_ps, request.sent_again_ps)
        if self._has_limits and (reason := self._over_limit(at_ps)) is not None:
            self._refuse(request, reason)
            self._traffic.left(request, at_ps)
            return
        self._num_requests += 1
        self._num_tokens += request.num_prompt_tokens
        self._turn_until(self._turns_by(at_ps))
        server = min(range(self._num_servers), key=self._free_ps.__getitem__) if self._num_servers > 1 else 0
        heapq.heappush(self._turns, (self._turn(server, request), request.index, server, request))

    def _turn(self, server: int, request: Request) -> int:
        """Line up for a turn; returns when it ends, which nothing but chunks can change."""
        begin_ps = max(self._free_ps[server], self._turned_ps)
        self._free_ps[server] = end_ps = begin_ps + self._turn_ps(request)
        return end_ps

    def _turn_ps(self, request: Request) -> int:
        times = self.times
        return (times.per_request_ps + times.per_prompt_token_ps * request.num_prompt_tokens) // 2

    def _turn_until(self, turned_ps: int) -> None:
        """First turns that end until then are followed by last ones, behind those who have lined up."""
        turns = self._turns
        while turns and turns[0][0] <= turned_ps:
            self._turned_ps, _, server, request = heapq.heappop(turns)
            heapq.heappush(self._last_turns, (self._turn(server, request), request.index, request))
        self._turned_ps = turned_ps

    def _turns_by(self, at_ps: int) -> int:
        """The clock of turns at a moment that is not before the last update but one; it never goes back."""
        held_ps, chunks_ps = (self.held_ps, self._chunks_ps) if at_ps >= self._updated_ps else self._before
        turned_ps = at_ps - chunks_ps
        if at_ps < held_ps:
            turned_ps += 3 * (held_ps - at_ps) // 4
        return turned_ps if turned_ps > self._turned_ps else self._turned_ps

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
        requests = [turn[3] for turn in self._turns] + [turn[2] for turn in self._last_turns]
        self._turns.clear()
        self._last_turns.clear()
        self._leaving.clear()
        self._num_requests = self._num_tokens = 0
        self._free_ps = [0] * self._num_servers
        self.plan()
        return requests

    def plan(self) -> None:
        """When the next request is sent or comes through, if no more chunks are sent until then."""
        next_ps = self._traffic.next_ps
        if self._last_turns:
            next_ps = min(next_ps, self._moment(self._last_turns[0][0]))
        if self._turns and (self._num_servers > 1 or not self._last_turns):
            end_ps, _, server, request = self._turns[0]
            if self._num_servers == 1:
                end_ps = self._free_ps[server] + self._turn_ps(request)
            next_ps = min(next_ps, self._moment(end_ps))
        self.next_ps = next_ps

    def _moment(self, turned_ps: int) -> int:
        """When the clock of turns shows that; the newest update where it did so before."""
        at_ps = turned_ps + self._chunks_ps
        if at_ps < self.held_ps:
            at_ps = self.held_ps - 4 * (self.held_ps - at_ps)
        return at_ps if at_ps > self._updated_ps else self._updated_ps
