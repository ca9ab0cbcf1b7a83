"""From the stepwise replica to spans and back: the running requests' numbers, taken together and given back."""

from __future__ import annotations

from collections import deque
from typing import Any

from simbatch.sim.engine.decode_group import OUTSIDE, DecodeGroup
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.step import Step
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import Batch, Entry, is_decoding, is_partial

NO_ENTRIES = Batch([], [])


class GatheringReplica(Replica):
    """A replica that can hand its running requests to a `DecodeGroup`, and take them back for a step of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group = DecodeGroup(self.config.block_size)
        self._partials: list[Request] = []  # running requests whose prompt, or what is recomputed, is not done
        self._newest_ps = NEVER  # start of the step planned last, if it is not let go; it ends at `device_free_ps`
        self._newest_batch = NO_ENTRIES  # what it computes, if steps are kept
        self._ending: list[Request] = []  # whose last tokens it brings: their seats are not free yet
        self._preempted: list[Request] = []  # to make room for the step that is being planned
        self._taken = 0  # blocks that the group has for its next round already
        # where not even one request may fit, requests can rotate for ever, which the stepwise replica notices
        self._holds_longest = self.kv.num_usable * self.config.block_size >= self.config.max_model_len
        self._refuses_chunks = not self.config.enable_chunked_prefill
        # whether anybody would notice if the end of a step were written down a little before its time
        self._is_watched = (
            self.decisions.listens
            or self.arrivals.is_limited
            or self.recorder.steps is not None
            or self.backlog is not None
        )
        self._has_stepped = False  # since they were gathered

    def _gather(self, in_flight: deque[Step]) -> None:
        """Take the decodes together; tokens in flight count as received."""
        step = in_flight.popleft() if in_flight else Step(NO_ENTRIES, NEVER, NEVER)
        self._newest_ps, self._newest_batch = step.start_ps, step.batch
        self._ending, self._partials = [], []
        for entry in step.batch.entries:
            request = entry.request
            if entry.samples:
                if not step.is_counted:
                    self.note_token(request, entry.is_decode, step.start_ps, step.end_ps)
                request.num_tokens += 1
                request.num_placeholders = 0
                if request.num_output_tokens >= request.max_tokens:
                    self._ending.append(request)
        ending = set(self._ending)
        for request in self.scheduler.running:
            if is_partial(request):
                self._partials.append(request)
            elif request not in ending:
                self._group.join(request)
        self._has_stepped = False
        if not self.decisions.asked_on_change:
            self.scheduler.may_admit = True

    def _settle(self, in_flight: deque[Step]) -> None:
        """Give every request its own numbers back; the newest step is in flight again if scheduling is asynchronous."""
        is_async, in_flight_still = self.config.async_scheduling, self._newest_ps != NEVER
        members = self._group.disband()
        if members and self._has_stepped:  # they got tokens: the engine is not stuck
            self._num_fruitless = 0
        for request in members:
            self.kv.register(request, request.num_computed_tokens - is_async)
            if self._has_stepped:
                request.last_token_ps = self.device_free_ps
        if in_flight_still:
            batch = self._newest_batch
            if self._has_stepped and self.recorder.steps is None:
                tokens = sorted(members + self._ending, key=lambda request: request.seat)
                entries = [Entry(request, 1, request.num_computed_tokens - 1, True) for request in tokens]
                batch = Batch(entries + [Entry(request, 1, 0, False) for request in self._partials], [])
            for entry in batch.entries:
                if entry.samples:
                    entry.request.num_tokens -= 1
                    entry.request.num_placeholders = 1
            in_flight.append(Step(batch, self._newest_ps, max(self.device_free_ps, self.now_ps), is_counted=True))
        self._newest_ps, self._ending = NEVER, []

    def _is_hard(self) -> bool:
        """Whether the next step needs a loop over the running requests; if not, there is room for it now."""
        group, partials = self._group, self._partials
        if not partials:
            return group.blocks_next > self.kv.free and not self._make_room(0)
        if self.decisions.decides_budget and (len(partials) > 1 or self.scheduler.running[-1] is not partials[0]):
            return True
        budget = self.config.max_num_batched_tokens - group.size
        wanted = sum(request.num_tokens - request.num_computed_tokens for request in partials)
        if self.config.long_prefill_token_threshold or budget < 0:
            return True
        if wanted > budget and (len(partials) > 1 or self.scheduler.running[-1] is not partials[0]):
            return True
        num_blocks = 0
        for request in partials:
            total = request.num_computed_tokens + min(request.num_tokens - request.num_computed_tokens, budget)
            num_blocks += self.kv.blocks(total) - self.kv.blocks(request.num_computed_tokens)
        is_short = group.blocks_next + num_blocks > self.kv.free  # at most: the policy's budget is not asked for yet
        return is_short and (self.decisions.decides_budget or not self._make_room(num_blocks))

    def ahead_of(self, request: Request) -> tuple[int, int]:
        """Of a member of the group, whose own numbers stand still."""
        return self._group.ahead_of(request)

    def decoding(self) -> tuple[int, int]:
        """The same, of the group without a loop over it."""
        group = self._group
        if not group.size or self._decoding is not None:
            return super().decoding()
        if not self._partials:
            return group.size, group.context
        num_decodes, context = group.size, group.context
        for request in self._partials:
            if is_decoding(request):  # the last token of what it computes again
                num_decodes, context = num_decodes + 1, context + request.num_computed_tokens
        return num_decodes, context

    def _make_room(self, num_partial_blocks: int) -> bool:
        """Preempt the last admitted until the others' blocks suffice; False if that is not who goes, or how.

        Requests get their blocks in order of admission and the victim is always the last, so what is free goes to the
        first, then what each victim gives back: as many victims as it takes, whoever it was that needed a block.
        """
        group, kv, running = self._group, self.kv, self.scheduler.running
        if not (self.decisions.victim_is_last and self._has_stepped and self._holds_longest):
            return False
        if self._partials and (len(self._partials) > 1 or running[-1] is not self._partials[0]):
            return False
        self._taken = 0
        while running and group.blocks_next - self._taken + num_partial_blocks > kv.free:
            num_blocks = min(kv.free, group.blocks_next - self._taken)  # for those before the one who finds none
            kv.take(num_blocks)
            self._taken += num_blocks
            num_partial_blocks = 0  # the partial is the first to go
            self._preempt_last()
        num_blocks = group.blocks_next - self._taken
        kv.take(num_blocks)
        self._taken += num_blocks
        return True

    def _preempt_last(self) -> None:
        victim = self.scheduler.running[-1]
        is_member = victim.joined_round != OUTSIDE
        if is_member:
            self._group.leave(victim)
            victim.last_token_ps = self.device_free_ps
        if self._partials:
            self._partials.clear()
        else:
            self.kv.register(victim, victim.num_computed_tokens - self.config.async_scheduling)
        self._preempted.append(victim)
        # the token that is in flight is lost, and the policy is not shown it
        in_flight = self.config.async_scheduling and is_member
        victim.num_tokens -= in_flight
        self.scheduler.preempt(victim, len(self.scheduler.running) - 1)
        victim.num_tokens += in_flight

    def _count_late(self, start_ps: int, end_ps: int) -> int:
        """Members whose last token is older than the step before, which only the stepwise replica brings about."""
        late = [request for request in self._group.members() if request.last_token_ps != start_ps]
        self.recorder.gaps.extend(end_ps - request.last_token_ps for request in late)
        return len(late)

    def _batch(self, planned: dict[Request, int]) -> Batch:
        """The batch of the step that is planned, in vLLM's order."""
        entries = []
        for request in self.scheduler.running:
            computed = request.num_computed_tokens
            if request.joined_round != OUTSIDE:
                entries.append(Entry(request, 1, computed + self._group.round - request.joined_round, True))
            elif request in planned:
                n = planned[request]
                entries.append(Entry(request, n, computed - n, computed == request.num_tokens))
        return Batch(entries, list(self._preempted))
