"""The queue of requests that wait for a seat (vLLM v1/core/sched/request_queue.py)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Sized
from typing import Any, Generic, TypeVar

from simbatch.sim.scheduler.request import KnownRequest

R = TypeVar("R", bound=KnownRequest)


class FcfsQueue(Generic[R]):
    """First come, first served; a preempted request goes to the front."""

    def __init__(self) -> None:
        self._line: deque[R] = deque()
        # the line's own methods, one frame less in the engine's loops
        self.add, self.put_back = self._line.append, self._line.appendleft
        self.take, self.drop = self._line.popleft, self._line.remove
        self.count: Callable[[], int] = self._line.__len__
        self.line: Sized = self._line  # not empty while anybody waits: quicker to ask than the queue itself

    def __len__(self) -> int:
        return len(self._line)

    def requests(self) -> list[R]:
        """All who wait, the head first."""
        return list(self._line)

    @property
    def head(self) -> R:
        """Who is admitted next."""
        return self._line[0]


class SortedQueue(Generic[R]):
    """A heap: smallest key first, ties by arrival; the key is asked for at arrival and after a preemption."""

    def __init__(self, key: Callable[[R], Any]) -> None:
        self._key = key
        self._heap: list[tuple[Any, int, R]] = []  # always the same list
        self.count: Callable[[], int] = self._heap.__len__
        self.line: Sized = self._heap

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: R) -> None:
        """A request arrives."""
        heapq.heappush(self._heap, (self._key(request), request.index, request))

    def put_back(self, request: R) -> None:
        """A request returns after a preemption."""
        self.add(request)

    def requests(self) -> list[R]:
        """All who wait, the head first."""
        return [entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2])]

    @property
    def head(self) -> R:
        """Who is admitted next."""
        return self._heap[0][2]

    def take(self) -> R:
        """Take the head out."""
        return heapq.heappop(self._heap)[2]

    def drop(self, request: R) -> None:
        """Take out a request that ended while it waited."""
        self._heap[:] = [entry for entry in self._heap if entry[2] is not request]
        heapq.heapify(self._heap)


class LaneQueue(Generic[R]):
    """One line per lane, first come, first served; whose head goes next is asked afresh at every admission."""

    def __init__(self, lane: Callable[[R], Hashable], key: Callable[[R], Any]) -> None:
        self._lane_of, self._key = lane, key
        self._lanes: dict[Hashable, deque[R]] = {}
        self.line: Sized = self._lanes
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def count(self) -> int:
        """How many wait."""
        return self._num_waiting

    def add(self, request: R) -> None:
        """A request arrives."""
        self._lane(request).append(request)

    def put_back(self, request: R) -> None:
        """A request returns after a preemption."""
        self._lane(request).appendleft(request)

    def requests(self) -> list[R]:
        """All who wait, the head first, lane after lane."""
        lanes = sorted(self._lanes.values(), key=lambda lane: (self._key(lane[0]), lane[0].index))
        return [request for lane in lanes for request in lane]

    @property
    def head(self) -> R:
        """Who is admitted next."""
        return self._lanes[self._first()][0]

    def take(self) -> R:
        """Take the head out."""
        name = self._first()
        request = self._lanes[name].popleft()
        self._taken_from(name)
        return request

    def drop(self, request: R) -> None:
        """Take out a request that ended while it waited."""
        name = next(name for name, lane in self._lanes.items() if request in lane)
        self._lanes[name].remove(request)
        self._taken_from(name)

    def _first(self) -> Hashable:
        lanes = self._lanes
        if len(lanes) == 1:
            return next(iter(lanes))
        return min(lanes, key=lambda name: (self._key(lanes[name][0]), lanes[name][0].index))

    def _lane(self, request: R) -> deque[R]:
        self._num_waiting += 1
        return self._lanes.setdefault(self._lane_of(request), deque())

    def _taken_from(self, name: Hashable) -> None:
        self._num_waiting -= 1
        if not self._lanes[name]:
            del self._lanes[name]


WaitingQueue = FcfsQueue[R] | SortedQueue[R] | LaneQueue[R]
