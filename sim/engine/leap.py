"""Leaps: what cannot change is not simulated.

Between two changes of the batch every running request decodes one token a step. A span of k such steps is one event:
k ends at the first last token, at the first arrival that may be admitted, or where blocks run out; their times come in
closed form (`untimed`, or `timed` where host and front end take time). A step with prefills is one event too and costs
the same however many requests decode beside them, and where blocks run out a tail of the running requests is
preempted. Otherwise the decodes are put back as the stepwise loop would have them, and it does a step:

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

The clock is ahead of the bookkeeping by design: a span's tokens are counted when it is planned. Asynchronous
scheduling plans step k+1 before the tokens of step k are taken in, so seats and blocks of requests that end in step k
(`ending`) are free only after step k+1 is planned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from math import inf
from typing import Any

from simbatch.sim.engine.gathered import Gathered
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Step
from simbatch.sim.engine.timed import Timed
from simbatch.sim.engine.traffic import FAR, Feed
from simbatch.sim.engine.untimed import Untimed
from simbatch.sim.scheduler.request import NEVER, Request, has_prefill


class Leap:
    """Advances a replica from change to change."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.config, self.decisions = replica.config, replica.decisions
        self.scheduler, self.kv, self.device = replica.scheduler, replica.kv, replica.device
        self.group, self.feed, self.add = replica.group, replica.feed, replica.door.add
        self.gathered = Gathered(replica)
        self.may_leap = may_leap(replica)
        # what is asked at every step, looked up once
        self.max_tokens: int = self.config.max_num_batched_tokens
        self.asked_on_change: bool = self.decisions.asked_on_change
        self.head_is_stable: bool = self.decisions.head_is_stable
        now = self.gathered
        # whether the gateway is told when a step is launched whom it ends, before the engine lets go of them
        self.tells = now.is_async and not replica.inbox.is_limited and not replica.door.is_static
        self.told: list[Request] = []  # of whom that was the last time, where host or front end take time
        self.untimed = Untimed(now)
        self.timed = Timed(now) if replica.is_timed else None

    def run(self, in_flight: deque[Step]) -> Generator[Any, Any, bool]:
        """Simulate until something needs the stepwise loop, or to the end; whether those who decode got tokens."""
        replica = self.replica
        is_alone = replica.env.peek() == inf  # and will be: others would have an event in the queue
        self.gathered.is_alone = is_alone
        inbox = self.feed
        if not self.may_leap or inbox is None or (self.timed is not None and not is_alone):
            return False
        now, group, kv, device = self.gathered, self.group, self.kv, self.device
        now.gather(in_flight)
        door, scheduler, waiting = replica.door, self.scheduler, self.scheduler.waiting
        untimed, timed, holds = self.untimed, self.timed, bool(self.decisions.holds)
        is_async, keeps_steps, lane = now.is_async, now.keeps_steps, replica.lane
        while True:
            planned = None
            if untimed.left is None:
                if lane is not None and lane.horizon_ps <= replica.now_ps:
                    while lane.horizon_ps <= replica.now_ps and not lane.is_down:  # `Replica.until_known`
                        lane.wake_ps, lane.is_waiting = replica.now_ps + 1, False
                        yield None
                    if lane.is_down:
                        break
                if inbox.next_ps <= replica.now_ps or door.backlog:
                    self._take_in(inbox)
                    if lane is not None and lane.horizon_ps <= replica.now_ps:  # admissions took that long
                        continue
                    if door.backlog:
                        door.form_batch(replica.now_ps)
                # only now: whoever comes at the moment of a preemption is in the queue before who loses its seat
                if (group.blocks_next > kv.free or now.partials) and needs_stepping(now):
                    break
                if holds and door.is_held(replica.now_ps):
                    break
                if not now.preempted and (now.partials or (scheduler.may_admit and waiting)):
                    planned = self._plan_prefills()
                if not planned and not group.size:
                    if lane is not None and (planned is not None or replica.has_work):
                        replica.publish()
                    if (yield from self._idle()) or now.preempted:
                        now.close_preemptions()
                        continue
                    break
            # nothing of a span shows before its end, unless tokens are on their way that end requests
            is_due = untimed.left is not None or (not self.tells and (now.ending or now.noted or now.losing))
            if lane is not None and not planned and not is_due:
                # until nobody can come before the span's end, or somebody does: nothing of it shows before
                reach_ps = untimed.reach_ps() if timed is None else timed.reach_ps()
                while not lane.is_forced:
                    next_ps = inbox.next_ps
                    if reach_ps < next_ps:
                        next_ps = reach_ps
                    if next_ps <= lane.horizon_ps:
                        break
                    if timed is not None and now.ending and now.ending is not self.told:
                        self.told = now.ending
                        lane.tell(self.told, timed.leaves_ps())
                    lane.wake_ps, lane.is_waiting = next_ps, True
                    yield None
            if timed is not None:
                timed.advance(planned)
                continue
            schedule_ps = replica.now_ps
            start_ps = device.free_ps if device.free_ps > schedule_ps else schedule_ps
            newest_ps, ended = untimed.step(planned, start_ps) if planned else untimed.span(start_ps)
            now.has_stepped = True
            if lane is not None:
                replica.publish()
                if ended and self.tells:
                    lane.tell(ended, device.free_ps)
            if now.preempted or (ended and now.refuses_chunks):
                now.close_preemptions()
            if is_async and (now.ending or now.noted or keeps_steps):
                if now.is_watched:
                    yield from replica.wait_until(start_ps)
                now.let_go(start_ps, start_ps)
            wake_ps = newest_ps if is_async else device.free_ps
            if wake_ps > replica.now_ps:
                if not is_alone:
                    yield replica.env.timeout(wake_ps - replica.env.now)
                replica.now_ps = wake_ps
            if is_async or ended or keeps_steps:
                now.newest_ps, now.ending, now.step = newest_ps, ended, untimed.kept
                if not is_async:
                    now.let_go(wake_ps, wake_ps)
        has_given = now.has_stepped and group.size > 0
        now.settle(in_flight)
        return has_given

    def _take_in(self, inbox: Feed) -> None:
        """Take in who has come: for nothing, or alone in the environment, so that the clock may just go on."""
        replica, scheduler = self.replica, self.scheduler
        num_waiting, may_admit = len(scheduler.waiting), scheduler.may_admit
        lane = replica.lane
        while inbox.next_ps <= replica.now_ps:
            replica.now_ps = inbox.take(replica.now_ps, self.add)
            if lane is not None and lane.horizon_ps <= replica.now_ps:  # others may have come meanwhile
                break
        if num_waiting and self.head_is_stable:
            scheduler.may_admit = may_admit

    def _idle(self) -> Generator[Any, Any, bool]:
        """Nobody can be scheduled: take in what is in flight, or wait for an arrival; False where there is neither."""
        now, replica = self.gathered, self.replica
        if now.newest_ps != NEVER:
            if self.timed:
                self.timed.let_go(self.device.free_ps)
                now.newest_ps = NEVER
            else:
                yield from replica.wait_until(self.device.free_ps)
                now.let_go(replica.now_ps, replica.now_ps)
            if not self.asked_on_change:
                self.scheduler.may_admit = True
            return True
        if replica.has_work or replica.is_over:
            return False
        yield from replica.until_sent(FAR)
        return not (replica.is_over or (replica.lane is not None and replica.lane.is_down))

    def _plan_prefills(self) -> dict[Request, int]:
        """Who is computed beside the decodes: requests in mid-prefill, and new ones if they can be admitted."""
        now, scheduler, group = self.gathered, self.scheduler, self.group
        planned: dict[Request, int] = {}
        now.taken = group.blocks_next
        if now.taken:
            self.kv.take(now.taken)
        budget = self.max_tokens
        if self.asked_on_change:
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
        if scheduler.waiting and (scheduler.may_admit or not self.asked_on_change):
            scheduler.admit_waiting(planned, budget, scheduler.long_prefill_threshold())
        scheduler.may_admit = has_prefill(planned) if self.asked_on_change else bool(planned)
        group.ahead, self.replica.decoding_before = (0, 0), None
        return planned


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
