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
| there are other processes in the environment | every step is done | what those see must be of its time |
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
from simbatch.sim.engine.traffic import Feed, Lane
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
        self.holds: bool = self.decisions.holds
        self.is_timed = replica.is_timed
        self.steps: Timed | Untimed = Timed(now) if self.is_timed else Untimed(now)
        # whether the gateway is told when a step is launched whom it ends, before the engine lets go of them
        self.tells = now.tells
        self.told: list[Request] = []  # of whom that was the last time, where host or front end take time
        self.reach_ps = NEVER  # how far the decode-only steps to come reach, if it must be known first who comes

    def run(self, in_flight: deque[Step]) -> Generator[Any, Any, bool]:
        """Simulate until something needs the stepwise loop, or to the end; whether those who decode got tokens."""
        now, group, inbox = self.gathered, self.group, self.feed
        if not self.may_leap or inbox is None or self.replica.env.peek() < inf:
            return False
        now.gather(in_flight)
        while self._go_on(inbox):
            yield None
        has_given = now.has_stepped and group.size > 0
        now.settle(in_flight)
        return has_given

    def _go_on(self, inbox: Feed) -> bool:
        """Leap to where more must be known of who comes (True), or the stepwise loop is needed, or to the end."""
        replica, now, group, kv, steps = self.replica, self.gathered, self.group, self.kv, self.steps
        door, scheduler, line, lane = replica.door, self.scheduler, self.scheduler.waiting.line, replica.lane
        while True:
            planned = None
            if self.reach_ps == NEVER:
                if lane is not None and lane.horizon_ps <= replica.now_ps:
                    lane.wake_ps, lane.is_waiting = replica.now_ps + 1, False
                    return not lane.is_down
                if inbox.next_ps <= replica.now_ps or door.backlog:
                    self._take_in(inbox)
                    if lane is not None and lane.horizon_ps <= replica.now_ps:  # admissions took that long
                        continue
                    if door.backlog:
                        door.form_batch(replica.now_ps)
                # only now: whoever comes at the moment of a preemption is in the queue before who loses its seat
                if (group.blocks_next > kv.free or now.partials) and needs_stepping(now):
                    return False
                if self.holds and door.is_held(replica.now_ps):
                    return False
                if (now.partials or (line and scheduler.may_admit)) and not now.preempted:
                    planned = self._plan_prefills()
                if not planned and not group.size:
                    if lane is not None and (planned is not None or replica.has_work):
                        replica.publish()
                    if now.newest_ps != NEVER:
                        steps.finish()
                        if not self.asked_on_change:
                            scheduler.may_admit = True
                    elif not now.preempted:
                        if replica.has_work or replica.is_over:
                            return False
                        if lane is not None and (lane.is_down or inbox.next_ps > lane.horizon_ps):
                            lane.wake_ps, lane.is_waiting = inbox.next_ps, True
                            return not lane.is_down
                        if inbox.next_ps > replica.now_ps:
                            replica.now_ps = inbox.next_ps
                    now.close_preemptions()
                    continue
            if lane is not None and not planned and not self._is_known(lane, inbox):
                return True
            steps.advance(planned)

    def _is_known(self, lane: Lane, inbox: Feed) -> bool:
        """Whether nobody can come before the end of the decode-only steps to come, or somebody does.

        Nothing of them shows before their end, unless tokens are on their way that end requests.
        """
        now, steps = self.gathered, self.steps
        if self.reach_ps == NEVER:
            if not self.tells and (now.ending or now.noted or now.losing):
                return True
            self.reach_ps = steps.reach_ps()
        next_ps = min(inbox.next_ps, self.reach_ps)
        if lane.is_forced or next_ps <= lane.horizon_ps:
            self.reach_ps = NEVER
            return True
        if self.is_timed and now.ending and now.ending is not self.told:
            self.told = now.ending
            lane.tell(self.told, steps.leaves_ps())
        lane.wake_ps, lane.is_waiting = next_ps, True
        return False

    def _take_in(self, inbox: Feed) -> None:
        """Take in who has come: for nothing, or alone in the environment, so that the clock may just go on."""
        replica, scheduler = self.replica, self.scheduler
        has_waiting, may_admit, lane = bool(scheduler.waiting.line), scheduler.may_admit, replica.lane
        while inbox.next_ps <= replica.now_ps:
            replica.now_ps = inbox.take(replica.now_ps, self.add)
            if lane is not None and lane.horizon_ps <= replica.now_ps:  # others may have come meanwhile
                break
        if has_waiting and self.head_is_stable:
            scheduler.may_admit = may_admit

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
        if scheduler.waiting.line and (scheduler.may_admit or not self.asked_on_change):
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
