"""The queue of requests that wait for a seat (vLLM v1/core/sched/request_queue.py)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

from simbatch.sim.scheduler.request import Request


class FcfsQueue(deque[Request]):
    """First come, first served; a preempted request goes to the front."""

    add = deque.append
    put_back = deque.appendleft
    take = deque.popleft
    drop = deque.remove

    def requests(self) -> list[Request]:
        """All who wait, the head first."""
        return list(self)

    @property
    def head(self) -> Request:
        """Who is admitted next."""
        return self[0]


class SortedQueue(list[tuple[Any, int, Request]]):
    """A heap: smallest key first, ties by arrival; the key is asked for at arrival and after a preemption."""

    def __init__(self, key: Callable[[Request], Any]) -> None:
        super().__init__()
        self._key = key

    def add(self, request: Request) -> None:
        """A request arrives, or returns after a preemption."""
        heapq.heappush(self, (self._key(request), request.index, request))

    put_back = add

    def requests(self) -> list[Request]:
        """All who wait, the head first."""
        return [entry[2] for entry in sorted(self, key=lambda entry: entry[:2])]

    @property
    def head(self) -> Request:
        """Who is admitted next."""
        return self[0][2]

    def take(self) -> Request:
        """Take the head out."""
        return heapq.heappop(self)[2]

    def drop(self, request: Request) -> None:
        """Take out a request that ended while it waited."""
        self[:] = [entry for entry in self if entry[2] is not request]
        heapq.heapify(self)


WaitingQueue = FcfsQueue | SortedQueue
