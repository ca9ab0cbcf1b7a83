"""The queue of requests that wait for a seat (vLLM v1/core/sched/request_queue.py)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from simbatch.sim.engine.request import Request


class WaitingQueue(Protocol):
    """Where requests stand until they are admitted, and again after a preemption."""

    def add(self, request: Request) -> None:
        """A request arrives."""

    def put_back(self, request: Request) -> None:
        """A preempted request returns."""

    def head(self) -> Request:
        """Who is admitted next."""

    def pop(self) -> Request:
        """Take the head out."""

    def remove(self, request: Request) -> None:
        """Take out a request that ended while it waited."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class FcfsQueue:
    """First come, first served; a preempted request goes to the front."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self.add = self._requests.append
        self.put_back = self._requests.appendleft
        self.pop = self._requests.popleft
        self.remove = self._requests.remove

    def head(self) -> Request:
        """Who is admitted next."""
        return self._requests[0]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


class SortedQueue:
    """Smallest key first; the key is asked for at arrival and after a preemption."""

    def __init__(self, key: Callable[[Request], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, int, Request]] = []

    def add(self, request: Request) -> None:
        """A request arrives."""
        request.order_key = self._key(request)
        heapq.heappush(self._heap, (request.order_key, request.index, request))

    put_back = add

    def head(self) -> Request:
        """Who is admitted next."""
        return self._heap[0][2]

    def pop(self) -> Request:
        """Take the head out."""
        return heapq.heappop(self._heap)[2]

    def remove(self, request: Request) -> None:
        """Take out a request that ended while it waited."""
        self._heap = [entry for entry in self._heap if entry[2] is not request]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2]))
