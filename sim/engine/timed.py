"""A leap's steps where host and front end take time (`leap` has those where only the device does).

The first step of a span is done alone: it takes in the tokens of the step before, of another batch. The others follow
in closed form, as far as one of device and host sets the pace (`pace`), and one by one where neither does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from simbatch.sim.cost.features import Features
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.gathered import NO_ENTRIES
from simbatch.sim.engine.pace import HostPart, Pace, device_paced, host_paced, synchronous
from simbatch.sim.engine.step import Step
from simbatch.sim.scheduler.request import NEVER, Request
from simbatch.sim.scheduler.scheduler import Batch

if TYPE_CHECKING:
    from simbatch.sim.engine.leap import Leap
    from simbatch.sim.engine.replica import Process


class Timed:
    """Launches, updates and sends the steps of a leap."""

    def __init__(self, leap: Leap) -> None:
        self.leap = leap
        self.replica, self.now, self.group = leap.replica, leap.gathered, leap.group
        self.device, self.host, self.kv = leap.device, leap.replica.host, leap.kv
        self.front_end, self.inbox = leap.replica.front_end, leap.inbox
        self.is_async = leap.is_async
        self.keeps_steps = leap.recorder.steps is not None

    def advance(self, planned: dict[Request, int] | None) -> Process:
        """A step with prefills, or a span of decode-only steps."""
        if planned:
            batch = self.now.batch(planned) if self.keeps_steps else NO_ENTRIES
            features, noted, fresh, ended = self.leap.compute(planned, False)
            step = self._launched(features, self.leap.num_regular, noted, batch)
            for request in fresh:
                request.scheduled_ps = step.start_ps
            yield from self._commit(step, ended)
            return
        num_left = self._num_steps() - 1
        yield from self._single()
        while num_left and self._goes_on():
            stretch = self._stretch(num_left)
            if stretch is None:
                num_left -= 1
                yield from self._single()
            else:
                num_left -= stretch.pace.num_steps
                yield from self._leap(stretch)

    def let_go(self) -> Process:
        """Take in the tokens of the newest step, when the device is done."""
        step, replica = self.now.step, self.replica
        assert step is not None
        if not step.features.num_requests:
            self.leap.let_go(replica.now_ps, replica.sent_ps)
            return
        updated_ps = max(replica.now_ps, step.end_ps) + self.host.update_ps(step.features.num_requests)
        yield from replica.wait_until(updated_ps)
        num_chunks = step.num_regular + len(step.noted)
        sent_ps = replica.send(updated_ps, num_chunks, step.features.num_decodes, step.num_regular)
        self.leap.let_go(updated_ps, sent_ps)

    def _launched(self, features: Features, num_regular: int, noted: list[Request], batch: Batch) -> Step:
        replica, schedule_ps = self.replica, self.replica.now_ps
        work_ps = self.device.work_ps(features)
        times = replica.launch(features.num_requests, features.num_prefills, features.num_tokens, work_ps)
        replica.log_batch(times[1], work_ps, features, num_regular)
        return Step(batch, schedule_ps, *times, features, replica.number, num_regular, noted)

    def _commit(self, step: Step, ended: list[Request]) -> Process:
        """A step has been launched: the older one is taken in, or itself if there is to be one at a time."""
        now = self.now
        yield from self.replica.wait_until(step.launched_ps)
        now.has_stepped = True
        if now.preempted or (ended and self.leap.refuses_chunks):
            self.leap.close_preemptions()
        if self.is_async and now.newest_ps != NEVER:
            yield from self.let_go()
        now.newest_ps, now.ending, now.noted, now.step = step.start_ps, ended, step.noted, step
        if not self.is_async:
            yield from self.let_go()

    def _num_steps(self) -> int:
        """How many steps in a row change nothing and have their blocks, whenever arrivals come."""
        group = self.group
        if self.device.noise is not None or self.host.draws_for(group.size):
            return 1
        num_steps, num_free = self.leap.most_steps(), self.kv.free + self.now.taken
        return num_steps if group.blocks_for(num_steps) <= num_free else group.rounds_within(num_steps, num_free)

    def _single(self) -> Process:
        """One decode-only step."""
        replica, group, now = self.replica, self.group, self.now
        noted = [] if now.has_stepped else now.late(replica.number)
        features = Features(group.size, group.context, 0, 0, 0, 0)
        self.kv.take(group.blocks_next - now.taken)
        now.taken = 0
        replica.number += 1
        batch = now.batch({}) if self.keeps_steps else NO_ENTRIES
        step = self._launched(features, group.size - len(noted), noted, batch)
        yield from self._commit(step, group.advance(1))

    def _goes_on(self) -> bool:
        """Whether nobody has come; who has been sent meanwhile is on the way through the front end."""
        if self.front_end is not None and self.inbox.next_ps <= self.replica.now_ps:
            self.front_end.look(self.replica.now_ps)
        return self.inbox.next_ps > self.replica.now_ps

    def _stretch(self, most: int) -> Stretch | None:
        """The next steps in closed form, if there are several; the step before must have been of the same batch."""
        replica, group, step, cost = self.replica, self.group, self.now.step, self.device.cost
        num_decodes = group.size
        if self.is_async and (step is None or step.noted or step.num_regular != num_decodes):
            return None
        slope_ps = cost.decode_context_ps * num_decodes
        duration_ps = cost.decode_ps(num_decodes) + cost.decode_context_ps * group.context
        launch_ps, update_ps = self.host.launch_ps(num_decodes, 0, num_decodes), self.host.update_ps(num_decodes)
        host = HostPart(launch_ps, update_ps, self.host.lag_ps, self.host.tail_ps)
        state = (replica.now_ps, self.device.free_ps, duration_ps, slope_ps, host, most, self.inbox.next_ps)
        pace = (device_paced(*state) or host_paced(*state)) if self.is_async else synchronous(*state)
        if pace is None or pace.num_steps < 2:
            return None
        if self.front_end and not self.front_end.keeps_up(pace.updated_ps, pace.gap_ps, num_decodes):
            return None
        return Stretch(pace, replica.now_ps, num_decodes, group.context, duration_ps, slope_ps, host)

    def _leap(self, stretch: Stretch) -> Process:
        """Many steps at once: each update takes in a step of this batch."""
        replica, now, pace = self.replica, self.now, stretch.pace
        num_steps, num_decodes = pace.num_steps, stretch.num_decodes
        ended = self._walk(stretch) if self.keeps_steps else self._skip(num_steps)
        self.leap.write_span(
            (pace.start_ps, num_steps, stretch.duration_ps, stretch.slope_ps, pace.period_ps, pace.period_slope_ps,
             num_decodes, num_decodes, stretch.context, 0, 0, 0,
             len(replica.scheduler.running), replica.num_waiting, self.kv.free)
        )  # fmt: skip
        self._send(pace, num_decodes)
        replica.host_wait_ps += pace.waited_ps
        self.device.free_ps = pace.free_ps
        yield from replica.wait_until(pace.updated_of(num_steps - 1))
        now.newest_ps, now.ending, now.noted = pace.start_of(num_steps - 1), ended, NOBODY
        if not self.keeps_steps:
            now.step = stretch.step(num_steps - 1, replica.number, NO_ENTRIES)
        if ended and self.leap.refuses_chunks:
            self.leap.close_preemptions()
        if not self.is_async:
            self.leap.let_go(replica.now_ps, replica.sent_ps)

    def _skip(self, num_steps: int) -> list[Request]:
        """Blocks and tokens of so many steps; returns whose last tokens the last one brings."""
        self.kv.take(self.group.blocks_for(num_steps))
        self.replica.number += num_steps
        return self.group.advance(num_steps)

    def _walk(self, stretch: Stretch) -> list[Request]:
        """The same one by one, each step kept in full."""
        now, ended = self.now, NOBODY
        for k in range(stretch.pace.num_steps):
            self.kv.take(self.group.blocks_next)
            self.replica.number += 1
            older, now.step = now.step, stretch.step(k, self.replica.number, now.batch({}))
            ended = self.group.advance(1)
            done = older if self.is_async else now.step
            if done is not None and (self.is_async or k < stretch.pace.num_steps - 1):
                done.updated_ps = stretch.pace.updated_of(k)
                self.replica.log_step(done, [])
        return ended

    def _send(self, pace: Pace, num_decodes: int) -> None:
        """The tokens that come with these updates leave; the front end keeps up with them."""
        replica, num_more = self.replica, pace.num_steps - 1
        replica.send(pace.updated_ps, num_decodes, num_decodes, num_decodes)
        row = (replica.sent_ps, num_more, pace.gap_ps, pace.gap_slope_ps, num_decodes, num_decodes)
        self.leap.recorder.tokens.extend(row)
        replica.sent_ps = last_ps = pace.updated_of(num_more)
        if self.front_end is not None:
            gap_ps = pace.gap_ps + (num_more - 1) * pace.gap_slope_ps
            self.front_end.send_alike(last_ps, gap_ps, gap_ps - pace.gap_slope_ps, num_more, num_decodes)
            replica.sent_ps = self.front_end.sent_ps


class Stretch(NamedTuple):
    """Decode-only steps of one batch under one rule."""

    pace: Pace
    schedule_ps: int  # of the first
    num_decodes: int
    context: int  # before the first
    duration_ps: int
    slope_ps: int
    host: HostPart

    def step(self, k: int, number: int, batch: Batch) -> Step:
        """Step k, from 0."""
        schedule_ps = self.pace.updated_of(k - 1) if k else self.schedule_ps
        launched_ps, start_ps = schedule_ps + self.host.launch_ps, self.pace.start_of(k)
        end_ps = max(start_ps + self.duration_ps + k * self.slope_ps, launched_ps + self.host.tail_ps)
        features = Features(self.num_decodes, self.context + k * self.num_decodes, 0, 0, 0, 0)
        return Step(batch, schedule_ps, launched_ps, start_ps, end_ps, features, number, self.num_decodes)
