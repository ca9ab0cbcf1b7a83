"""What a gateway sends to one replica of a cluster, and how much of the future the replica knows.

The replicas of a cluster go on one at a time, each as far as it is known who will come: before `horizon_ps` nobody is
sent here but who is in the line already. A replica that can do no more waits, and `wake_ps` says how far the horizon
must be before it has anything to do: until then nothing shows of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from simbatch.sim.engine.traffic import FAR, Traffic
from simbatch.sim.scheduler.request import Request


class Books(Protocol):
    """Who is told what comes back from a replica."""

    def first_token(self, index: int, request: Request, at_ps: int, /) -> None:
        """The first token of a request leaves replica `index` then."""

    def left(self, index: int, request: Request, at_ps: int, /) -> None:
        """The last one does, or the request is turned away."""


class Lane:
    """The inbox of one replica; `next_ps` is when the next request was sent that it has not taken, `FAR` for none."""

    def __init__(self, index: int, traffic: Traffic, books: Books, max_model_len: int, network_ps: int) -> None:
        self.index = index
        self.next_ps = FAR
        self.horizon_ps = 0
        self.wake_ps = 0
        self.is_waiting = False  # for somebody to come, or for the end of a span; not for the horizon alone
        self.is_forced = False  # the replica is to come as far as the horizon, though nothing shows of it
        self.is_down = False
        self.num_truncated = 0
        self.on_sent: Callable[[], None] | None = None
        self._traffic, self._books, self._max_model_len = traffic, books, max_model_len
        self._network_ps = network_ps  # from the server to the client
        self._line: deque[tuple[int, Request]] = deque()

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent, here or elsewhere."""
        return self._traffic.is_limited

    def send(self, request: Request, at_ps: int) -> None:
        """A request is sent here; the replica sees it at the first step that is scheduled then or later."""
        room = self._max_model_len - request.num_prompt_tokens
        if request.max_tokens > room:
            request.max_tokens = room
            self.num_truncated += room > 0
        self._line.append((at_ps, request))
        if at_ps < self.next_ps:
            self.next_ps = at_ps
        if self.on_sent is not None:
            self.on_sent()
        if self.is_waiting:
            self.wake_ps = at_ps + 1

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over every request sent by `now_ps`; returns the clock after their admission, which `add` prices."""
        if now_ps >= FAR:
            raise OverflowError("the clock has run past what its columns hold")
        while self.next_ps <= now_ps:
            now_ps += add(self._pop(), now_ps)
        return now_ps

    def take_one(self, add: Callable[[Request], None]) -> None:
        """Hand over the next request."""
        add(self._pop())

    def first_token(self, request: Request, at_ps: int) -> None:
        """A request's first token leaves the server."""
        self._books.first_token(self.index, request, at_ps)

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; in a closed loop another one may come for it."""
        self._books.left(self.index, request, at_ps)
        traffic = self._traffic
        traffic.left(request, at_ps + self._network_ps)
        if traffic.next_ps < self.horizon_ps:
            self.horizon_ps = traffic.next_ps

    def empty(self) -> list[Request]:
        """Take out who is still in the line."""
        requests = [request for _, request in self._line]
        self._line.clear()
        self.next_ps = FAR
        return requests

    def _pop(self) -> Request:
        _, request = self._line.popleft()
        self.next_ps = self._line[0][0] if self._line else FAR
        return request
