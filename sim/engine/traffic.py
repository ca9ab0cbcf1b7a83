"""Requests in the order of their sending: read in chunks, handed over one by one, held back by a concurrency limit.

In a cluster each replica has a lane of its own, and knows only so much of the future (`Lane`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.scheduler.names import PrefixKeys
from simbatch.sim.scheduler.request import Request

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestChunk, RequestSource


FAR: Final = 1 << 63  # ps: later than any column can say
PROGRESS_INTERVAL: Final = 500  # requests


class Feed:
    """What hands requests to an engine; `next_ps` is when there is something to take next."""

    next_ps: int

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""
        raise NotImplementedError

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over what has come by `now_ps`; `add` prices an admission (ps), the answer is the clock after them."""
        if now_ps >= FAR:
            raise OverflowError("the clock has run past what its columns hold")
        while self.next_ps <= now_ps:
            now_ps += add(self._pop(), now_ps)
        return now_ps

    def take_one(self, add: Callable[[Request], None]) -> None:
        """Hand over the next request."""
        add(self._pop())

    def _pop(self) -> Request:
        """Take the next request out, and look who is next then."""
        raise NotImplementedError


class Traffic(Feed):
    """The stream of requests; `next_ps` is when the next one is sent, `FAR` when there is none to come now.

    With a limit on concurrency a request is sent at its own time or when a slot is free, whichever is later
    (`vllm bench serve --max-concurrency`); a closed loop's slot is free a think time after its request has ended.
    """

    def __init__(
        self,
        source: RequestSource,
        recorder: Recorder,
        max_model_len: int,
        keys: PrefixKeys | None,
        progress: Callable[[int], None] | None = None,
        network_ps: int = 0,
    ) -> None:
        self._source, self._chunks = source, source.chunks()
        self._recorder = recorder
        self._max_model_len = max_model_len
        self._keys = keys
        self._slots = None if source.max_concurrency is None else [0] * source.max_concurrency
        self._think_time_ps = getattr(source, "think_time_ps", 0)
        self._progress = progress
        self._network_ps = network_ps  # from the server to the client
        self.horizon_ps = FAR  # everybody is known who comes
        self.num_gone = 0  # requests that have left the system
        self.load_cpu_s = 0.0  # spent in reading, not in simulating
        self._first = self._index = self._length = 0
        # The chunk's columns, each looked up once
        self._arrivals: list[int]
        self._prompts: list[int]
        self._outputs: list[int]
        self._names: list[str] | None
        self._priorities: list[int] | None
        self._tenants: list[str | None] | None
        self._predictions: list[float] | None
        self._hashes: list[tuple[int, ...]] | None
        self.next_ps = FAR
        self._begin()

    def _begin(self) -> None:
        """Get the first requests."""
        self._load()
        self._look()

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""
        return self._slots is not None

    @property
    def is_over(self) -> bool:
        """Whether every request has been sent."""
        return self._index == self._length

    @property
    def num_not_sent(self) -> int:
        """Turns of sessions that ended early, in a run that is over."""
        return 0

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; its client knows when the network has carried the last of it."""
        self.num_gone += 1
        if self._slots is not None:
            heappush(self._slots, at_ps + self._network_ps + self._think_time_ps)
            self._look()
        if self._progress is not None and not self.num_gone % PROGRESS_INTERVAL:
            self._progress(self.num_gone)

    def _pop(self) -> Request:
        i, arrival_ps = self._index, self.next_ps
        index, num_prompt, num_output = self._first + i, self._prompts[i], self._outputs[i]
        if num_prompt + num_output > self._max_model_len:
            num_output = self._max_model_len - num_prompt
            self._recorder.num_truncated += num_output > 0
        request = Request(index, self._names[i] if self._names else None, arrival_ps, num_prompt, num_output)
        if self._priorities:
            request.priority = self._priorities[i]
        if self._tenants:
            request.tenant = self._tenants[i]
        if self._predictions:
            request.predicted_output_tokens = self._predictions[i]
        if self._keys is not None and self._hashes:
            request.share(self._keys.of(self._hashes[i], num_prompt))
        if self._slots is not None:
            heappop(self._slots)
            self._recorder.arrival_ps[index] = arrival_ps
        self._index = i = i + 1
        if i < self._length and self._slots is None:
            self.next_ps = self._arrivals[i]
            return request
        if i == self._length:
            self._load()
        self._look()
        return request

    def _look(self) -> None:
        if self._index == self._length or self._slots == []:
            self.next_ps = FAR
        else:
            own_ps = self._arrivals[self._index]
            self.next_ps = own_ps if self._slots is None else max(own_ps, self._slots[0])

    def _load(self) -> None:
        begin = time.process_time()
        self._first += self._length
        chunk = next((c for c in self._chunks if c.arrival_ps), None)
        self._index, self._length = 0, 0
        if chunk is not None:
            self._take_columns(chunk)
            self._recorder.expect(chunk)
        self.load_cpu_s += time.process_time() - begin

    def _take_columns(self, chunk: RequestChunk) -> None:
        self._arrivals, self._length = chunk.arrival_ps, len(chunk.arrival_ps)
        self._prompts, self._outputs, self._names = chunk.num_prompt_tokens, chunk.num_output_tokens, chunk.request_id
        self._priorities, self._tenants = chunk.priority, chunk.tenant
        self._predictions, self._hashes = chunk.predicted_output_tokens, chunk.hash_ids


class Lane(Feed):
    """What a gateway sends to one replica of a cluster, and how much of the future the replica knows.

    The replicas of a cluster go on one at a time, each as far as it is known who will come: before `horizon_ps` nobody
    is sent here but who is in the line already. A replica that can do no more waits, and `wake_ps` says how far the
    horizon must be before it has anything to do: until then nothing shows of it. `next_ps` is when the next request was
    sent that it has not taken, `FAR` for none.
    """

    def __init__(
        self,
        index: int,
        traffic: Traffic,
        came_back: Callable[[int, Request, int], None],
        max_model_len: int,
        network_ps: int,
    ) -> None:
        self.index = index
        self.next_ps = FAR
        self.horizon_ps = 0
        self.wake_ps = 0
        self.is_waiting = False  # for somebody to come, or for the end of a span; not for the horizon alone
        self.is_forced = False  # the replica is to come as far as the horizon, though nothing shows of it
        self.is_down = False
        self.evicted: list[Request] = []  # when it went down, on their way or in the engine
        self.num_truncated = 0
        self.on_sent: Callable[[], None] | None = None
        self._traffic, self._came_back, self._max_model_len = traffic, came_back, max_model_len
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

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; in a closed loop another one may come for it."""
        if not request.is_told:
            self._came_back(self.index, request, at_ps)
        traffic = self._traffic
        traffic.left(request, at_ps + self._network_ps)
        if traffic.next_ps < self.horizon_ps:
            self.horizon_ps = traffic.next_ps

    def tell(self, ended: list[Request], at_ps: int) -> None:
        """These have their last token then, as is known when the step is launched: no need to look for it."""
        for request in ended:
            request.is_told = True
            self._came_back(self.index, request, at_ps)

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
