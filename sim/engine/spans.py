"""Spans: what cannot change is not simulated.

Between two changes of the batch every running request decodes one token a step. A span of k such steps is one event:
k ends at the first last token, at the first arrival that may be admitted, or where blocks run out; with n decodes the
steps' durations d, d + s, d + 2s, ... sum up in closed form. A step with prefills is one event too and costs the same
however many requests decode beside them, and where blocks run out a tail of the running requests is preempted. What
would need a loop over them (another choice of victim, a budget that does not reach everybody) is left to the stepwise
replica: `leap` gathers the decodes, leaps, and puts all back as the stepwise replica would have it. With noise every
step has a time of its own, so a span is one step.

The clock is ahead of the bookkeeping by design: a span's tokens are counted when it is planned. Asynchronous
scheduling plans step k+1 when step k starts, so seats and blocks of requests that end in step k (`_ending`) are free
only after step k+1 is planned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from math import inf, isqrt
from typing import Any

import simpy

from simbatch.sim.engine.arrivals import FAR
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.gathering import NO_ENTRIES, GatheringReplica
from simbatch.sim.engine.replica import Process
from simbatch.sim.engine.step import Step, step_ps
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import has_prefill, is_decode


class SpanReplica(GatheringReplica):
    """A replica that leaps from change to change."""

    def leap(self, in_flight: deque[Step]) -> Process:
        """Simulate until something needs the stepwise replica, or to the end."""
        # without chunked prefill the end of a request lets a longer prompt in before its seat is free
        if self.decisions.plans or (self._refuses_chunks and self.decisions.asked_on_change):
            return
        self._gather(in_flight)
        group, kv, arrivals, waiting = self._group, self.kv, self.arrivals, self.scheduler.waiting
        plan_span = self._plan_noisy_step if self.noise else self._plan_span
        is_async, holds, keeps_steps = (
            self.config.async_scheduling,
            self.decisions.holds,
            self.recorder.steps is not None,
        )
        is_alone = self.env.peek() == inf  # and will be: whoever else might run would have an event in the queue
        num_left = duration_ps = slope_ps = num_blocks = 0  # of the span under way, and what its next part takes
        while num_left or not ((group.blocks_next > kv.free or self._partials) and self._is_hard()):
            start_ps = self.device_free_ps if self.device_free_ps > self.now_ps else self.now_ps
            if not num_left:
                overhead_ps = self._take_in() if arrivals.next_ps <= self.now_ps or self.backlog else 0
                if holds and self.is_held():
                    break
                ready_ps = max(start_ps, self.now_ps + overhead_ps)
                planned = None
                if not self._preempted and (self._partials or (waiting and self.scheduler.may_admit)):
                    planned = self._plan_prefills()
                if planned:
                    newest_ps, batch = start_ps, self._batch(planned) if keeps_steps else NO_ENTRIES
                    ended = self._step(planned, start_ps, ready_ps)
                elif group.size:
                    num_left, duration_ps, slope_ps, num_blocks = plan_span(start_ps, ready_ps)
                elif (yield from self._idle()) or self._preempted:
                    self._close_preemptions()
                    continue
                else:
                    break
            if num_left:
                num_steps = num_left
                if keeps_steps:  # one step at a time
                    num_steps, num_blocks = 1, group.blocks_next
                elif self._ending and num_left > 1:  # what they give back is handed out from the second step on
                    kv.take(group.blocks_next - self._taken)
                    self._taken = group.blocks_next
                    if self._is_watched:
                        yield from self.wait_until(start_ps)
                    group.ahead = 1, 1  # the first of them is under way
                    self._let_go(start_ps)
                    group.ahead = 0, 0
                kv.take(num_blocks - self._taken)
                end_ps = start_ps + span_ps(num_steps, duration_ps, slope_ps)
                newest_ps = end_ps - duration_ps - slope_ps * (num_steps - 1)
                batch = self._batch({}) if keeps_steps else NO_ENTRIES
                self._taken, self.device_free_ps = 0, end_ps
                ended = group.advance(num_steps)
                num_left, duration_ps = num_left - num_steps, duration_ps + slope_ps
            self._has_stepped = True
            if self._preempted or (ended and self._refuses_chunks):
                self._close_preemptions()
            if is_async and (self._ending or keeps_steps):
                if self._is_watched:
                    yield from self.wait_until(start_ps)
                self._let_go(start_ps)
            wake_ps = newest_ps if is_async else self.device_free_ps
            if wake_ps > self.now_ps:
                if not is_alone:
                    yield self.env.timeout(wake_ps - self.env.now)
                self.now_ps = wake_ps
            if is_async or ended or keeps_steps:
                self._newest_ps, self._newest_batch, self._ending = newest_ps, batch, ended
                if not is_async:
                    self._let_go(wake_ps)
        self._settle(in_flight)

    def _let_go(self, at_ps: int) -> None:
        """The newest step is over: its last tokens' seats and blocks are free."""
        start_ps, ended = self._newest_ps, self._ending
        self._newest_ps, self._ending = NEVER, NOBODY
        if ended:
            self.release(ended, at_ps)
        if self.recorder.steps is not None and start_ps != NEVER:
            self.write_step(Step(self._newest_batch, start_ps, at_ps), ended)

    def _close_preemptions(self) -> None:
        """The step that preempted is planned, or there are more tokens for whole prompts: the next one may admit."""
        self._preempted, self.scheduler.may_admit = [], True

    def _idle(self) -> Generator[simpy.Event, Any, bool]:
        """Nobody can be scheduled: let the device finish, or wait for an arrival; False where neither is to come."""
        if self._newest_ps != NEVER:
            yield from self.wait_until(self.device_free_ps)
            self._let_go(self.now_ps)
            if not self.decisions.asked_on_change:
                self.scheduler.may_admit = True
            return True
        if self.has_work or self.arrivals.next_ps == FAR:
            return False
        yield from self.wait_until(self.arrivals.next_ps)
        return True

    def _take_in(self) -> int:
        scheduler = self.scheduler
        num_waiting, may_admit = len(scheduler.waiting), scheduler.may_admit
        overhead_ps = self.intake()
        if num_waiting and self.decisions.head_is_stable:
            scheduler.may_admit = may_admit
        return overhead_ps

    def _plan_prefills(self) -> dict[Request, int]:
        """Who is computed beside the decodes: requests in mid-prefill, and new ones if they can be admitted."""
        scheduler, group = self.scheduler, self._group
        planned: dict[Request, int] = {}
        self._taken = group.blocks_next
        if self._taken:
            self.kv.take(self._taken)
        budget = self.config.max_num_batched_tokens
        if self.decisions.asked_on_change:
            self._decoding = self.decoding()
            if self.decisions.decides_budget:
                budget = max(self.decisions.token_budget(), self._decoding[0])
        group.ahead = 1, 0
        budget -= group.size
        for request in self._partials:
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
        group.ahead, self._decoding = (0, 0), None
        return planned

    def _step(self, planned: dict[Request, int], start_ps: int, ready_ps: int) -> list[Request]:
        """A step with prefills; returns whose last token it brings."""
        group, self._taken = self._group, 0
        num_decodes, context, num_regular = group.size, group.context, group.size
        num_prefills = tokens = prefill_context = attention = 0
        for request, q in planned.items():
            total = request.num_computed_tokens
            if request.scheduled_ps < 0:
                request.scheduled_ps = start_ps
                request.num_cached_tokens = total - q
            if q == 1 and is_decode(request):
                num_decodes += 1
                context += total - 1
                num_regular += request.last_token_ps == start_ps
            else:
                num_prefills += 1
                tokens += q
                prefill_context += total
                attention += q * (total + total - q)
        work_ps = step_ps(self.cost, num_decodes, context, tokens, prefill_context, attention)
        end_ps = ready_ps + (self.noise.step_ps(work_ps, tokens > 0) if self.noise else work_ps)
        self.device_free_ps = end_ps
        if not self._has_stepped:
            num_regular -= self._count_late(start_ps, end_ps)
        self.write_span(
            (start_ps, 1, end_ps - start_ps, 0, 0, num_decodes, num_regular, context, tokens, num_prefills, attention,
             len(self.scheduler.running), self.num_waiting, self.kv.free)
        )  # fmt: skip
        return self._take_tokens(planned, start_ps, end_ps)

    def _take_tokens(self, planned: dict[Request, int], start_ps: int, end_ps: int) -> list[Request]:
        """Everybody's token of a step with prefills; returns whose last one that was."""
        group = self._group
        ended = group.advance(1)
        if self._partials:
            self._partials = [request for request in self._partials if request not in planned]
        for request, q in planned.items():
            if request.num_computed_tokens < request.num_tokens:
                self._partials.append(request)
                continue
            if request.first_token_ps < 0:
                request.first_token_ps = request.last_token_ps = end_ps
            else:
                self.note_token(request, q == 1 and is_decode(request), start_ps, end_ps)
            request.num_tokens += 1
            if request.num_tokens - request.num_prompt_tokens < request.max_tokens:
                group.join(request)
            else:
                ended = [*ended, request]
        return sorted(ended, key=lambda request: request.seat) if len(ended) > 1 else ended

    def _plan_span(self, start_ps: int, ready_ps: int) -> tuple[int, int, int, int]:
        """How many decode-only steps nothing can change: their number, the first one's duration, slope, blocks."""
        group, cost, num_decodes = self._group, self.cost, self._group.size
        slope_ps = cost.decode_context_ps * num_decodes
        duration_ps = ready_ps - start_ps + cost.decode_ps(num_decodes) + cost.decode_context_ps * group.context
        num_steps, num_regular = 1, num_decodes
        if not self._has_stepped:  # somebody's last token may be older than the step before
            num_regular -= self._count_late(start_ps, start_ps + duration_ps)
        elif ready_ps == start_ps and not (
            self._preempted or (self._ending and (self.scheduler.waiting or self.arrivals.is_limited))
        ):
            num_steps, time_left_ps = group.rounds_left, self.arrivals.next_ps - start_ps
            if self._partials and self.decisions.decides_budget:  # it had nothing for them, and is asked again
                num_steps = 1
            if span_ps(num_steps, duration_ps, slope_ps) > time_left_ps:  # a plan can see the next arrival before
                before = steps_until(time_left_ps, duration_ps, slope_ps)
                num_steps = min(num_steps, before + 1 if self.config.async_scheduling else max(before, 1))
        num_blocks, num_free = group.blocks_for(num_steps), self.kv.free + self._taken
        if num_blocks > num_free:
            num_steps = group.rounds_within(num_steps, num_free)
            num_blocks = group.blocks_for(num_steps)
        self.write_span(
            (start_ps, num_steps, duration_ps, slope_ps, 0, num_decodes, num_regular, group.context, 0, 0, 0,
             len(self.scheduler.running), self.num_waiting, num_free - num_blocks)
        )  # fmt: skip
        return num_steps, duration_ps, slope_ps, num_blocks

    def _plan_noisy_step(self, start_ps: int, ready_ps: int) -> tuple[int, int, int, int]:
        """The same for one decode-only step, whose time is drawn."""
        group, num_decodes = self._group, self._group.size
        assert self.noise is not None
        work_ps = step_ps(self.cost, num_decodes, group.context, 0, 0, 0)
        duration_ps = ready_ps - start_ps + self.noise.step_ps(work_ps, has_prefill=False)
        num_late = 0 if self._has_stepped else self._count_late(start_ps, start_ps + duration_ps)
        num_blocks = group.blocks_next
        self.write_span(
            (start_ps, 1, duration_ps, 0, 0, num_decodes, num_decodes - num_late, group.context, 0, 0, 0,
             len(self.scheduler.running), self.num_waiting, self.kv.free + self._taken - num_blocks)
        )  # fmt: skip
        return 1, duration_ps, 0, num_blocks


def span_ps(num_steps: int, duration_ps: int, slope_ps: int) -> int:
    """Time of steps that last d, d + s, d + 2s, ..."""
    return num_steps * duration_ps + slope_ps * (num_steps * (num_steps - 1) // 2)


def steps_until(time_ps: int, duration_ps: int, slope_ps: int) -> int:
    """The fewest such steps that last `time_ps` or longer."""
    if time_ps <= 0:
        return 0
    if not slope_ps:
        return -(-time_ps // duration_ps)
    b = 2 * duration_ps - slope_ps  # slope*j^2 + b*j >= 2*time
    j = (isqrt(b * b + 8 * slope_ps * time_ps) - b) // (2 * slope_ps)
    return j if span_ps(j, duration_ps, slope_ps) >= time_ps else j + 1
