"""Spans: what cannot change is not simulated.

Between two changes of the batch every running request decodes one token a step. A span of k such steps is one event:
k ends at the first last token, at the first arrival that may be admitted, or where blocks run out; with n decodes the
steps' durations d, d + s, d + 2s, ... sum up in closed form. A step with prefills is one event too and costs the same
however many requests decode beside them. What would need a loop over the running requests (a preemption, a budget that
does not reach everybody) is left to the stepwise replica: `leap` gathers the decodes, leaps, and puts all back as the
stepwise replica would have it.

The clock is ahead of the bookkeeping by design: a span's tokens are counted when it is planned. Asynchronous
scheduling plans step k+1 when step k starts, so seats and blocks of requests that end in step k (`_ending`) are free
only after step k+1 is planned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from math import isqrt
from typing import Any

import simpy

from simbatch.sim.engine.decode_group import OUTSIDE, DecodeGroup
from simbatch.sim.engine.arrivals import FAR
from simbatch.sim.engine.replica import Process, Replica
from simbatch.sim.engine.request import Request
from simbatch.sim.engine.scheduler import Batch, Entry
from simbatch.sim.engine.step import Prefills, Step, step_ps


class SpanReplica(Replica):
    """A replica that leaps from change to change."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = DecodeGroup(self.config.block_size)
        self._partials: list[Request] = []  # running requests whose prompt, or what is recomputed, is not done
        self._newest: Step | None = None  # planned last and not let go; its batch is complete only if steps are kept
        self._ending: list[Request] = []  # its last tokens: their seats are not free yet
        self._has_stepped = self._retry_admission = False
        self._taken = 0  # blocks that the group has for its next round already

    def leap(self, in_flight: deque[Step]) -> Process:
        """Simulate until something needs the stepwise replica, or to the end."""
        if self.decisions.decides_budget:
            return
        self._gather(in_flight)
        group, kv, arrivals, waiting = self._group, self.kv, self.arrivals, self.scheduler.waiting
        keeps_steps = self.recorder.steps is not None
        while group.blocks_next <= kv.free and not (self._partials and self._is_hard()):
            overhead_ps = self._take_in() if arrivals.next_ps <= self.now_ps or self.backlog else 0
            planned = self._plan_prefills() if self._partials or (waiting and self._retry_admission) else None
            start_ps = max(self.now_ps, self.device_free_ps)
            ready_ps = max(start_ps, self.now_ps + overhead_ps)
            if planned:
                step, ended = self._step(planned, start_ps, ready_ps)
            elif group.size:
                num_steps, duration_ps, slope_ps = self._plan_span(start_ps, ready_ps)
                while keeps_steps and num_steps > 1:
                    step, ended = self._decode(1, start_ps, duration_ps, slope_ps)
                    yield from self._pass(start_ps, step, ended)
                    num_steps, start_ps, duration_ps = num_steps - 1, step.end_ps, duration_ps + slope_ps
                step, ended = self._decode(num_steps, start_ps, duration_ps, slope_ps)
            elif (yield from self._idle()):
                continue
            else:
                break
            yield from self._pass(start_ps, step, ended)
        self._settle(in_flight)

    def _pass(self, start_ps: int, step: Step, ended: list[Request]) -> Process:
        """Let the time go by of what was planned from `start_ps` on, the last of it `step`."""
        self.device_free_ps = step.end_ps
        self._has_stepped = True
        if not self.config.async_scheduling:
            yield self.env.timeout(step.end_ps - self.now_ps)
            self.now_ps = step.end_ps
            self._newest, self._ending = step, ended
            self._let_go()
            return
        if self._ending or self.recorder.steps is not None:
            yield from self.wait_until(start_ps)
            self._let_go()
        self._newest, self._ending = step, ended
        if step.start_ps > self.now_ps:
            yield self.env.timeout(step.start_ps - self.now_ps)
            self.now_ps = step.start_ps

    def _let_go(self) -> None:
        """The newest step is over: its last tokens' seats and blocks are free."""
        step, ended = self._newest, self._ending
        self._newest, self._ending = None, []
        if ended:
            for request in ended:
                self.kv.register(request, request.num_computed_tokens)
            self.release(ended)
            self._retry_admission = True
        if step is not None and self.recorder.steps is not None:
            self.write_step(step, ended)

    # -- one step or span -----------------------------------------------------------------------------------------

    def _take_in(self) -> int:
        waiting = self.scheduler.waiting
        num_waiting = len(waiting)
        overhead_ps = self.intake()
        if len(waiting) != num_waiting and (not num_waiting or not self.decisions.head_is_stable):
            self._retry_admission = True
        return overhead_ps

    def _plan_prefills(self) -> dict[Request, int]:
        """Who is computed beside the decodes: requests in mid-prefill, and new ones if they can be admitted."""
        scheduler = self.scheduler
        planned: dict[Request, int] = {}
        self._taken = self._group.blocks_next
        self.kv.take(self._taken)
        budget = self.config.max_num_batched_tokens - self._group.size
        for request in self._partials:
            n = min(request.num_tokens - request.num_computed_tokens, budget)
            if n > 0:
                total = request.num_computed_tokens + n
                self.kv.grow(request, total)
                scheduler.advance(request, total)
                planned[request] = n
                budget -= n
        if scheduler.waiting:
            scheduler.admit_waiting(planned, budget, scheduler.long_prefill_threshold())
        self._retry_admission = bool(planned)
        return planned

    def _step(self, planned: dict[Request, int], start_ps: int, ready_ps: int) -> tuple[Step, list[Request]]:
        """A step with prefills; returns it and whose last token it brings."""
        group, self._taken = self._group, 0
        num_decodes, context, num_regular = group.size, group.context, group.size
        chunks = []
        for request, n in planned.items():
            num_computed = request.num_computed_tokens - n
            if request.scheduled_ps < 0:
                self.note_start(request, num_computed, start_ps)
            if is_decode(request, n):  # what is recomputed after a preemption ends with one token
                num_decodes += 1
                context += num_computed
                num_regular += request.last_token_ps == start_ps
            else:
                chunks.append((n, num_computed))
        prefills = Prefills.of(chunks)
        end_ps = ready_ps + step_ps(self.cost, num_decodes, context, prefills)
        num_regular -= self._count_late(start_ps, end_ps)
        self.write_span(start_ps, 1, end_ps - start_ps, 0, num_decodes, num_regular, context, prefills, 0)
        step = Step(self._batch(planned), start_ps, end_ps)
        ended = group.advance(1)
        partials = [request for request in self._partials if request not in planned] if self._partials else []
        for request, n in planned.items():
            if request.num_computed_tokens < request.num_tokens:
                partials.append(request)
                continue
            self.note_token(request, is_decode(request, n), start_ps, end_ps)
            request.num_tokens += 1
            if request.num_tokens - request.num_prompt_tokens < request.max_tokens:
                group.join(request)
            else:
                ended.append(request)
        self._partials = partials
        if len(ended) > 1:
            ended.sort(key=lambda request: request.seat)
        return step, ended

    def _plan_span(self, start_ps: int, ready_ps: int) -> tuple[int, int, int]:
        """How many decode-only steps nothing can change, the first one's duration, and how much longer each next is."""
        group = self._group
        slope_ps = self.cost.decode_context_ps * group.size
        duration_ps = ready_ps - start_ps + self.cost.decode_ps(group.size) + self.cost.decode_context_ps * group.context
        num_steps = self._span_length(start_ps, duration_ps, slope_ps) if ready_ps == start_ps else 1
        num_regular = group.size - self._count_late(start_ps, start_ps + duration_ps)
        num_blocks = group.blocks_for(num_steps) - self._taken
        self.write_span(
            start_ps, num_steps, duration_ps, slope_ps, group.size, num_regular, group.context, NO_PREFILLS, num_blocks
        )
        return num_steps, duration_ps, slope_ps

    def _span_length(self, start_ps: int, duration_ps: int, slope_ps: int) -> int:
        """Steps until the first last token, the first arrival that a plan can see, or the blocks' end."""
        if not self._has_stepped:  # somebody's last token may be older than the step before
            return 1
        if self._ending and (self.scheduler.waiting or self.arrivals.is_limited):  # seats are free after one step
            return 1
        num_steps = self._group.rounds_left
        time_left_ps = self.arrivals.next_ps - start_ps
        if span_ps(num_steps, duration_ps, slope_ps) > time_left_ps:
            before = steps_until(time_left_ps, duration_ps, slope_ps)
            num_steps = min(num_steps, before + 1 if self.config.async_scheduling else max(before, 1))
        if self._ending:  # what they give back is handed out before anything cached is evicted
            return max(self._group.rounds_within(num_steps, self.kv.num_clean + self._taken), 1)
        return self._group.rounds_within(num_steps, self.kv.free + self._taken)

    def _decode(self, num_steps: int, start_ps: int, duration_ps: int, slope_ps: int) -> tuple[Step, list[Request]]:
        """Decode-only steps; returns the last of them and whose last token it brings."""
        self.kv.take(self._group.blocks_for(num_steps) - self._taken)
        self._taken = 0
        end_ps = start_ps + span_ps(num_steps, duration_ps, slope_ps)
        step = Step(self._batch({}), end_ps - duration_ps - slope_ps * (num_steps - 1), end_ps)
        return step, self._group.advance(num_steps)

    def _idle(self) -> Generator[simpy.Event, Any, bool]:
        """Nobody can be scheduled: let the device finish, or wait for an arrival; False where neither is to come."""
        if self._newest is not None:
            yield from self.wait_until(self.device_free_ps)
            self._let_go()
            self._retry_admission = True
            return True
        if self.has_work or self.arrivals.next_ps == FAR:
            return False
        yield from self.wait_until(self.arrivals.next_ps)
        return True

    # -- from the stepwise replica and back -----------------------------------------------------------------------

    def _gather(self, in_flight: deque[Step]) -> None:
        """Take the decodes together; tokens in flight count as received."""
        self._newest = in_flight.popleft() if in_flight else None
        self._ending, self._partials = [], []
        for entry in self._newest.batch.entries if self._newest else ():
            request = entry.request
            if entry.samples:
                if not self._newest.is_counted:
                    self.note_token(request, entry.is_decode, self._newest.start_ps, self._newest.end_ps)
                request.num_tokens += 1
                request.num_placeholders = 0
                if request.num_output_tokens >= request.max_tokens:
                    self._ending.append(request)
        ending = set(self._ending)
        for request in self.scheduler.running:
            wanted = request.num_tokens - request.num_computed_tokens
            if wanted > 1 or request.num_computed_tokens < request.num_prompt_tokens:
                self._partials.append(request)
            elif request not in ending:
                self._group.join(request)
        self._has_stepped, self._retry_admission = False, True

    def _settle(self, in_flight: deque[Step]) -> None:
        """Give every request its own numbers back; the newest step is in flight again if scheduling is asynchronous."""
        newest, is_async = self._newest, self.config.async_scheduling
        members = self._group.disband()
        if newest is not None and self._has_stepped and self.recorder.steps is None:
            tokens = sorted(members + self._ending, key=lambda request: request.seat)
            entries = [Entry(request, 1, request.num_computed_tokens - 1, True) for request in tokens]
            entries += [Entry(request, 1, 0, False) for request in self._partials]
            newest = newest._replace(batch=Batch(entries, []))
        for request in members:
            self.kv.register(request, request.num_computed_tokens - is_async)
            if self._has_stepped:
                request.last_token_ps = self.device_free_ps
        if newest is not None:
            for entry in newest.batch.entries:
                if entry.samples:
                    entry.request.num_tokens -= 1
                    entry.request.num_placeholders = 1
            in_flight.append(newest._replace(is_counted=True))
        self._newest, self._ending = None, []

    def _is_hard(self) -> bool:
        """Whether the next step, with requests in mid-prefill, needs a loop over the running requests."""
        group, partials = self._group, self._partials
        budget = self.config.max_num_batched_tokens - group.size
        wanted = sum(request.num_tokens - request.num_computed_tokens for request in partials)
        if self.config.long_prefill_token_threshold or budget < 0:
            return True
        if wanted > budget and (len(partials) > 1 or self.scheduler.running[-1] is not partials[0]):
            return True
        num_blocks = group.blocks_next
        for request in partials:
            total = request.num_computed_tokens + min(request.num_tokens - request.num_computed_tokens, budget)
            num_blocks += self.kv.blocks(total) - self.kv.blocks(request.num_computed_tokens)
        return num_blocks > self.kv.free

    def _count_late(self, start_ps: int, end_ps: int) -> int:
        """Members whose last token is older than the step before, which only the stepwise replica brings about."""
        if self._has_stepped:
            return 0
        late = [request for request in self._group.members() if request.last_token_ps != start_ps]
        self.recorder.gaps.extend(end_ps - request.last_token_ps for request in late)
        return len(late)

    def _batch(self, planned: dict[Request, int]) -> Batch:
        """The step's batch, in vLLM's order; complete only where steps are kept."""
        if self.recorder.steps is None:
            return NO_ENTRIES
        entries = []
        for request in self.scheduler.running:
            computed = request.num_computed_tokens
            if request.joined_round != OUTSIDE:
                entries.append(Entry(request, 1, computed + self._group.round - request.joined_round, True))
            elif request in planned:
                n = planned[request]
                entries.append(Entry(request, n, computed - n, computed == request.num_tokens))
        return Batch(entries, [])


NO_ENTRIES = Batch([], [])
NO_PREFILLS = Prefills()


def is_decode(request: Request, n: int) -> bool:
    """Whether the n tokens that a request has been advanced by are a decode (`Entry.is_decode`)."""
    computed = request.num_computed_tokens
    return n == 1 and computed == request.num_tokens and computed > request.num_prompt_tokens


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
