"""One engine on one GPU, step by step: a SimPy process round the scheduler (vLLM v1/engine/core.py).

Synchronous: take in every request that has arrived, schedule, run, update. Asynchronous, vLLM's default on a GPU: two
batches in flight, so that step k+1 is scheduled when step k starts on the device, and arrivals, freed seats and freed
blocks take effect one step later. What admitting requests costs the host is part of the step that takes them in, unless
the device is still busy with an earlier one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

import simpy

from simbatch.policies.base import Policy
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.noise import NoiseDraws
from simbatch.sim.engine.arrivals import FAR, Arrivals
from simbatch.sim.engine.intake import Intake
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.step import Step, step_ps
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.decisions import Decisions
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.planned import PlannedScheduler
from simbatch.sim.scheduler.prefix_cache import PrefixKVCache
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.scheduler import Batch, Entry, Scheduler
from simbatch.sim.scheduler.views import EngineView

Process = Generator[simpy.Event, Any, None]

MAX_EMPTY_STEPS = 3  # nothing can be scheduled and nothing will change: the engine is stuck
MAX_FRUITLESS_STEPS = 1_000_000  # steps in a row without a token: requests rotate through the blocks for ever


class Replica(Intake):
    """One engine: requests in, tokens out."""

    noise: NoiseDraws | None = None  # of the class: one attribute more makes CPython's look-ups of all others slower

    def __init__(
        self,
        env: simpy.Environment,
        config: EngineConfig,
        cost: CostModel,
        policy: Policy,
        arrivals: Arrivals,
        recorder: Recorder,
        progress: Callable[[int], None] | None = None,
        noise: NoiseDraws | None = None,
    ) -> None:
        self.env = env
        self.config = config
        self.cost = cost
        self.arrivals = arrivals
        self.recorder = recorder
        self.decisions = Decisions(config, policy)
        cache = PrefixKVCache if config.enable_prefix_caching else KVCache
        self.kv = cache(config.num_gpu_blocks, config.block_size)
        kind = PlannedScheduler if self.decisions.plans else Scheduler
        self.scheduler: Scheduler = kind(config, self.kv, self.decisions)
        self.scheduler.on_shed = self._turn_away
        self.backlog = self.decisions.new_queue() if config.batching == "static" else None
        self.now_ps = 0
        self.device_free_ps = 0
        self.write_span = recorder.rows.extend  # takes `SEGMENT_FIELDS`
        self._progress = progress
        self._ended: list[Request] = []  # members of a static batch that wait for its longest
        self._num_empty = self._num_fruitless = 0
        if noise is not None:
            self.noise = noise
        self.decisions.start(EngineView(config, self))

    @property
    def has_work(self) -> bool:
        """Whether any request is in the engine."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.backlog)

    def unfinished(self) -> Iterator[Request]:
        """Requests that are still in the engine."""
        backlog = self.backlog.requests() if self.backlog else ()
        return chain(self.scheduler.running, self.scheduler.waiting.requests(), backlog, self._ended)

    def run(self) -> Process:
        """The SimPy process."""
        yield from self._run_async() if self.config.async_scheduling else self._run_sync()
        yield self.env.timeout(self.now_ps - self.env.now)

    def leap(self, in_flight: deque[Step]) -> Process:
        """Skip what can be foreseen; a plain replica does every step (spans.py does not)."""
        yield from ()

    def _run_sync(self) -> Process:
        while True:
            yield from self.leap(deque())
            overhead_ps = self.intake()
            is_held = self.is_held()
            if is_held or not self.has_work:
                if (yield from self.is_over(is_held)):
                    return
                continue
            step = self.schedule(overhead_ps)
            yield from self.wait_until(step.end_ps)
            self.update(step)
            if self.goes_in_circles or (yield from self.is_stuck(step.batch)):
                return

    def _run_async(self) -> Process:
        in_flight: deque[Step] = deque()
        while True:
            yield from self.leap(in_flight)
            overhead_ps = self.intake()
            is_held = self.is_held()
            if (is_held or not self.has_work) and not in_flight:
                if (yield from self.is_over(is_held)):
                    return
                continue
            newest = None
            if self.has_work and not is_held:
                newest = self.schedule(overhead_ps)
                in_flight.append(newest)
                if len(in_flight) < 2 and (newest.batch.entries or self.has_work):
                    if (yield from self.is_stuck(newest.batch)):
                        return
                    continue
            step = in_flight.popleft()
            yield from self.wait_until(step.end_ps)
            self.update(step)
            if self.goes_in_circles:
                return
            drained = not step.batch.entries and not (in_flight and in_flight[0].batch.entries)
            if drained and (yield from self.is_stuck(newest.batch if newest else Batch([], []))):
                return

    def is_over(self, is_held: bool) -> Generator[simpy.Event, Any, bool]:
        """Wait for the next arrival, or for the end of a hold; whether there is neither."""
        wake_ps = min(self.arrivals.next_ps, self._held_until_ps) if is_held else self.arrivals.next_ps
        if wake_ps < FAR:
            yield from self.wait_until(wake_ps)
        return wake_ps >= FAR

    def wait_until(self, time_ps: int) -> Process:
        """Let the clock run; it never goes back.

        A replica that is alone in its environment looks ahead instead: nothing else can happen meanwhile.
        """
        if time_ps > self.now_ps:
            if self.env.peek() < math.inf:
                yield self.env.timeout(time_ps - self.env.now)
            self.now_ps = time_ps

    def schedule(self, overhead_ps: int) -> Step:
        """Plan the next step and its time on the device."""
        if self.decisions.asked_on_change or self.decisions.plans:
            self._decoding = self.decoding()
        batch = self.scheduler.schedule()
        self._decoding = None
        if not batch.entries:
            return Step(batch, self.now_ps, self.now_ps)
        start_ps = max(self.now_ps, self.device_free_ps)
        num_decodes = num_regular = context = 0
        num_prefills = tokens = prefill_context = attention = 0
        for request, n, num_computed, samples in batch.entries:
            if request.scheduled_ps < 0:
                request.scheduled_ps = start_ps
                request.num_cached_tokens = num_computed
            if samples and n == 1 and num_computed >= request.num_prompt_tokens:
                num_decodes += 1
                context += num_computed
                # its last token came, or is to come, when the step before ends: one placeholder is this step's own
                num_regular += request.num_placeholders > 1 or request.last_token_ps == start_ps
            else:
                num_prefills += 1
                tokens += n
                prefill_context += num_computed + n
                attention += n * (2 * num_computed + n)
        duration_ps = step_ps(self.cost, num_decodes, context, tokens, prefill_context, attention)
        if self.noise is not None:
            duration_ps = self.noise.step_ps(duration_ps, tokens > 0)
        self.device_free_ps = max(start_ps, self.now_ps + overhead_ps) + duration_ps
        self.write_span(
            (start_ps, 1, self.device_free_ps - start_ps, 0, 0, num_decodes, num_regular, context, tokens, num_prefills,
             attention, len(self.scheduler.running), self.num_waiting, self.kv.free)
        )  # fmt: skip
        return Step(batch, start_ps, self.device_free_ps)

    def update(self, step: Step) -> None:
        """Take in a step's tokens; seats and blocks of those that end are free at once."""
        _, start_ps, end_ps, is_counted = step

        def note(entry: Entry) -> None:
            request = entry.request
            if is_counted or (request.last_token_ps == start_ps and entry.is_decode):
                request.last_token_ps = end_ps
            else:
                self.note_token(request, entry.is_decode, start_ps, end_ps)

        self._num_fruitless = 0 if any(entry.samples for entry in step.batch.entries) else self._num_fruitless + 1
        finished = self.scheduler.take_tokens(step.batch, note)
        self.release(finished, self.now_ps)
        self.write_step(step, finished)

    def release(self, finished: list[Request], at_ps: int) -> None:
        """Let go of requests that have got their last token."""
        if finished:
            self._held_until_ps = 0
        for request in finished:
            self.kv.register(request, request.num_computed_tokens)
            self.scheduler.end(request)
        if self.backlog is not None:
            self._ended += finished
            if self.scheduler.running or self.scheduler.waiting:
                return
            finished, self._ended = self._ended, []
        for request in finished:
            request.finish_ps = at_ps
            self.recorder.finished(request)
            if self.decisions.listens:
                self.decisions.finished(request)
            self._gone(at_ps)

    def note_token(self, request: Request, is_decode: bool, start_ps: int, end_ps: int) -> None:
        """A request gets a token at the end of a step."""
        if request.first_token_ps < 0:
            request.first_token_ps = end_ps
        elif not (is_decode and request.last_token_ps == start_ps):
            self.recorder.gaps.append(end_ps - request.last_token_ps)
        request.last_token_ps = end_ps

    @property
    def goes_in_circles(self) -> bool:
        """Whether requests rotate through seats and blocks and none of them gets a token any more."""
        return self._num_fruitless > MAX_FRUITLESS_STEPS

    def is_stuck(self, batch: Batch) -> Generator[simpy.Event, Any, bool]:
        """After a step: whether nothing will ever change again. An idle engine waits for the next arrival."""
        if batch.entries or batch.preempted or self.is_held():
            self._num_empty = 0
            return False
        self._num_empty += 1
        if self.arrivals.next_ps != FAR:
            yield from self.wait_until(self.arrivals.next_ps)
            return False
        return self._num_empty >= MAX_EMPTY_STEPS

    def write_step(self, step: Step, finished: list[Request]) -> None:
        """Write down a step in full, if that is wanted."""
        if self.recorder.steps is not None and step.batch.entries:
            self.recorder.step(step, finished, self.kv.free, len(self.scheduler.running), self.num_waiting)
