"""Leaps: what cannot change is not simulated.

Between two changes of the batch every running request decodes one token a step. A span of k such steps is one event:
k ends at the first last token, at the first arrival that may be admitted, or where blocks run out; their times come in
closed form (`spans`). A step with prefills is one event too and costs the same however many requests decode beside
them, and where blocks run out a tail of the running requests is preempted. When that is not possible stands in
`eligibility`; then the decodes are put back as the stepwise loop would have them, and it does a step.

The clock is ahead of the bookkeeping by design: a span's tokens are counted when it is planned. Asynchronous
scheduling plans step k+1 before the tokens of step k are taken in, so seats and blocks of requests that end in step k
(`ending`) are free only after step k+1 is planned.
"""

from __future__ import annotations

from collections.abc import Generator
from math import inf
from typing import TYPE_CHECKING

import simpy

from simbatch.sim.cost.features import Features, features_of
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.eligibility import may_leap, needs_stepping
from simbatch.sim.engine.gathered import NO_ENTRIES, Gathered
from simbatch.sim.engine.replica import Process, Replica
from simbatch.sim.engine.spans import span_ps, steps_until
from simbatch.sim.engine.step import Step
from simbatch.sim.engine.timed import Timed
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import Batch, has_prefill, is_decode

if TYPE_CHECKING:
    from simbatch.sim.engine.stepwise import Stepwise


