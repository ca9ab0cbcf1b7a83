"""One engine on one GPU, step by step: a SimPy process round the scheduler (vLLM v1/engine/core.py).

Synchronous: take in every request that has arrived, schedule, run, update. Asynchronous, vLLM's default on a GPU: two
batches in flight, so that step k+1 is scheduled when step k starts on the device, and arrivals, freed seats and freed
blocks take effect one step later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any, NamedTuple

import simpy

from simbatch.policies.base import Policy
from simbatch.sim.cost.model import CostModel
from simbatch.sim.engine.arrivals import Arrivals, too_long
from simbatch.sim.engine.config import EngineConfig
from simbatch.sim.engine.decisions import Decisions
from simbatch.sim.engine.kv_cache import KVCache, PrefixKVCache
from simbatch.sim.engine.record import StepRow
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.request import Request
from simbatch.sim.engine.scheduler import Batch, Entry, Scheduler
from simbatch.sim.engine.views import EngineView

Process = Generator[simpy.Event, Any, None]

MAX_EMPTY_STEPS = 3  # nothing can be scheduled and nothing will change: the engine is stuck
MAX_FRUITLESS_STEPS = 1_000_000  # steps in a row without a token: requests rotate through the blocks for ever


class Shape(NamedTuple):
    """What a step consists of: all that its duration depends on (`simbatch.sim.cost.model`)."""

    num_decodes: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    num_prefills: int = 0
    prefill_context: int = 0
    prefill_attention: int = 0
    after: tuple[int, int, int] = (0, 0, 0)  # running, waiting, free blocks, as planned


def measure(batch: Batch) -> Shape:
    """The shape of a batch: one token of a request whose prompt is computed is a decode, all else is prefill."""
    num_decodes = decode_context = tokens = num_prefills = context = attention = 0
    for entry in batch.entries:
        h, q = entry.num_computed_tokens, entry.num_tokens
        if entry.is_decode:
            num_decodes += 1
            decode_context += h
        else:
            num_prefills += 1
            tokens += q
            context += h + q
            attention += q * (2 * h + q)
    return Shape(num_decodes, decode_context, tokens, num_prefills, context, attention)


class Step(NamedTuple):
    """A scheduled batch, its time on the device, and what it consists of."""

    batch: Batch
    start_ps: int
    end_ps: int
    shape: Shape

    @property
    def duration_ps(self) -> int:
        """How long the device works on it."""
        return self.end_ps - self.start_ps


class Replica:
    """One engine: requests in, tokens out."""

    def __init__(
        self,
        env: simpy.Environment,
        config: EngineConfig,
        cost: CostModel,
        policy: Policy,
        arrivals: Arrivals,
        recorder: Recorder,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.env = env
        self.config = config
        self.cost = cost
        self.arrivals = arrivals
        self.recorder = recorder
        self.decisions = Decisions(config, policy)
        cache = PrefixKVCache if config.enable_prefix_caching else KVCache
        self.scheduler = Scheduler(config, cache(config.num_gpu_blocks, config.block_size), self.decisions)
        self.backlog = self.decisions.new_queue() if config.batching == "static" else None
        self.now_ps = 0
        self._on_end = on_end
        self._ended: list[Request] = []  # members of a static batch that wait for its longest
        self._num_empty = self._num_fruitless = 0
        self.decisions.start(EngineView(config, self))

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self.scheduler.waiting) + (len(self.backlog) if self.backlog is not None else 0)

    @property
    def has_work(self) -> bool:
        """Whether any request is in the engine."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.backlog)

    def unfinished(self) -> Iterator[Request]:
        """Requests that are still in the engine."""
        return chain(self.scheduler.running, self.scheduler.waiting, self.backlog or (), self._ended)

    def run(self) -> Process:
        """The SimPy process."""
        return self._run_async() if self.config.async_scheduling else self._run_sync()

    def _run_sync(self) -> Process:
        while True:
            overhead_ps = self.intake()
            if not self.has_work:
                if self.arrivals.next_ps is None:
                    return
                yield from self.wait_until(self.arrivals.next_ps)
                continue
            yield from self.wait_until(self.now_ps + overhead_ps)
            step = self.schedule(self.now_ps)
            yield from self.wait_until(step.end_ps)
            self.update(step)
            if (yield from self.is_stuck(step.batch)):
                return

    def _run_async(self) -> Process:
        in_flight: deque[Step] = deque()
        device_free_ps = 0
        while True:
            overhead_ps = self.intake()
            if not self.has_work and not in_flight:
                if self.arrivals.next_ps is None:
                    return
                yield from self.wait_until(self.arrivals.next_ps)
                continue
            newest = None
            if self.has_work:
                newest = self.schedule(max(self.now_ps + overhead_ps, device_free_ps))
                if newest.batch.entries:
                    device_free_ps = newest.end_ps
                in_flight.append(newest)
                if len(in_flight) < 2 and (newest.batch.entries or self.has_work):
                    if (yield from self.is_stuck(newest.batch)):
                        return
                    continue
            step = in_flight.popleft()
            yield from self.wait_until(step.end_ps)
            self.update(step)
            drained = not step.batch.entries and not (in_flight and in_flight[0].batch.entries)
            if drained and (yield from self.is_stuck(newest.batch if newest else Batch([], []))):
                return

    def wait_until(self, time_ps: int) -> Process:
        """Let the clock run; it never goes back."""
        if time_ps > self.now_ps:
            yield self.env.timeout(time_ps - self.now_ps)
            self.now_ps = self.env.now

    def intake(self) -> int:
        """Take in every request that has arrived; returns how long that keeps the engine's host busy."""
        num_taken = self.arrivals.take(self.now_ps, self.add)
        if self.backlog and not self.scheduler.running and not self.scheduler.waiting:
            self._form_batch()
        return num_taken * self.config.request_overhead_ps

    def add(self, request: Request) -> None:
        """Queue an arriving request, unless it is turned away."""
        reason = too_long(request, self.config.max_model_len) or self.decisions.reject(request)
        if reason is not None:
            self.recorder.rejected(request, reason)
            self.arrivals.ended(self.now_ps)
            self._on_end()
        elif self.backlog is None:
            self.scheduler.waiting.add(request)
        else:
            self.backlog.add(request)

    def schedule(self, start_ps: int) -> Step:
        """Plan a step that starts on the device at `start_ps`."""
        batch = self.scheduler.schedule()
        if not batch.entries:
            return Step(batch, self.now_ps, self.now_ps, Shape())
        for entry in batch.entries:
            request = entry.request
            if request.scheduled_ps < 0:
                request.scheduled_ps = start_ps
                request.num_cached_tokens = entry.num_computed_tokens
        shape = measure(batch)
        now = (len(self.scheduler.running), self.num_waiting, self.scheduler.kv.free)
        return Step(batch, start_ps, start_ps + self.duration_ps(shape), shape._replace(after=now))

    def duration_ps(self, shape: Shape) -> int:
        """How long the device works on such a step."""
        if shape.num_prefills:
            return self.cost.mixed_ps(
                shape.num_decodes,
                shape.decode_context,
                shape.prefill_tokens,
                shape.prefill_context,
                shape.prefill_attention,
            )
        return self.cost.decode_ps(shape.num_decodes) + self.cost.decode_context_ps * shape.decode_context

    def update(self, step: Step) -> None:
        """Take in a step's tokens."""
        num_regular = 0

        def on_token(entry: Entry) -> None:
            nonlocal num_regular
            request = entry.request
            gap_ps = step.end_ps - request.last_token_ps
            if request.first_token_ps < 0:
                request.first_token_ps = step.end_ps
            elif entry.is_decode and gap_ps == step.duration_ps:
                num_regular += 1
            else:
                self.recorder.gaps.append(gap_ps)
            request.last_token_ps = step.end_ps

        finished = self.scheduler.update(step.batch, on_token)
        for request in finished:
            self._finish(request)
        if self.backlog is not None and not self.scheduler.running and not self.scheduler.waiting:
            self._end_batch()
        if step.batch.entries:
            self._record(step, num_regular, finished)

    def is_stuck(self, batch: Batch) -> Generator[simpy.Event, Any, bool]:
        """After a step: whether nothing will ever change again. An idle engine waits for the next arrival."""
        self._num_fruitless = 0 if any(entry.samples for entry in batch.entries) else self._num_fruitless + 1
        if self._num_fruitless > MAX_FRUITLESS_STEPS:
            return True
        if batch.entries or batch.preempted:
            self._num_empty = 0
            return False
        self._num_empty += 1
        if self.arrivals.next_ps is not None:
            yield from self.wait_until(self.arrivals.next_ps)
            return False
        return self._num_empty >= MAX_EMPTY_STEPS

    def _form_batch(self) -> None:
        assert self.backlog is not None
        for _ in range(min(self.decisions.seats(), len(self.backlog))):
            self.scheduler.waiting.add(self.backlog.pop())

    def _finish(self, request: Request) -> None:
        if self.backlog is None:
            self._leave(request)
        else:
            self._ended.append(request)

    def _end_batch(self) -> None:
        ended, self._ended = self._ended, []
        for request in ended:
            self._leave(request)

    def _leave(self, request: Request) -> None:
        request.finish_ps = self.now_ps
        self.recorder.finished(request)
        self.decisions.finished(request)
        self.arrivals.ended(self.now_ps)
        self._on_end()

    def _record(self, step: Step, num_regular: int, finished: list[Request]) -> None:
        shape, (num_running, num_waiting, free_blocks) = step.shape, step.shape.after
        self.recorder.span(
            step.start_ps,
            1,
            step.duration_ps,
            0,
            shape.num_decodes,
            num_regular,
            shape.decode_context,
            shape.prefill_tokens,
            shape.num_prefills,
            shape.prefill_attention,
            num_running,
            num_waiting,
            free_blocks,
        )
        if self.recorder.steps is not None:
            self.recorder.steps.append(
                StepRow(
                    step=len(self.recorder.steps),
                    start_ps=step.start_ps,
                    end_ps=step.end_ps,
                    scheduled=[(e.request.index, e.num_tokens, e.num_computed_tokens) for e in step.batch.entries],
                    preempted=[request.index for request in step.batch.preempted],
                    finished=[request.index for request in finished],
                    free_blocks=self.scheduler.kv.free,
                    num_running=len(self.scheduler.running),
                    num_waiting=self.num_waiting,
                )
            )
