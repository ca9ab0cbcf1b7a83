"""Requests in the order of their sending: read in chunks, handed over one by one, held back by a concurrency limit."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.scheduler.prefix_keys import PrefixKeys
from simbatch.sim.scheduler.request import Request

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestChunk, RequestSource

FAR = 1 << 63  # ps: later than any column can say
PROGRESS_INTERVAL = 500  # requests


class Traffic:
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
        self._chunks = source.chunks()
        self._recorder = recorder
        self._max_model_len = max_model_len
        self._keys = keys
        self._slots = None if source.max_concurrency is None else [0] * source.max_concurrency
        self._think_time_ps = getattr(source, "think_time_ps", 0)
        self._progress = progress
        self._network_ps = network_ps  # from the server to the client
        self.num_gone = 0  # requests that have left the system
        self.load_cpu_s = 0.0  # spent in reading, not in simulating
        self._first = self._index = self._length = 0
        self._chunk: RequestChunk
        self.next_ps = FAR
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

    def take(self, now_ps: int, add: Callable[[Request, int], int]) -> int:
        """Hand over every request sent by `now_ps`; returns the clock after their admission, which `add` prices."""
        if now_ps >= FAR:
            raise OverflowError("the clock has run past what its columns hold")
        while self.next_ps <= now_ps:
            now_ps += add(self._pop(self.next_ps), now_ps)
        return now_ps

    def take_one(self, add: Callable[[Request], None]) -> None:
        """Hand over the next request."""
        add(self._pop(self.next_ps))

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; its client knows when the network has carried the last of it."""
        self.num_gone += 1
        if self._slots is not None:
            heapq.heappush(self._slots, at_ps + self._network_ps + self._think_time_ps)
            self._look()
        if self._progress is not None and not self.num_gone % PROGRESS_INTERVAL:
            self._progress(self.num_gone)

    def _pop(self, arrival_ps: int) -> Request:
        i, chunk = self._index, self._chunk
        index, num_prompt = self._first + i, chunk.num_prompt_tokens[i]
        num_output = chunk.num_output_tokens[i]
        if num_prompt + num_output > self._max_model_len:
            num_output = self._max_model_len - num_prompt
            self._recorder.num_truncated += num_output > 0
        name = chunk.request_id[i] if chunk.request_id else None
        request = Request(index, name, arrival_ps, num_prompt, num_output)
        if chunk.priority:
            request.priority = chunk.priority[i]
        if chunk.tenant:
            request.tenant = chunk.tenant[i]
        if chunk.predicted_output_tokens:
            request.predicted_output_tokens = chunk.predicted_output_tokens[i]
        if self._keys and chunk.hash_ids:
            request.keys = self._keys.of(chunk.hash_ids[i], num_prompt)
        if self._slots is not None:
            heapq.heappop(self._slots)
            self._recorder.arrival_ps[index] = arrival_ps
        self._index = i = i + 1
        if i < self._length and self._slots is None:
            self.next_ps = chunk.arrival_ps[i]
            return request
        if i == self._length:
            self._load()
        self._look()
        return request

    def _look(self) -> None:
        if self._index == self._length or self._slots == []:
            self.next_ps = FAR
        else:
            own_ps = self._chunk.arrival_ps[self._index]
            self.next_ps = own_ps if self._slots is None else max(own_ps, self._slots[0])

    def _load(self) -> None:
        begin = time.process_time()
        self._first += self._length
        chunk = next((c for c in self._chunks if c.arrival_ps), None)
        self._index, self._length = 0, 0
        if chunk is not None:
            self._chunk, self._length = chunk, len(chunk.arrival_ps)
            self._recorder.expect(chunk)
        self.load_cpu_s += time.process_time() - begin
