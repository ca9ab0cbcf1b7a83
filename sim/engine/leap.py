"""Leaps: what cannot change is not simulated.

Between two changes of the batch every running request decodes one token a step. A span of k such steps is one event:
k ends at the first last token, at the first arrival that may be admitted, or where blocks run out; their times come in
closed form (`untimed`, or `timed` where host and front end take time). A step with prefills is one event too and costs
the same however many requests decode beside them, and where blocks run out a tail of the running requests is
preempted. When that is not possible stands in `gathered`; then the decodes are put back as the stepwise loop would
have them, and it does a step.

The clock is ahead of the bookkeeping by design: a span's tokens are counted when it is planned. Asynchronous
scheduling plans step k+1 before the tokens of step k are taken in, so seats and blocks of requests that end in step k
(`ending`) are free only after step k+1 is planned.
"""

from __future__ import annotations

from collections.abc import Generator
from math import inf
from typing import TYPE_CHECKING, Any

from simbatch.sim.cost.model import Features, features_of
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.gathered import Gathered, may_leap, needs_stepping
from simbatch.sim.engine.replica import Process, Replica
from simbatch.sim.engine.timed import Timed
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.engine.untimed import Untimed
from simbatch.sim.scheduler.batch import has_prefill, is_decode
from simbatch.sim.scheduler.request import NEVER, Request

if TYPE_CHECKING:
    from simbatch.sim.engine.stepwise import Stepwise


class Leap:
    """Advances a replica from change to change."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.config, self.decisions = replica.config, replica.decisions
        self.scheduler, self.kv, self.device = replica.scheduler, replica.kv, replica.device
        self.group, self.inbox = replica.group, replica.inbox
        self.recorder = replica.recorder
        self.write_segment = replica.recorder.segments.extend
        self.gathered = Gathered(replica)
        self.may_leap = may_leap(replica)
        self.is_async = replica.config.async_scheduling
        self.refuses_chunks = not self.config.enable_chunked_prefill
        # whether anybody would notice if the end of a step were written down a little before its time
        self.keeps_steps = replica.recorder.steps is not None
        self.is_watched = (
            self.decisions.listens or self.inbox.is_limited or self.keeps_steps or replica.door.backlog is not None
        )
        self.num_regular = 0  # decodes of the newest step that follow a token of the step before
        self.is_alone = True
        # whether the gateway is told when a step is launched whom it ends, before the engine lets go of them
        self.tells = self.is_async and not replica.is_timed and not self.inbox.is_limited and not replica.door.is_static
        self.untimed = Untimed(self)
        self.timed = Timed(self) if replica.is_timed else None

    def run(self, stepwise: Stepwise) -> Process:
        """Simulate until something needs the stepwise loop, or to the end."""
        replica = self.replica
        self.is_alone = is_alone = replica.env.peek() == inf  # and will be: others would have an event in the queue
        if not self.may_leap or (self.timed is not None and not is_alone):
            return
        now, group, kv, device = self.gathered, self.group, self.kv, self.device
        now.gather(stepwise.in_flight)
        inbox, door, scheduler, waiting = self.inbox, replica.door, self.scheduler, self.scheduler.waiting
        untimed, timed, holds = self.untimed, self.timed, self.decisions.holds
        is_async, keeps_steps, lane = self.is_async, self.keeps_steps, replica.lane
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
                    self._take_in()
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
                        self.close_preemptions()
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
            if now.preempted or (ended and self.refuses_chunks):
                self.close_preemptions()
            if is_async and (now.ending or now.noted or keeps_steps):
                if self.is_watched:
                    yield from replica.wait_until(start_ps)
                self.let_go(start_ps, start_ps)
            wake_ps = newest_ps if is_async else device.free_ps
            if wake_ps > replica.now_ps:
                if not is_alone:
                    yield replica.env.timeout(wake_ps - replica.env.now)
                replica.now_ps = wake_ps
            if is_async or ended or keeps_steps:
                now.newest_ps, now.ending, now.step = newest_ps, ended, untimed.kept
                if not is_async:
                    self.let_go(wake_ps, wake_ps)
        if now.has_stepped and group.size:  # they got tokens: the engine is not stuck
            stepwise.num_fruitless = 0
        now.settle(stepwise.in_flight)

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

    def _take_in(self) -> None:
        """Take in who has come: for nothing, or alone in the environment, so that the clock may just go on."""
        replica, scheduler = self.replica, self.scheduler
        num_waiting, may_admit = len(scheduler.waiting), scheduler.may_admit
        lane = replica.lane
        while self.inbox.next_ps <= replica.now_ps:
            replica.now_ps = self.inbox.take(replica.now_ps, replica.door.add)
            if lane is not None and lane.horizon_ps <= replica.now_ps:  # others may have come meanwhile
                break
        if num_waiting and self.decisions.head_is_stable:
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
                self.let_go(replica.now_ps, replica.now_ps)
            if not self.decisions.asked_on_change:
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
