"""The running requests, taken together for leaping, and given back for steps of their own; when that may be.

| what | then | because |
|---|---|---|
| somebody listens (`explain`, parity) | every step is done | each is told |
| the policy plans every step | every step is done | it sees every step |
| `prefill_schedule_interval` holds prefills back | every step is done | steps since the last prefill are counted |
| host or front end take time, beside other processes | every step is done | what those see must be of its time |
| no chunked prefill, a policy asked on changes | every step is done | an end lets a longer prompt in before its seat |
| blocks run out, the victim is not the last admitted | that step is done | the loop over running requests decides |
| several prefills under way, and not all fit the budget | that step is done | who gets how much hangs on the order |
| noise of the device, or launches of decodes that are drawn | spans of one step | each has a time of its own |
| last tokens in flight, and somebody waits, or sends at an end | a span of one step | a seat is free after it |
| an arrival | the span ends with the first step that may see it | it may be admitted |
| a decode's last token, blocks running out | the span ends there | the batch changes |
| the front end is not done with the chunks of the step before | steps are done one by one | they leave in a line |
| another term (device, host, lag) sets the pace | the leap goes on under it | a closed form holds under one term |
"""

from __future__ import annotations

from collections import deque

from simbatch.sim.engine.decode_group import OUTSIDE
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import NOTHING, Step
from simbatch.sim.scheduler.batch import Batch, Entry, is_partial
from simbatch.sim.scheduler.request import NEVER, Request

NO_ENTRIES = Batch([], [])


class Gathered:
    """Who decodes (`group`) and who does not yet (`partials`), and the newest step, whose tokens are still to come.

    The newest step's tokens count as received in the group, ahead of the clock; when they come about is written down
    when it is let go: for those in its `noted` one by one, for all others with the step.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.group = replica.group
        self.partials: list[Request] = []  # running requests whose prompt, or what is recomputed, is not done
        self.preempted: list[Request] = []  # to make room for the step that is being planned
        self.taken = 0  # blocks that the group has for its next round already
        self.has_stepped = False  # since they were gathered
        # of the step planned last, if it is in flight; it ends at the device's `free_ps`
        self.newest_ps = NEVER  # when the device begins it; NEVER: there is none
        self.features = NOTHING  # what it computes, where host and front end take time
        self.num_regular = 0
        self.step: Step | None = None  # in full, where steps are kept
        self.noted: list[Request] = []  # who gets a first token, or one that does not come one step after another
        self.ending: list[Request] = []  # whose last tokens it brings: their seats are not free yet
        self.losing: list[Request] = []  # who has been preempted since, its token under way
        # where not even one request may fit, requests can rotate for ever, which the stepwise loop notices
        self._holds_longest = replica.kv.num_usable * replica.config.block_size >= replica.config.max_model_len

    def gather(self, in_flight: deque[Step]) -> None:
        """Take the decodes together; tokens in flight count as received."""
        step = self.step = in_flight.popleft() if in_flight else None
        self.newest_ps, self.noted = (step.start_ps, step.noted) if step else (NEVER, [])
        self.features, self.num_regular = (step.features, step.num_regular) if step else (NOTHING, 0)
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
            step = self.step or Step(NO_ENTRIES, begin_ps, begin_ps, begin_ps, end_ps, self.features, replica.number)
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


def may_leap(replica: Replica) -> bool:
    """Whether anything may ever be leapt over in this run."""
    decisions = replica.decisions
    refuses_chunks = not replica.config.enable_chunked_prefill
    needs_all = decisions.plans or replica.scheduler.cadence is not None
    return replica.listener is None and not (needs_all or (refuses_chunks and decisions.asked_on_change))


def needs_stepping(gathered: Gathered) -> bool:
    """Whether the next step needs a loop over the running requests; if not, there is room for it now."""
    replica, group, partials = gathered.replica, gathered.group, gathered.partials
    kv, config, decides_budget = replica.kv, replica.config, replica.decisions.decides_budget
    if not partials:
        return group.blocks_next > kv.free and not gathered.make_room(0)
    is_in_mid = len(partials) > 1 or replica.scheduler.running[-1] is not partials[0]
    if decides_budget and is_in_mid:
        return True
    budget = config.max_num_batched_tokens - group.size
    if config.long_prefill_token_threshold or budget < 0:
        return True
    wanted = sum(request.num_tokens - request.num_computed_tokens for request in partials)
    if wanted > budget and is_in_mid:
        return True
    num_blocks = 0
    for request in partials:
        total = request.num_computed_tokens + min(request.num_tokens - request.num_computed_tokens, budget)
        num_blocks += kv.blocks(total) - kv.blocks(request.num_computed_tokens)
    is_short = group.blocks_next + num_blocks > kv.free  # at most: the policy's budget is not asked for yet
    return is_short and (decides_budget or not gathered.make_room(num_blocks))
