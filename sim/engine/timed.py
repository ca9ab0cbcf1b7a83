"""A leap's steps where host and front end take time (`leap` has those where only the device does).

A step is launched, then the one before it is taken in: the tokens of the newest step are written down when the next
one has been launched. Many decode-only steps are one event as far as one of device and host sets the pace (`pace`);
where neither does they are done one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        self.device, self.host, self.kv, self.cost = leap.device, leap.replica.host, leap.kv, leap.cost
        self.front_end, self.inbox = leap.replica.front_end, leap.inbox
        self.is_async = leap.is_async
        self.keeps_steps = leap.keeps_steps
        self.launched: Step  # the step launched last
        self.part = HostPart(0, 0, 0, 0, 0)  # of the steps that `_pace` has found a form for, and what the device takes
        self.duration_ps = self.slope_ps = 0

    def advance(self, planned: dict[Request, int] | None) -> Process:
        """A step with prefills, or decode-only steps."""
        now, replica = self.now, self.replica
        if planned:
            batch = now.batch(planned) if self.keeps_steps else NO_ENTRIES
            features, noted, fresh, ended = self.leap.compute(planned, False)
            start_ps = self._launch(features, self.leap.num_regular, batch)
            for request in fresh:
                request.scheduled_ps = start_ps
            yield from self._commit(start_ps, noted, ended)
            return
        pace = self._pace()
        if pace is not None:
            yield from self._leap(pace)
            return
        noted = NOBODY if now.has_stepped else now.late(replica.number)
        features = _new(Features, (self.group.size, self.group.context, 0, 0, 0, 0))
        self.kv.take(self.group.blocks_next - now.taken)
        now.taken = 0
        replica.number += 1
        batch = now.batch({}) if self.keeps_steps else NO_ENTRIES
        start_ps = self._launch(features, self.group.size - len(noted), batch)
        yield from self._commit(start_ps, noted, self.group.advance(1))

    def let_go(self) -> Process:
        """Take in the tokens of the newest step when the device is done."""
        replica, step = self.replica, self.now.step
        assert step is not None
        num_requests = step.features[0] + step.features[5]
        if not num_requests:
            self.leap.let_go(replica.now_ps, replica.sent_ps)
            return
        updated_ps = max(replica.now_ps, step.end_ps) + self.host.update_ps(num_requests)
        if self.leap.is_alone:
            replica.now_ps = updated_ps
        else:
            yield from replica.wait_until(updated_ps)
        self._let_go(updated_ps)

    def _let_go(self, updated_ps: int) -> None:
        step = self.now.step
        assert step is not None
        num_chunks = step.num_regular + len(self.now.noted)
        sent_ps = self.replica.send(updated_ps, num_chunks, step.features[0], step.num_regular)
        self.leap.let_go(updated_ps, sent_ps)

    def _launch(self, features: Features, num_regular: int, batch: Batch) -> int:
        """Give the device a step; returns when it begins."""
        replica, schedule_ps = self.replica, self.replica.now_ps
        work_ps = self.device.work_ps(features)
        num_decodes, _, tokens, _, _, num_prefills = features
        launched_ps, start_ps, end_ps = replica.launch(
            num_decodes + num_prefills, num_prefills, num_decodes + tokens, work_ps
        )
        self.leap.num_regular = num_regular
        self.leap.log_batch(start_ps, work_ps, features)
        self.launched = Step(
            batch, schedule_ps, launched_ps, start_ps, end_ps, features, replica.number, num_regular, NOBODY
        )
        return start_ps

    def _commit(self, start_ps: int, noted: list[Request], ended: list[Request]) -> Process:
        """A step has been launched: the older one is taken in, or itself if there is to be one at a time."""
        now, replica, step = self.now, self.replica, self.launched
        if self.leap.is_alone:
            replica.now_ps = step.launched_ps
        else:
            yield from replica.wait_until(step.launched_ps)
        now.has_stepped = True
        if now.preempted or (ended and self.leap.refuses_chunks):
            self.leap.close_preemptions()
        if self.is_async and now.newest_ps != NEVER:
            yield from self.let_go()
        now.newest_ps, now.ending, now.noted, now.step = start_ps, ended, noted, step
        if not self.is_async:
            yield from self.let_go()

    def _pace(self) -> Pace | None:
        """The next steps in closed form, if they have one and are several."""
        replica, group, now = self.replica, self.group, self.now
        num_decodes = group.size
        if self.device.noise is not None or self.host.draws_for(num_decodes) or not now.has_stepped:
            return None
        if self.is_async and (now.newest_ps == NEVER or now.step is None):
            return None
        most, num_free = self.leap.most_steps(), self.kv.free + now.taken
        if most > 1 and group.blocks_for(most) > num_free:
            most = group.rounds_within(most, num_free)
        if most < 2:
            return None
        host = self.host
        slope_ps = self.cost.decode_context_ps * num_decodes
        duration_ps = self.cost.decode_ps(num_decodes) + self.cost.decode_context_ps * group.context
        update_ps = before_ps = host.update_ps(num_decodes)
        if self.is_async:
            num_before = now.step.features[0] + now.step.features[5]
            before_ps = host.update_ps(num_before) if num_before else 0
        part = _new(
            HostPart, (host.launch_ps(num_decodes, 0, num_decodes), update_ps, before_ps, host.lag_ps, host.tail_ps)
        )
        state = replica.now_ps, self.device.free_ps, duration_ps, slope_ps, part, most, self.inbox.next_ps
        pace = (device_paced(*state) or host_paced(*state)) if self.is_async else synchronous(*state)
        if pace is None or pace.num_steps < 2 or not self._keeps_up(pace):
            return None
        self.part, self.duration_ps, self.slope_ps = part, duration_ps, slope_ps
        return pace

    def _keeps_up(self, pace: Pace) -> bool:
        """Whether the front end has always sent a step's chunks when those of the next one come."""
        front_end = self.front_end
        if front_end is None:
            return True
        num_decodes, step = self.group.size, self.now.step
        num_first = step.num_regular + len(self.now.noted) if self.is_async and step else num_decodes
        sent_ps = max(front_end.sent_ps, pace.updated_ps) + front_end.work_ps(num_first)
        gap_ps = pace.gap_ps if pace.num_steps > 2 else pace.second_ps - pace.updated_ps
        return sent_ps <= pace.second_ps and front_end.work_ps(num_decodes) <= gap_ps

    def _leap(self, pace: Pace) -> Process:
        """Many steps at once: the first update takes in the newest step, each other one a step of this batch."""
        replica, now, group, leap = self.replica, self.now, self.group, self.leap
        num_steps, num_decodes, context, schedule_ps = pace.num_steps, group.size, group.context, replica.now_ps
        num_free = self.kv.free + now.taken - group.blocks_for(num_steps)
        leap.write_span(
            (pace.start_ps, num_steps, self.duration_ps, self.slope_ps, pace.period_ps, pace.period_slope_ps,
             num_decodes, num_decodes, context, 0, 0, 0, len(leap.scheduler.running), leap.num_waiting(), num_free)
        )  # fmt: skip
        if self.is_async and (now.ending or now.noted or now.losing):
            # what they give back is handed out from the second step on
            self.kv.take(group.blocks_next - now.taken)
            now.taken = group.blocks_next
            if leap.is_alone:
                replica.now_ps = pace.updated_ps
            else:
                yield from replica.wait_until(pace.updated_ps)
            group.ahead = 1, 1
            self._let_go(pace.updated_ps)
            group.ahead = 0, 0
            self._send(pace, num_decodes, is_first_sent=True)
        else:
            self._send(pace, num_decodes, is_first_sent=False)
        if self.keeps_steps:
            ended = self._walk(pace, num_decodes, context, schedule_ps)
        else:
            self.kv.take(group.blocks_for(num_steps) - now.taken)
            replica.number += num_steps
            ended = group.advance(num_steps)
            now.step = self._step(pace, num_steps - 1, num_decodes, context, schedule_ps, NO_ENTRIES)
        now.taken = 0
        replica.host_wait_ps += pace.waited_ps
        self.device.free_ps = pace.free_ps
        last_ps = pace.updated_of(num_steps - 1)
        if leap.is_alone:
            replica.now_ps = last_ps
        else:
            yield from replica.wait_until(last_ps)
        now.newest_ps, now.ending, now.noted = pace.start_of(num_steps - 1), ended, NOBODY
        if ended and leap.refuses_chunks:
            leap.close_preemptions()
        if not self.is_async:
            leap.let_go(last_ps, replica.sent_ps)

    def _send(self, pace: Pace, num_decodes: int, is_first_sent: bool) -> None:
        """The tokens that come with these updates leave; the front end keeps up with them."""
        replica, front_end, step = self.replica, self.front_end, self.now.step
        if not is_first_sent:
            if not self.is_async:
                replica.send(pace.updated_ps, num_decodes, num_decodes, num_decodes)
            elif step is not None and step.features[0] + step.features[5]:
                replica.send(pace.updated_ps, step.num_regular, step.features[0], step.num_regular)
        num_more, gap_ps = pace.num_steps - 1, pace.second_ps - pace.updated_ps
        before_ps, last_ps = replica.sent_ps, pace.updated_of(num_more)
        work_ps = front_end.work_ps(num_decodes) if front_end is not None else 0
        first_ps = pace.second_ps + work_ps - before_ps
        rows = self.leap.recorder.token_rows
        if first_ps == pace.gap_ps - pace.gap_slope_ps:
            rows.extend((before_ps, num_more, first_ps, pace.gap_slope_ps, num_decodes, num_decodes))
        else:
            rows.extend((before_ps, 1, first_ps, 0, num_decodes, num_decodes))
            if num_more > 1:
                more = (before_ps + first_ps, num_more - 1, pace.gap_ps, pace.gap_slope_ps, num_decodes, num_decodes)
                rows.extend(more)
        replica.sent_ps = last_ps + work_ps
        if front_end is not None:
            if num_more > 1:
                gap_ps = pace.gap_ps + (num_more - 2) * pace.gap_slope_ps
            gap_before_ps = gap_ps - pace.gap_slope_ps if num_more > 2 else pace.second_ps - pace.updated_ps
            front_end.send_alike(last_ps, gap_ps, gap_before_ps, num_more, num_decodes)

    def _walk(self, pace: Pace, num_decodes: int, context: int, schedule_ps: int) -> list[Request]:
        """The steps one by one, each kept in full; returns whose last tokens the last one brings."""
        now, ended = self.now, NOBODY
        for k in range(pace.num_steps):
            self.kv.take(self.group.blocks_next - now.taken)
            now.taken = 0
            self.replica.number += 1
            batch = now.batch({})
            older, now.step = now.step, self._step(pace, k, num_decodes, context, schedule_ps, batch)
            ended = self.group.advance(1)
            done = older if self.is_async else now.step
            if done is not None and done.batch.entries and (self.is_async or k < pace.num_steps - 1):
                done.updated_ps = pace.updated_of(k)
                self.replica.log_step(done, [])
        return ended

    def _step(self, pace: Pace, k: int, num_decodes: int, context: int, schedule_ps: int, batch: Batch) -> Step:
        """Step k in full; its number is the newest."""
        if k:
            schedule_ps = pace.updated_of(k - 1)
        launched_ps, start_ps = schedule_ps + self.part.launch_ps, pace.start_of(k)
        end_ps = max(start_ps + self.duration_ps + k * self.slope_ps, launched_ps + self.part.tail_ps)
        features = _new(Features, (num_decodes, context + k * num_decodes, 0, 0, 0, 0))
        number = self.replica.number
        return Step(batch, schedule_ps, launched_ps, start_ps, end_ps, features, number, num_decodes, NOBODY)


_new = tuple.__new__  # in the engine's loops: a third of what the constructor takes
