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
from simbatch.sim.scheduler.scheduler import has_prefill, is_decode

if TYPE_CHECKING:
    from simbatch.sim.engine.stepwise import Stepwise


class Leap:
    """Advances a replica from change to change."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.config, self.decisions = replica.config, replica.decisions
        self.scheduler, self.kv, self.device = replica.scheduler, replica.kv, replica.device
        self.group, self.inbox, self.cost = replica.group, replica.inbox, replica.cost
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
        self._timed = Timed(self) if replica.is_timed else None

    def run(self, stepwise: Stepwise) -> Process:
        """Simulate until something needs the stepwise loop, or to the end."""
        if not self.may_leap:
            return
        now, replica, group, kv = self.gathered, self.replica, self.group, self.kv
        now.gather(stepwise.in_flight)
        inbox, door, scheduler, waiting = self.inbox, replica.door, self.scheduler, self.scheduler.waiting
        advance = self._timed.advance if self._timed else self._advance
        holds = self.decisions.holds
        while self.num_left or not ((group.blocks_next > kv.free or now.partials) and needs_stepping(now)):
            planned = None
            if not self.num_left:
                if inbox.next_ps <= replica.now_ps or door.backlog:
                    yield from self._take_in()
                if holds and door.is_held(replica.now_ps):
                    break
                if not now.preempted and (now.partials or (scheduler.may_admit and waiting)):
                    planned = self._plan_prefills()
                if not planned and not group.size:
                    if (yield from self._idle()) or now.preempted:
                        self.close_preemptions()
                        continue
                    break
            yield from advance(planned)
        if now.has_stepped and group.size:  # they got tokens: the engine is not stuck
            stepwise.num_fruitless = 0
        now.settle(stepwise.in_flight)

    num_left = 0  # steps of the span under way, one by one where steps are kept

    def _advance(self, planned: dict[Request, int] | None) -> Process:
        """A step with prefills or a span of decode-only steps, where nothing but the device takes time."""
        now, replica, group, device = self.gathered, self.replica, self.group, self.device
        start_ps = device.free_ps if device.free_ps > replica.now_ps else replica.now_ps
        keeps_steps, is_async = self.recorder.steps is not None, self.is_async
        step = None
        if planned:
            features, noted = self.begin(planned, start_ps > device.free_ps)
            device.free_ps = start_ps + device.work_ps(features)
            replica.log_batch(start_ps, device.free_ps - start_ps, features, features.num_decodes - self.num_late)
            newest_ps, schedule_ps = start_ps, replica.now_ps
            batch = now.batch(planned) if keeps_steps else NO_ENTRIES
            ended = self.take_tokens(planned, start_ps)
        else:
            noted = NOBODY
            if not self.num_left:
                noted = self._plan_span(start_ps)
            num_steps, num_blocks = self.num_left, self._num_blocks
            if keeps_steps:  # one step at a time
                num_steps, num_blocks = 1, group.blocks_next
            elif now.ending and num_steps > 1:  # what they give back is handed out from the second step on
                self.kv.take(group.blocks_next - now.taken)
                now.taken = group.blocks_next
                if self._is_watched:
                    yield from replica.wait_until(start_ps)
                group.ahead = 1, 1  # the first of them is under way
                self.let_go(start_ps, start_ps)
                group.ahead = 0, 0
            self.kv.take(num_blocks - now.taken)
            duration_ps, slope_ps = self._duration_ps, self._slope_ps
            device.free_ps = start_ps + span_ps(num_steps, duration_ps, slope_ps)
            newest_ps, schedule_ps = device.free_ps - duration_ps - slope_ps * (num_steps - 1), replica.now_ps
            batch = now.batch({}) if keeps_steps else NO_ENTRIES
            now.taken = 0
            replica.number += num_steps
            ended = group.advance(num_steps)
            self.num_left -= num_steps
            self._duration_ps = duration_ps + slope_ps
        if keeps_steps:
            step = Step(batch, schedule_ps, schedule_ps, newest_ps, device.free_ps, number=replica.number)
        now.has_stepped = True
        if now.preempted or (ended and self.refuses_chunks):
            self.close_preemptions()
        if is_async and (now.ending or now.noted or now.losing or keeps_steps):
            if self._is_watched:
                yield from replica.wait_until(start_ps)
            self.let_go(start_ps, start_ps)
        wake_ps = newest_ps if is_async else device.free_ps
        if wake_ps > replica.now_ps:
            yield from replica.wait_until(wake_ps)
        if is_async or ended or noted or keeps_steps:
            now.newest_ps, now.ending, now.noted, now.step = newest_ps, ended, noted, step
            if not is_async:
                self.let_go(wake_ps, wake_ps)

    def let_go(self, updated_ps: int, sent_ps: int) -> None:
        """The newest step's tokens exist: seats and blocks of those whose last ones they are, are free."""
        now, replica = self.gathered, self.replica
        noted, losing, ended, step = now.noted, now.losing, now.ending, now.step
        now.newest_ps, now.ending, now.noted, now.losing, now.step = NEVER, NOBODY, NOBODY, [], None
        if noted:
            replica.note_tokens(noted, updated_ps, sent_ps)
        for request in losing:
            request.last_token_ps = sent_ps
        if ended:
            replica.release(ended, updated_ps, sent_ps)
        if step is not None and step.batch.entries and self.recorder.steps is not None:
            step.updated_ps = updated_ps
            replica.log_step(step, ended)

    def begin(self, planned: dict[Request, int], is_paused: bool) -> tuple[Features, list[Request]]:
        """What a step with prefills computes, and who gets a token that is not a decode's after a decode's.

        `num_late` is how many of its decodes those are; the device was idle before it if `is_paused`.
        """
        replica, group = self.replica, self.group
        number = replica.number
        replica.number = number + 1 + is_paused
        noted = self.late(NEVER - 1 if is_paused else number)
        num_late = len(noted)
        entries = []
        for request, q in planned.items():
            computed = request.num_computed_tokens
            decodes = q == 1 and is_decode(request)
            entries.append((q, computed - q, decodes))
            if computed < request.num_tokens:
                continue
            if not decodes:
                noted.append(request)
            elif is_paused or request.last_step != number:
                noted.append(request)
                num_late += 1
            request.last_step = replica.number
        self.num_late = num_late
        return features_of(entries, group.size, group.context), noted

    def late(self, number: int) -> list[Request]:
        """Members whose last token does not come from step `number`: only the first step after a gathering has any."""
        return [] if self.gathered.has_stepped else self.gathered.late(number)

    def take_tokens(self, planned: dict[Request, int], start_ps: int) -> list[Request]:
        """Everybody's token of a step with prefills; returns whose last one that was."""
        now, group = self.gathered, self.group
        now.taken = 0
        ended = group.advance(1)
        if now.partials:
            now.partials[:] = [request for request in now.partials if request not in planned]
        for request, q in planned.items():
            if request.scheduled_ps < 0:
                request.scheduled_ps = start_ps
                request.num_cached_tokens = request.num_computed_tokens - q
            if request.num_computed_tokens < request.num_tokens:
                now.partials.append(request)
                continue
            request.num_tokens += 1
            if request.num_tokens - request.num_prompt_tokens < request.max_tokens:
                group.join(request)
            else:
                ended = [*ended, request]
        return sorted(ended, key=lambda request: request.seat) if len(ended) > 1 else ended

    def close_preemptions(self) -> None:
        """The step that preempted is planned, or there are more tokens for whole prompts: the next one may admit."""
        self.gathered.preempted, self.scheduler.may_admit = [], True

    def _idle(self) -> Generator[simpy.Event, object, bool]:
        """Nobody can be scheduled: take in what is in flight, or wait for an arrival; False where neither is to come."""
        now, replica = self.gathered, self.replica
        if now.newest_ps != NEVER:
            if self._timed:
                yield from self._timed.let_go()
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

    def _take_in(self) -> Process:
        scheduler, replica = self.scheduler, self.replica
        num_waiting, may_admit = len(scheduler.waiting), scheduler.may_admit
        yield from replica.take_in()
        if num_waiting and self.decisions.head_is_stable:
            scheduler.may_admit = may_admit

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
        if not now.has_stepped or now.preempted:
            return 1
        if now.ending and (self.scheduler.waiting or self.inbox.is_limited):
            return 1
        if now.partials and self.decisions.decides_budget:  # it had nothing for them, and is asked again
            return 1
        return self.group.rounds_left

    def _plan_span(self, start_ps: int) -> list[Request]:
        """Plan as many decode-only steps as nothing can change; returns whose tokens do not follow one another."""
        now, group, num_decodes = self.gathered, self.group, self.group.size
        is_paused = start_ps > self.device.free_ps
        noted = self.late(NEVER - 1 if is_paused else self.replica.number)
        self.replica.number += is_paused
        slope_ps = self.cost.decode_context_ps * num_decodes
        duration_ps = self.cost.decode_ps(num_decodes) + self.cost.decode_context_ps * group.context
        num_steps = 1
        if self.device.noise is not None:
            duration_ps, slope_ps = self.device.noise.step_ps(duration_ps, has_prefill=False), 0
        else:
            num_steps, time_left_ps = self.most_steps(), self.inbox.next_ps - start_ps
            if num_steps > 1 and span_ps(num_steps, duration_ps, slope_ps) > time_left_ps:
                before = steps_until(time_left_ps, duration_ps, slope_ps)  # a plan can see the next arrival before
                num_steps = min(num_steps, before + 1 if self.is_async else max(before, 1))
        num_blocks, num_free = group.blocks_for(num_steps), self.kv.free + now.taken
        if num_blocks > num_free:
            num_steps = group.rounds_within(num_steps, num_free)
            num_blocks = group.blocks_for(num_steps)
        self.write_span(
            (start_ps, num_steps, duration_ps, slope_ps, 0, 0, num_decodes, num_decodes - len(noted), group.context, 0, 0,
             0, len(self.scheduler.running), self.replica.num_waiting, num_free - num_blocks)
        )  # fmt: skip
        self.num_left, self._num_blocks = num_steps, num_blocks
        self._duration_ps, self._slope_ps = duration_ps, slope_ps
        return noted
