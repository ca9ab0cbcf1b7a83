"""The running requests, taken together for leaping, and given back for steps of their own."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from simbatch.sim.cost.model import Features, Sums, sums_of
from simbatch.sim.engine.decode_group import NOBODY, OUTSIDE, by_seat
from simbatch.sim.engine.resources import Step
from simbatch.sim.scheduler.request import NEVER, Batch, Entry, Request, is_decode, is_partial

if TYPE_CHECKING:
    from simbatch.sim.engine.replica import Replica

NO_ENTRIES = Batch([], [])
# What a step computes, who gets a token that does not come one step after the one before, who is scheduled for the
# first time, whose last token it brings, and how many tokens follow one of the step before.
Computed = tuple[Sums, list[Request], list[Request], list[Request], int]


class Gathered:
    """Who decodes (`group`) and who does not yet (`partials`), and the newest step, whose tokens are still to come.

    The newest step's tokens count as received in the group, ahead of the clock; when they come about is written down
    when it is let go: for those in its `noted` one by one, for all others with the step.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.group, self.windows = replica.group, replica.cost.windows
        self.line = replica.scheduler.waiting.line
        self.is_limited: bool = replica.inbox.is_limited
        self.decides_budget: bool = replica.decisions.decides_budget
        self.is_async = replica.config.async_scheduling
        self.refuses_chunks = not replica.config.enable_chunked_prefill
        # whether anybody would notice if the end of a step were written down a little before its time
        self.keeps_steps = replica.recorder.steps is not None
        self.is_watched = (
            replica.decisions.listens
            or replica.inbox.is_limited
            or self.keeps_steps
            or replica.door.backlog is not None
        )
        # whether the gateway is told when a step is launched whom it ends, before the engine lets go of them
        self.tells = self.is_async and not self.is_limited and not replica.door.is_static
        self.partials: list[Request] = []  # running requests whose prompt, or what is recomputed, is not done
        self.preempted: list[Request] = []  # to make room for the step that is being planned
        self.taken = 0  # blocks that the group has for its next round already
        self.has_stepped = False  # since they were gathered
        # of the step planned last, if it is in flight; it ends at the device's `free_ps`
        self.newest_ps = NEVER  # when the device begins it; NEVER: there is none
        # where host and front end take time: whom it computes, and how long it takes to take in their tokens
        self.num_requests = self.num_decodes = self.num_regular = 0
        self.update_ps = 0
        self.step: Step | None = None  # in full, where steps are kept, or as long as there is no newer one
        self.noted: list[Request] = []  # who gets a first token, or one that does not come one step after another
        self.ending: list[Request] = []  # whose last tokens it brings: their seats are not free yet
        self.losing: list[Request] = []  # who has been preempted since, its token under way
        # where not even one request may fit, requests can rotate for ever, which the stepwise loop notices
        self._holds_longest = replica.kv.num_usable * replica.config.block_size >= replica.config.max_model_len

    def gather(self, in_flight: deque[Step]) -> None:
        """Take the decodes together; tokens in flight count as received."""
        step = self.step = in_flight.popleft() if in_flight else None
        self.newest_ps, self.noted = (step.start_ps, step.noted) if step else (NEVER, [])
        self.num_requests = self.num_decodes = self.num_regular = self.update_ps = 0
        if step is not None and (num_requests := step.features.num_requests):
            self.num_requests, self.num_decodes = num_requests, step.features.num_decodes
            self.num_regular, self.update_ps = step.num_regular, self.replica.host.update_ps(num_requests)
        self.ending, self.partials = [], []
        for entry in step.batch.entries if step else ():
            request = entry.request
            if entry.samples:
                request.num_tokens += 1
                request.num_placeholders = 0
                if request.num_output_tokens >= request.max_tokens:
                    self.ending.append(request)
        ending = set(self.ending)
        for request in self.replica.scheduler.running:
            if is_partial(request):
                self.partials.append(request)
            elif request not in ending:
                self.group.join(request)
        self.replica.partials = self.partials
        self.has_stepped = False
        if not self.replica.decisions.asked_on_change:
            self.replica.scheduler.may_admit = True

    def settle(self, in_flight: deque[Step]) -> None:
        """Give every request its own numbers back; the newest step is in flight again if it was not let go."""
        replica = self.replica
        is_async = replica.config.async_scheduling
        members = self.group.disband()
        for request in members:
            replica.kv.register(request, request.num_computed_tokens - is_async)
            if self.has_stepped:
                request.last_step = replica.number
                if self.newest_ps == NEVER:  # of a step in flight it is written when that is taken in
                    request.last_token_ps = self.last_sent_ps
        if self.newest_ps != NEVER:
            begin_ps, end_ps = self.newest_ps, replica.device.free_ps
            step = self.step if self.keeps_steps or not self.has_stepped else None
            if step is None:
                features = Features(self.num_decodes, 0, 0, 0, 0, self.num_requests - self.num_decodes)
                step = Step(NO_ENTRIES, begin_ps, begin_ps, begin_ps, end_ps, features, replica.number)
            if self.has_stepped:
                step.num_regular = self.num_regular
                step.noted = self.noted  # none, where nothing but the device takes time: it is known when they come
                if replica.recorder.steps is None:
                    step.batch = self._batch_in_flight(members)
            for entry in step.batch.entries:
                if entry.samples:
                    entry.request.num_tokens -= 1
                    entry.request.num_placeholders = 1
            in_flight.append(step)
        self.newest_ps, self.step = NEVER, None
        self.ending, self.noted, self.losing = [], [], []
        replica.partials = ()

    @property
    def last_sent_ps(self) -> int:
        """When the newest tokens that have been taken in left the server."""
        return self.replica.sent_ps if self.replica.is_timed else self.replica.device.free_ps

    def _batch_in_flight(self, members: list[Request]) -> Batch:
        """What the newest step computes, as much of it as its update needs."""
        tokens = sorted(members + self.ending, key=lambda request: request.seat)
        entries = [Entry(request, 1, request.num_computed_tokens - 1, True) for request in tokens]
        return Batch(entries + [Entry(request, 1, 0, False) for request in self.partials], [])

    def let_go(self, updated_ps: int, sent_ps: int) -> None:
        """The newest step's tokens exist: seats and blocks of those whose last ones they are, are free."""
        noted, ended = self.noted, self.ending
        self.newest_ps, self.ending, self.noted = NEVER, NOBODY, NOBODY
        if noted:
            self.replica.note_tokens(noted, updated_ps, sent_ps)
        if self.losing:
            for request in self.losing:
                request.last_token_ps = sent_ps
            self.losing = []
        if ended:
            self.replica.release(ended, updated_ps, sent_ps)
        if self.keeps_steps:
            step, self.step = self.step, None
            if step is not None and step.batch.entries:
                step.updated_ps = updated_ps
                self.replica.log_step(step, ended)

    def compute(self, planned: dict[Request, int], is_paused: bool) -> Computed:
        """Everybody's token of a step with prefills; if the device was idle before it (`is_paused`), none follows one.

        Who decodes beside them is counted, not looped over.
        """
        group, replica, partials = self.group, self.replica, self.partials
        number = replica.number
        replica.number = newest = number + 1 + is_paused
        noted = [] if self.has_stepped else self.late(NEVER - 1 if is_paused else number)
        num_decodes, context, num_regular = group.size, group.context, group.size - len(noted)
        in_window, windows = group.in_window, self.windows
        entries, fresh, self.taken = [], [], 0
        ended = group.advance(1)
        if partials:
            partials[:] = [request for request in partials if request not in planned]
        for request, q in planned.items():
            total = request.num_computed_tokens
            decodes = q == 1 and is_decode(request)
            entries.append((q, total - q, decodes))
            if request.scheduled_ps < 0:
                fresh.append(request)
                request.num_cached_tokens = total - q
            if total < request.num_tokens:
                partials.append(request)
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
                ended = sorted([*ended, request], key=by_seat)
        return sums_of(entries, num_decodes, context, windows, in_window), noted, fresh, ended, num_regular

    def close_preemptions(self) -> None:
        """The step that preempted is planned, or there are more tokens for whole prompts: the next one may admit."""
        self.preempted, self.replica.scheduler.may_admit = [], True

    def most_steps(self) -> int:
        """How many decode-only steps in a row change nothing, whenever they end; arrivals and blocks are not asked."""
        if self.preempted or not self.has_stepped:
            return 1
        if self.ending and (self.line or self.is_limited):
            return 1
        if self.partials and self.decides_budget:  # it had nothing for them, and is asked again
            return 1
        group = self.group
        return group.rounds_left if group.num_growing else group.ends[0] - group.round

    def make_room(self, num_partial_blocks: int) -> bool:
        """Preempt the last admitted until the others' blocks suffice; False if that is not who goes, or how.

        Requests get their blocks in order of admission and the victim is always the last, so what is free goes to the
        first, then what each victim gives back: as many victims as it takes, whoever it was that needed a block.
        """
        group, kv, running = self.group, self.replica.kv, self.replica.scheduler.running
        if not (self.replica.decisions.victim_is_last and self.has_stepped and self._holds_longest):
            return False
        if self.partials and (len(self.partials) > 1 or running[-1] is not self.partials[0]):
            return False
        self.taken = 0
        while running and group.blocks_next - self.taken + num_partial_blocks > kv.free:
            num_blocks = min(kv.free, group.blocks_next - self.taken)  # for those before the one who finds none
            kv.take(num_blocks)
            self.taken += num_blocks
            num_partial_blocks = 0  # the partial is the first to go
            self._preempt_last()
        num_blocks = group.blocks_next - self.taken
        kv.take(num_blocks)
        self.taken += num_blocks
        return True

    def _preempt_last(self) -> None:
        replica = self.replica
        scheduler, is_async = replica.scheduler, replica.config.async_scheduling
        victim = scheduler.running[-1]
        is_member = victim.joined_round != OUTSIDE
        if is_member:
            self.group.leave(victim)
            victim.last_step = replica.number
            if self.newest_ps == NEVER or not replica.is_timed:
                victim.last_token_ps = self.last_sent_ps
            else:
                self.losing.append(victim)
        if self.partials:
            self.partials.clear()
        else:
            replica.kv.register(victim, victim.num_computed_tokens - is_async)
        self.preempted.append(victim)
        # the token that is in flight is lost, and the policy is not shown it
        in_flight = is_async and is_member
        victim.num_tokens -= in_flight
        scheduler.preempt(victim, len(scheduler.running) - 1)
        victim.num_tokens += in_flight

    def late(self, number: int) -> list[Request]:
        """Members whose last token is older than step `number`, which only the stepwise loop brings about."""
        return [request for request in self.group.members() if request.last_step != number]

    def batch(self, planned: dict[Request, int]) -> Batch:
        """The batch of the step that is planned, in vLLM's order."""
        entries = []
        for request in self.replica.scheduler.running:
            computed = request.num_computed_tokens
            if request.joined_round != OUTSIDE:
                entries.append(Entry(request, 1, computed + self.group.round - request.joined_round, True))
            elif request in planned:
                n = planned[request]
                entries.append(Entry(request, n, computed - n, computed == request.num_tokens))
        return Batch(entries, list(self.preempted))
