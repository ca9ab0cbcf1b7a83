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
        self._ending: list[Request] = []  # got their last token in the newest step; their seats are not free yet
        self._newest: Step | None = None  # planned and not let go; its entries are complete only if steps are kept
        self._has_stepped = self._retry_admission = False
        self._taken = 0  # blocks that the group has for its next round already

    def leap(self, in_flight: deque[Step]) -> Process:
        """Simulate until something needs the stepwise replica, or to the end."""
        if self.decisions.decides_budget:
            return
        self._gather(in_flight)
        while not self._is_hard():
            overhead_ps = self._take_in()
            planned = self._plan_prefills()
            if not planned and not self._group.size:
                if (yield from self._idle()):
                    continue
                break
            start_ps = max(self.now_ps, self.device_free_ps)
            ready_ps = max(start_ps, self.now_ps + overhead_ps)
            if planned:
                yield from self._step(planned, start_ps, ready_ps)
            else:
                yield from self._span(start_ps, ready_ps)
        self._settle(in_flight)

    # -- from the stepwise replica and back -----------------------------------------------------------------------

    def _gather(self, in_flight: deque[Step]) -> None:
        """Take the decodes together; tokens in flight count as received."""
        self._newest = in_flight.popleft() if in_flight else None
        self._ending, self._partials = [], []
        for entry in self._newest.batch.entries if self._newest else ():
            if entry.samples:
                entry.request.num_tokens += 1
                entry.request.num_placeholders = 0
                self.note_token(entry, self._newest)
                if entry.request.num_output_tokens >= entry.request.max_tokens:
                    self._ending.append(entry.request)
        ending = set(self._ending)
        for request in self.scheduler.running:
            if request.num_tokens - request.num_computed_tokens > 1 or not is_decoding(request):
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
        self._ending, self._newest = [], None

    def _is_hard(self) -> bool:
        """Whether the next step needs a loop over the running requests: who gets tokens, who is preempted."""
        group, partials = self._group, self._partials
        num_blocks = group.blocks_next
        if partials:
            budget = self.config.max_num_batched_tokens - group.size
            wanted = sum(request.num_tokens - request.num_computed_tokens for request in partials)
            if self.config.long_prefill_token_threshold or budget < 0:
                return True
            if wanted > budget and (len(partials) > 1 or self.scheduler.running[-1] is not partials[0]):
                return True
            for request in partials:
                total = request.num_computed_tokens + min(request.num_tokens - request.num_computed_tokens, budget)
                num_blocks += self.kv.blocks(total) - self.kv.blocks(request.num_computed_tokens)
        return num_blocks > self.kv.free

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
        scheduler, planned = self.scheduler, dict[Request, int]()
        if not self._partials and not (self._retry_admission and scheduler.waiting):
            return planned
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
        scheduler.admit_waiting(planned, budget, scheduler.long_prefill_threshold())
        self._retry_admission = bool(planned)
        return planned

    def _step(self, planned: dict[Request, int], start_ps: int, ready_ps: int) -> Process:
        """A step with prefills."""
        group, self._taken = self._group, 0
        entries = [entry_of(request, n) for request, n in planned.items()]
        decodes = [entry for entry in entries if entry.is_decode]  # recomputes one last token
        prefills = Prefills.of((e.num_tokens, e.num_computed_tokens) for e in entries if not e.is_decode)
        num_decodes = group.size + len(decodes)
        context = group.context + sum(entry.num_computed_tokens for entry in decodes)
        end_ps = ready_ps + step_ps(self.cost, num_decodes, context, prefills)
        num_regular = group.size - self._count_late(start_ps, end_ps)
        num_regular += sum(entry.request.last_token_ps == start_ps for entry in decodes)
        step = Step(self._batch(entries), start_ps, end_ps)
        for request, n in planned.items():
            self.note_start(request, request.num_computed_tokens - n, start_ps)
        self.write_span(start_ps, 1, end_ps - start_ps, 0, num_decodes, num_regular, context, prefills)
        ended = group.advance(1)
        self._partials = [request for request in self._partials if request not in planned]
        for entry in entries:
            if entry.samples:
                self._take_token(entry, step, ended)
            else:
                self._partials.append(entry.request)
        ended.sort(key=lambda request: request.seat)
        yield from self._pass(step, ended, start_ps)

    def _take_token(self, entry: Entry, step: Step, ended: list[Request]) -> None:
        request = entry.request
        request.num_tokens += 1
        self.note_token(entry, step)
        if request.num_output_tokens >= request.max_tokens:
            ended.append(request)
        else:
            self._group.join(request)

    def _span(self, start_ps: int, ready_ps: int) -> Process:
        """As many decode-only steps as nothing can change."""
        group = self._group
        slope_ps = self.cost.decode_context_ps * group.size
        duration_ps = ready_ps - start_ps + self.cost.decode_ps(group.size) + self.cost.decode_context_ps * group.context
        num_steps = self._span_length(start_ps, duration_ps, slope_ps) if ready_ps == start_ps else 1
        num_regular = group.size - self._count_late(start_ps, start_ps + duration_ps)
        num_blocks = group.blocks_for(num_steps) - self._taken
        self.write_span(
            start_ps, num_steps, duration_ps, slope_ps, group.size, num_regular, group.context, Prefills(), num_blocks
        )
        end_ps = start_ps + span_ps(num_steps, duration_ps, slope_ps)
        last_ps = end_ps - duration_ps - slope_ps * (num_steps - 1)
        if self.recorder.steps is not None:
            yield from self._walk(num_steps - 1, start_ps, duration_ps, slope_ps)
            num_blocks, num_steps, start_ps = group.blocks_for(1) - self._taken, 1, last_ps
        self.kv.take(num_blocks)
        self._taken = 0
        yield from self._pass(Step(self._batch([]), last_ps, end_ps), group.advance(num_steps), start_ps)

    def _walk(self, num_steps: int, start_ps: int, duration_ps: int, slope_ps: int) -> Process:
        """The same steps one by one, each written down in full."""
        for _ in range(num_steps):
            self.kv.take(self._group.blocks_for(1) - self._taken)
            self._taken = 0
            step = Step(self._batch([]), start_ps, start_ps + duration_ps)
            yield from self._pass(step, self._group.advance(1), start_ps)
            start_ps, duration_ps = step.end_ps, duration_ps + slope_ps

    def _span_length(self, start_ps: int, duration_ps: int, slope_ps: int) -> int:
        """Steps until the first last token, the first arrival that a plan can see, or the blocks' end."""
        if not self._has_stepped:  # somebody's last token may be older than the step before
            return 1
        if self._ending and (self.scheduler.waiting or self.arrivals.is_limited):  # seats are free after one step
            return 1
        num_steps = self._group.rounds_left
        next_ps = self.arrivals.next_ps
        if next_ps is not None and start_ps + span_ps(num_steps, duration_ps, slope_ps) > next_ps:
            before = steps_until(next_ps - start_ps, duration_ps, slope_ps)
            num_steps = min(num_steps, max(before, 1) if not self.config.async_scheduling else before + 1)
        return self._group.rounds_within(num_steps, self.kv.free + self._taken)

    def _pass(self, step: Step, ended: list[Request], start_ps: int) -> Process:
        """Let the time of what was planned go by, and let go of those that have ended by then."""
        self.device_free_ps = step.end_ps
        self._has_stepped = True
        if self.config.async_scheduling:
            yield from self.wait_until(start_ps)
            self._let_go()
            self._newest, self._ending = step, ended
            yield from self.wait_until(step.start_ps)
        else:
            yield from self.wait_until(step.end_ps)
            self._newest, self._ending = step, ended
            self._let_go()

    def _let_go(self) -> None:
        step, ended = self._newest, self._ending
        self._newest, self._ending = None, []
        if ended:
            for request in ended:
                self.kv.register(request, request.num_computed_tokens)
            self.release(ended)
            self._retry_admission = True
        if step is not None:
            self.write_step(step, ended)

    def _idle(self) -> Generator[simpy.Event, Any, bool]:
        """Nobody can be scheduled: let the device finish, or wait for an arrival; False where neither is to come."""
        if self._newest is not None:
            yield from self.wait_until(self.device_free_ps)
            self._let_go()
            self._retry_admission = True
            return True
        if self.has_work or self.arrivals.next_ps is None:
            return False
        yield from self.wait_until(self.arrivals.next_ps)
        return True

    def _count_late(self, start_ps: int, end_ps: int) -> int:
        """Members whose last token is older than the step before, which only the stepwise replica brings about."""
        if self._has_stepped:
            return 0
        late = [request for request in self._group.members() if request.last_token_ps != start_ps]
        self.recorder.gaps.extend(end_ps - request.last_token_ps for request in late)
        return len(late)

    def _batch(self, entries: list[Entry]) -> Batch:
        """The step's batch, in vLLM's order; complete only where steps are kept."""
        if self.recorder.steps is None:
            return NO_ENTRIES
        beside = {entry.request: entry for entry in entries}
        batch = []
        for request in self.scheduler.running:
            if request.joined_round != OUTSIDE:
                computed = request.num_computed_tokens + self._group.round - request.joined_round
                batch.append(Entry(request, 1, computed, True))
            elif request in beside:
                batch.append(beside[request])
        return Batch(batch, [])


NO_ENTRIES = Batch([], [])


def is_decoding(request: Request) -> bool:
    """Whether the prompt is computed."""
    return request.num_computed_tokens >= request.num_prompt_tokens


def entry_of(request: Request, n: int) -> Entry:
    """The entry of a request that has been advanced by n tokens."""
    return Entry(request, n, request.num_computed_tokens - n, request.num_computed_tokens == request.num_tokens)


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
