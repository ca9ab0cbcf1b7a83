"""vLLM's own two loops, one step at a time (v1/engine/core.py, `step` and `step_with_batch_queue`).

The life of a step, from top to bottom: requests that have come are taken in; at S the scheduler plans a batch; the
launch keeps the host busy until L; the device works until D; at U the host has taken in the tokens, which leave the
front end at V. Synchronous: one step after the other. Asynchronous, vLLM's default on a GPU: two batches in flight, so
that step k+1 is scheduled and launched before the tokens of step k are taken in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from simbatch.sim.cost.model import Features, sums_of
from simbatch.sim.engine.resources import Step
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.request import Batch, Entry, Request

if TYPE_CHECKING:
    from simbatch.sim.engine.leap import Leap
    from simbatch.sim.engine.replica import Process, Replica
    from simbatch.sim.engine.traffic import Lane

MAX_EMPTY_STEPS = 3  # nothing can be scheduled and nothing will change: the engine is stuck
MAX_FRUITLESS_STEPS = 1_000_000  # steps in a row without a token: requests rotate through the blocks for ever


class Stepwise:
    """The engine's busy loop round one replica; `leap` is asked first whether steps can be leapt over."""

    def __init__(self, replica: Replica, leap: Leap | None = None, reports_ends: bool = False) -> None:
        self.replica = replica
        self.leap = leap
        # vLLM calls once more to tell its workers who has ended; that takes no time, and only its recordings show it
        self.reports_ends = reports_ends
        self.in_flight: deque[Step] = deque()
        self.num_fruitless = 0
        self._num_empty = 0

    def run(self) -> Process:
        """The SimPy process."""
        call = self._call_async if self.replica.config.async_scheduling else self._call_sync
        while True:
            if self.leap is not None:
                has_given = yield from self.leap.run(self.in_flight)
                if has_given:  # the engine is not stuck
                    self.num_fruitless = 0
            yield from self.replica.take_in()
            if self.replica.lane is not None and self.replica.lane.is_down:
                yield from self._go_down(self.replica.lane)
                continue
            is_held = self.replica.door.is_held(self.replica.now_ps)
            may_plan = not is_held and (self.replica.has_work or (self.reports_ends and self.replica.has_unreported))
            if not may_plan and not self.in_flight:
                if (yield from self._is_over(is_held)):
                    break
                continue
            has_progressed = yield from call(may_plan)
            if self.num_fruitless > MAX_FRUITLESS_STEPS or self._wants_end:
                break
            if (yield from self._is_stuck(has_progressed)):
                break
        if self.replica.lane is None:  # else the cluster lets the clock run
            yield self.replica.env.timeout(self.replica.now_ps - self.replica.env.now)

    def _go_down(self, lane: Lane) -> Process:
        """The replica fails: what has been launched is still answered, all others are handed back; then it is gone."""
        while self.in_flight:
            yield from self.update(self.in_flight.popleft())
        self.replica.evict(lane)
        self.num_fruitless = self._num_empty = 0
        while lane.is_down:
            lane.wake_ps, lane.is_waiting = FAR, False
            yield None
        self.replica.now_ps = max(self.replica.now_ps, lane.horizon_ps)

    def _call_sync(self, may_plan: bool) -> Generator[Any, Any, bool]:
        """One call of `EngineCore.step`; whether anything came of it."""
        step = self.launch()
        yield from self.replica.wait_until(step.launched_ps)
        yield from self.update(step)
        return bool(step.batch.entries or step.batch.preempted)

    def _call_async(self, may_plan: bool) -> Generator[Any, Any, bool]:
        """One call of `step_with_batch_queue`: fill the queue of two, or else take in the older step."""
        has_progressed = False
        if may_plan:
            newest = self.launch()
            yield from self.replica.wait_until(newest.launched_ps)
            self.in_flight.append(newest)
            has_progressed = bool(newest.batch.entries or newest.batch.preempted)
            if len(self.in_flight) < 2 and (newest.batch.entries or self.replica.has_work):
                return has_progressed
        step = self.in_flight.popleft()
        yield from self.update(step)
        return has_progressed or bool(step.batch.entries)

    def launch(self) -> Step:
        """Schedule a batch at S and give it to the device; the host is busy until L."""
        replica, schedule_ps = self.replica, self.replica.now_ps
        if replica.listener is not None:
            replica.listener.planning(schedule_ps)
        if replica.decisions.asked_on_change or replica.decisions.plans:
            replica.decoding_before = replica.decoding()
        batch = replica.scheduler.schedule()
        replica.decoding_before, replica.has_unreported = None, False
        if replica.lane is not None:
            replica.publish()
        if batch.entries:
            step = self._launched(batch)
        else:
            step = Step(batch, schedule_ps, schedule_ps, schedule_ps, schedule_ps)
        if replica.listener is not None:
            replica.listener.planned(step)
        return step

    def _launched(self, batch: Batch) -> Step:
        replica, schedule_ps = self.replica, self.replica.now_ps
        features = Features(
            *sums_of(
                [(entry.num_tokens, entry.num_computed_tokens, entry.is_decode) for entry in batch.entries],
                windows=replica.cost.windows,
            )
        )
        work_ps, was_free_ps = replica.device.work_ps(features), replica.device.free_ps
        times = replica.launch(features.num_requests, features.num_prefills, features.num_tokens, work_ps)
        # a token's gap to the one before is no step's duration after a pause: the steps are no neighbours then
        replica.number += 1 + (not replica.is_timed and times[1] > was_free_ps)
        step = Step(batch, schedule_ps, *times, features, replica.number)
        for entry in batch.entries:
            self._begin(entry, step)
        replica.log_batch(step.start_ps, work_ps, features, step.num_regular)
        return step

    def _begin(self, entry: Entry, step: Step) -> None:
        """Note when a request is first scheduled, and whose token will not come one step after the one before."""
        request = entry.request
        if request.scheduled_ps < 0:
            request.scheduled_ps = step.start_ps
            request.num_cached_tokens = entry.num_computed_tokens
        if not entry.samples:
            return
        if entry.is_decode and request.last_step == step.number - 1:
            step.num_regular += 1
        else:
            step.noted.append(request)
        request.last_step = step.number

    def update(self, step: Step) -> Process:
        """Take in a step's tokens when the device is done; seats and blocks of those that end are free at once."""
        replica, finished = self.replica, list[Request]()
        if replica.listener is not None:
            replica.listener.updating(step)
        if step.batch.entries:
            updated_ps = max(replica.now_ps, step.end_ps) + replica.host.update_ps(step.features.num_requests)
            yield from replica.wait_until(updated_ps)
            finished = self._take_tokens(step)
        self.num_fruitless = 0 if any(entry.samples for entry in step.batch.entries) else self.num_fruitless + 1
        step.updated_ps = replica.now_ps
        if replica.recorder.steps is not None and step.batch.entries:
            replica.log_step(step, finished)
        if replica.listener is not None:
            replica.listener.updated(step, finished)

    def _take_tokens(self, step: Step) -> list[Request]:
        replica, now_ps = self.replica, self.replica.now_ps
        receivers = [entry.request for entry in step.batch.entries if entry.samples]
        finished = replica.scheduler.take_tokens(step.batch)
        sent_ps = replica.send(now_ps, len(receivers), step.features.num_decodes, step.num_regular)
        replica.note_tokens(step.noted, now_ps, sent_ps)
        for request in receivers:
            request.last_token_ps = sent_ps
        if finished:
            replica.release(finished, now_ps, sent_ps)
        return finished

    @property
    def _wants_end(self) -> bool:
        return self.replica.listener is not None and self.replica.listener.wants_end()

    def _is_over(self, is_held: bool) -> Generator[Any, Any, bool]:
        """Wait for the next arrival, or for the end of a hold; whether there is neither."""
        replica = self.replica
        wake_ps = replica.door.held_until_ps if is_held else FAR
        if wake_ps >= FAR and replica.is_over:
            return True
        yield from self._wait_idle(wake_ps)
        return False

    def _is_stuck(self, has_progressed: bool) -> Generator[Any, Any, bool]:
        """After a call: whether nothing will ever change again. An idle engine waits for the next arrival."""
        replica = self.replica
        if has_progressed or not replica.has_work or replica.door.is_held(replica.now_ps):
            self._num_empty = 0
            return False
        if not replica.is_over:
            yield from self._wait_idle(FAR)
            return False
        self._num_empty += 1
        return self._num_empty >= MAX_EMPTY_STEPS

    def _wait_idle(self, wake_ps: int) -> Process:
        if self.replica.listener is not None:
            self.replica.listener.is_idle(self.replica.now_ps)
        yield from self.replica.until_sent(wake_ps)
