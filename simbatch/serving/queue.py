"""vLLM's queue of waiting requests in a policy's order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue

from simbatch.serving.guide import Guide


class PolicyQueue(RequestQueue):  # type: ignore[misc]
    """The simulator's queue, in the form that vLLM's scheduler works with."""

    def __init__(self, guide: Guide) -> None:
        self._queue: Any = guide.decisions.new_queue()  # of requests that know vLLM's own
        self._served = guide.served

    def add_request(self, request: Any) -> None:
        """A request arrives."""
        self._queue.add(self._served(request))

    def prepend_request(self, request: Any) -> None:
        """A request returns after a preemption."""
        self._queue.put_back(self._served(request))

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Requests return that could not be admitted yet, for a reason of vLLM's own (a grammar not compiled)."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:
        """Who is admitted next."""
        return self._queue.head.inside

    def pop_request(self) -> Any:
        """Take the head out."""
        return self._queue.take().inside

    def remove_request(self, request: Any) -> None:
        """Take out a request that ended while it waited."""
        self._queue.drop(self._served(request))

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take out those of `requests` that are here."""
        waiting = set(self._queue.requests())
        for request in filter(waiting.__contains__, map(self._served, requests)):
            self._queue.drop(request)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Any]:
        return (request.inside for request in self._queue.requests())