class Leap:
    """Advances a replica from change to change."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.config, self.decisions = replica.config, replica.decisions
        self.scheduler, self.kv, self.device = replica.scheduler, replica.kv, replica.device
        self.group, self.inbox, self.cost = replica.group, replica.inbox, replica.device.cost
        self.waiting = replica.scheduler.waiting
        self.recorder = replica.recorder
        self.write_span = replica.recorder.rows.extend
        self.gathered = Gathered(replica)
        self.may_leap = may_leap(replica)
        self.is_async = replica.config.async_scheduling
        self.refuses_chunks = not self.config.enable_chunked_prefill
        # whether anybody would notice if the end of a step were written down a little before its time
        self._is_watched = (
            self.decisions.listens
            or self.inbox.is_limited
            or replica.recorder.steps is not None
            or replica.door.backlog is not None
        )
        self.keeps_steps = replica.recorder.steps is not None
        self.timed = Timed(self) if replica.is_timed else None
        self._left: tuple[int, int, int, int] | None = None  # of the span under way, where steps are kept
        self._kept: Step | None = None  # the newest step, where steps are kept
        self.num_regular = 0  # decodes of the newest step with prefills that follow a token of the step before
        self.is_alone = True

    def run(self, stepwise: Stepwise) -> Process:
        """Simulate until something needs the stepwise loop, or to the end."""
        replica = self.replica
        self.is_alone = is_alone = replica.env.peek() == inf  # and will be: others would have an event in the queue
        if not self.may_leap or (self.timed is not None and not is_alone):
            return
        now, group, kv, device = self.gathered, self.group, self.kv, self.device
        now.gather(stepwise.in_flight)
        inbox, door, scheduler, waiting = self.inbox, replica.door, self.scheduler, self.scheduler.waiting
        timed, holds, is_async, keeps_steps = self.timed, self.decisions.holds, self.is_async, self.keeps_steps
        while True:
            planned = None
            if not (keeps_steps and self._left):
                if inbox.next_ps <= replica.now_ps or door.backlog:
                    num_waiting, may_admit = len(waiting), scheduler.may_admit
                    if timed is None and door.backlog is None:
                        replica.admit()
                    else:
                        yield from replica.take_in()
                    if num_waiting and self.decisions.head_is_stable:
                        scheduler.may_admit = may_admit
                # only now: whoever comes at the moment of a preemption is in the queue before who loses its seat
                if (group.blocks_next > kv.free or now.partials) and needs_stepping(now):
                    break
                if holds and door.is_held(replica.now_ps):
                    break
                if not now.preempted and (now.partials or (scheduler.may_admit and waiting)):
                    planned = self._plan_prefills()
                if not planned and not group.size:
                    if (yield from self._idle()) or now.preempted:
                        self.close_preemptions()
                        continue
                    break
            if timed is not None:
                timed.advance(planned)
                continue
            start_ps = device.free_ps if device.free_ps > replica.now_ps else replica.now_ps
            newest_ps, ended = self._step(planned, start_ps) if planned else self._span(start_ps)
            now.has_stepped = True
            if now.preempted or (ended and self.refuses_chunks):
                self.close_preemptions()
            if is_async and (now.ending or now.noted or keeps_steps):
                if self._is_watched:
                    yield from replica.wait_until(start_ps)
                self.let_go(start_ps, start_ps)
            wake_ps = newest_ps if is_async else device.free_ps
            if wake_ps > replica.now_ps:
                if not is_alone:
                    yield replica.env.timeout(wake_ps - replica.env.now)
                replica.now_ps = wake_ps
            if is_async or ended or keeps_steps:
                now.newest_ps, now.ending, now.step = newest_ps, ended, self._kept
                if not is_async:
                    self.let_go(wake_ps, wake_ps)
        if now.has_stepped and group.size:  # they got tokens: the engine is not stuck
            stepwise.num_fruitless = 0
        now.settle(stepwise.in_flight)

    def _step(self, planned: dict[Request, int], start_ps: int) -> tuple[int, list[Request]]:
        """A step with prefills, where nothing but the device takes time: when it starts, whose last token it brings."""
        replica, device = self.replica, self.device
        batch = self.gathered.batch(planned) if self.keeps_steps else NO_ENTRIES
        features, noted, fresh, ended = self.compute(planned, start_ps > device.free_ps)
        work_ps = device.work_ps(features)
        device.free_ps = end_ps = start_ps + work_ps
        for request in fresh:
            request.scheduled_ps = start_ps
        replica.note_tokens(noted, end_ps, end_ps)
        self.log_batch(start_ps, work_ps, features)
        if self.keeps_steps:
            self._keep(start_ps, batch)
        return start_ps, ended

    def _span(self, start_ps: int) -> tuple[int, list[Request]]:
        """Decode-only steps likewise; of a span that is under way the next one, where steps are kept."""
        now, group, device = self.gathered, self.group, self.device
        num_steps, duration_ps, slope_ps, num_blocks = (self.keeps_steps and self._left) or self._plan_span(start_ps)
        if self.keeps_steps:  # one step at a time
            self._left = (num_steps - 1, duration_ps + slope_ps, slope_ps, 0) if num_steps > 1 else None
            num_steps, num_blocks = 1, group.blocks_next
        elif now.ending and num_steps > 1:  # what they give back is handed out from the second step on
            self.kv.take(group.blocks_next - now.taken)
            now.taken = group.blocks_next
            if self._is_watched:
                self.replica.now_ps = start_ps
            group.ahead = 1, 1  # the first of the steps is under way
            self.let_go(start_ps, start_ps)
            group.ahead = 0, 0
        self.kv.take(num_blocks - now.taken)
        now.taken = 0
        device.free_ps = end_ps = start_ps + span_ps(num_steps, duration_ps, slope_ps)
        newest_ps = end_ps - duration_ps - slope_ps * (num_steps - 1)
        self.replica.number += num_steps
        if self.keeps_steps:
            self._keep(newest_ps, now.batch({}))
        return newest_ps, group.advance(num_steps)

    def _keep(self, start_ps: int, batch: Batch) -> None:
        """The step in full, for the record."""
        now_ps, replica = self.replica.now_ps, self.replica
        self._kept = Step(batch, now_ps, now_ps, start_ps, self.device.free_ps, number=replica.number)

    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self.waiting) if self.replica.door.backlog is None else self.replica.num_waiting

    def log_batch(self, start_ps: int, work_ps: int, features: Features) -> None:
        """Write a row for a step with prefills."""
        num_decodes, context, tokens, _, attention, num_prefills = features
        self.write_span(
            (start_ps, 1, work_ps, 0, 0, 0, num_decodes, self.num_regular, context, tokens, num_prefills, attention,
             len(self.scheduler.running), self.num_waiting(), self.kv.free)
        )  # fmt: skip

    def let_go(self, updated_ps: int, sent_ps: int) -> None:
        """The newest step's tokens exist: seats and blocks of those whose last ones they are, are free."""
        now, replica = self.gathered, self.replica
        noted, losing, ended, step = now.noted, now.losing, now.ending, now.step
        now.newest_ps, now.ending, now.noted, now.step = NEVER, NOBODY, NOBODY, None
        if noted:
            replica.note_tokens(noted, updated_ps, sent_ps)
        if losing:
            now.losing = []
            for request in losing:
                request.last_token_ps = sent_ps
        if ended:
            replica.release(ended, updated_ps, sent_ps)
        if self.keeps_steps and step is not None and step.batch.entries:
            step.updated_ps = updated_ps
            replica.log_step(step, ended)

    def compute(
        self, planned: dict[Request, int], is_paused: bool
    ) -> tuple[Features, list[Request], list[Request], list[Request]]:
        """Everybody's token of a step with prefills.

        Returns what it computes, who gets a token that does not come one step after the one before, who is scheduled
        for the first time, and whose last token it brings. The device was idle before it if `is_paused`: then no token
        follows another one. `num_regular` says how many do.
        """
        now, group, replica = self.gathered, self.group, self.replica
        number = replica.number
        replica.number = newest = number + 1 + is_paused
        noted = [] if now.has_stepped else now.late(NEVER - 1 if is_paused else number)
        num_decodes, context, num_regular = group.size, group.context, group.size - len(noted)
        entries, fresh, now.taken = [], [], 0
        ended = group.advance(1)
        if now.partials:
            now.partials[:] = [request for request in now.partials if request not in planned]
        for request, q in planned.items():
            total = request.num_computed_tokens
            decodes = q == 1 and is_decode(request)
            entries.append((q, total - q, decodes))
            if request.scheduled_ps < 0:
                fresh.append(request)
                request.num_cached_tokens = total - q
            if total < request.num_tokens:
                now.partials.append(request)
                continue
            if decodes and request.last_step == number and not is_paused:
                num_regular += 1
            else:
                noted.append(request)
            request.last_step = newest
            request.num_tokens += 1
            if request.num_tokens - request.num_prompt_tokens < request.max_tokens:
                group.join(request)
            else:
                ended = [*ended, request]
        if len(ended) > 1:
            ended = sorted(ended, key=lambda request: request.seat)
        self.num_regular = num_regular
        return features_of(entries, num_decodes, context), noted, fresh, ended

    def close_preemptions(self) -> None:
        """The step that preempted is planned, or there are more tokens for whole prompts: the next one may admit."""
        self.gathered.preempted, self.scheduler.may_admit = [], True

    def _idle(self) -> Generator[simpy.Event, object, bool]:
        """Nobody can be scheduled: take in what is in flight, or wait for an arrival; False where there is neither."""
        now, replica = self.gathered, self.replica
        if now.newest_ps != NEVER:
            if self.timed:
                self.timed.let_go(self.device.free_ps)
                now.newest_ps = NEVER
            else:
                yield from replica.wait_until(self.device.free_ps)
                self.let_go(replica.now_ps, replica.now_ps)
            if not self.decisions.asked_on_change:
                self.scheduler.may_admit = True
            return True
        if replica.has_work or self.inbox.next_ps == FAR:
            return False
        yield from replica.wait_until(self.inbox.next_ps)
        return True

    def _plan_prefills(self) -> dict[Request, int]:
        """Who is computed beside the decodes: requests in mid-prefill, and new ones if they can be admitted."""
        now, scheduler, group = self.gathered, self.scheduler, self.group
        planned: dict[Request, int] = {}
        now.taken = group.blocks_next
        if now.taken:
            self.kv.take(now.taken)
        budget = self.config.max_num_batched_tokens
        if self.decisions.asked_on_change:
            self.replica.decoding_before = self.replica.decoding()
            if self.decisions.decides_budget:
                budget = max(self.decisions.token_budget(), self.replica.decoding_before[0])
        group.ahead = 1, 0
        budget -= group.size
        for request in now.partials:
            n = min(request.num_tokens - request.num_computed_tokens, budget)
            if n > 0:
                total = request.num_computed_tokens + n
                self.kv.grow(request, total)
                scheduler.advance(request, total)
                planned[request] = n
                budget -= n
        if scheduler.waiting and (scheduler.may_admit or not self.decisions.asked_on_change):
            scheduler.admit_waiting(planned, budget, scheduler.long_prefill_threshold())
        scheduler.may_admit = has_prefill(planned) if self.decisions.asked_on_change else bool(planned)
        group.ahead, self.replica.decoding_before = (0, 0), None
        return planned

    def most_steps(self) -> int:
        """How many decode-only steps in a row change nothing, whenever they end; arrivals and blocks are not asked."""
        now = self.gathered
        if now.preempted or not now.has_stepped:
            return 1
        if now.ending and (self.scheduler.waiting or self.inbox.is_limited or not self.is_alone):
            return 1
        if now.partials and self.decisions.decides_budget:  # it had nothing for them, and is asked again
            return 1
        return self.group.rounds_left

    def _plan_span(self, start_ps: int) -> tuple[int, int, int, int]:
        """As many decode-only steps as nothing can change: their number, the first one's duration, slope, blocks."""
        now, cost, group, num_decodes = self.gathered, self.cost, self.group, self.group.size
        slope_ps = cost.decode_context_ps * num_decodes
        duration_ps = cost.decode_ps(num_decodes) + cost.decode_context_ps * group.context
        num_steps, num_regular = self.most_steps(), num_decodes
        if self.device.noise is not None:
            num_steps, duration_ps, slope_ps = 1, self.device.noise.step_ps(duration_ps, has_prefill=False), 0
        elif num_steps > 1:
            time_left_ps = self.inbox.next_ps - start_ps
            if span_ps(num_steps, duration_ps, slope_ps) > time_left_ps:
                before = steps_until(time_left_ps, duration_ps, slope_ps)  # a plan can see the next arrival before
                num_steps = min(num_steps, before + 1 if self.is_async else max(before, 1))
        if not now.has_stepped:
            num_regular -= self._note_late(start_ps, start_ps + duration_ps)
        num_blocks, num_free = group.blocks_for(num_steps), self.kv.free + now.taken
        if num_blocks > num_free:
            num_steps = group.rounds_within(num_steps, num_free)
            num_blocks = group.blocks_for(num_steps)
        self.write_span(
            (start_ps, num_steps, duration_ps, slope_ps, 0, 0, num_decodes, num_regular, group.context, 0, 0, 0,
             len(self.scheduler.running), self.num_waiting(), num_free - num_blocks)
        )  # fmt: skip
        return num_steps, duration_ps, slope_ps, num_blocks

    def _note_late(self, start_ps: int, end_ps: int) -> int:
        """Members whose token does not come one step after the one before: how many there are."""
        is_paused = start_ps > self.device.free_ps
        noted = self.gathered.late(NEVER - 1 if is_paused else self.replica.number)
        self.replica.number += is_paused
        self.replica.note_tokens(noted, end_ps, end_ps)
        return len(noted)
