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


class Timed:
    """Launches, updates and sends the steps of a leap."""

    def __init__(self, leap: Leap) -> None:
        self.leap = leap
        self.replica, self.now, self.group = leap.replica, leap.gathered, leap.group
        self.device, self.host, self.kv, self.cost = leap.device, leap.replica.host, leap.kv, leap.device.cost
        self.front_end, self.inbox = leap.replica.front_end, leap.inbox
        self.is_async = leap.is_async
        self.keeps_steps = leap.keeps_steps
        # of the steps that `_pace` has found a form for: what host and device take
        self.part: HostPart = (0, 0, 0, 0, 0)
        self.duration_ps = self.slope_ps = 0
        self._never_leaps = self.device.noise is not None
        self._launch_ps: dict[int, int] = {}  # of so many decodes, if it is not drawn
        self._update_ps, self._update_per_seq_ps = self.host.times.update_base_ps, self.host.times.update_per_seq_ps
        self._lag_ps, self._tail_ps = self.host.lag_ps, self.host.tail_ps
        self._kept: Step | None = None  # the step launched last, where steps are kept

    def advance(self, planned: dict[Request, int] | None) -> None:
        """A step with prefills, or decode-only steps; the clock is after the last update then."""
        now, leap = self.now, self.leap
        if not planned:
            if not self._leap():
                self._step_alone()
            return
        batch = now.batch(planned) if self.keeps_steps else NO_ENTRIES
        features, noted, fresh, ended = leap.compute(planned, False)
        was_free_ps = self.device.free_ps
        start_ps = self._launch(features, batch)
        for request in fresh:
            request.scheduled_ps = start_ps
        self._commit(was_free_ps, start_ps, features, noted, ended)

    def _step_alone(self) -> None:
        """One decode-only step."""
        now, group, replica = self.now, self.group, self.replica
        noted = NOBODY if now.has_stepped else now.late(replica.number)
        self.kv.take(group.blocks_next - now.taken)
        now.taken = 0
        replica.number += 1
        batch = now.batch({}) if self.keeps_steps else NO_ENTRIES
        self.leap.num_regular = group.size - len(noted)
        features = _new(Features, (group.size, group.context, 0, 0, 0, 0))
        was_free_ps = self.device.free_ps
        start_ps = self._launch(features, batch)
        self._commit(was_free_ps, start_ps, features, noted, group.advance(1))

    def _launch(self, features: Features, batch: Batch) -> int:
        """Give the device a step; returns when it begins. The clock is at the end of the launch then."""
        replica, leap, schedule_ps = self.replica, self.leap, self.replica.now_ps
        num_decodes, _, tokens, _, _, num_prefills = features
        work_ps = self.device.work_ps(features)
        times = replica.launch(num_decodes + num_prefills, num_prefills, num_decodes + tokens, work_ps)
        replica.log_batch(times[1], work_ps, features, leap.num_regular)
        if self.keeps_steps:
            self._kept = Step(batch, schedule_ps, *times, features, replica.number, leap.num_regular, NOBODY)
        replica.now_ps = times[0]
        return times[1]

    def _commit(
        self, was_free_ps: int, start_ps: int, features: Features, noted: list[Request], ended: list[Request]
    ) -> None:
        """A step has been launched: the older one is taken in, or itself if there is to be one at a time."""
        now, leap = self.now, self.leap
        now.has_stepped = True
        if now.preempted or (ended and leap.refuses_chunks):
            leap.close_preemptions()
        if self.is_async and now.newest_ps != NEVER:
            self.let_go(was_free_ps)
        now.newest_ps, now.ending, now.noted, now.step = start_ps, ended, noted, self._kept
        now.features, now.num_regular = features, leap.num_regular
        if not self.is_async:
            self.let_go(self.device.free_ps)
            now.newest_ps = NEVER

    def let_go(self, end_ps: int) -> None:
        """Take in the tokens of the newest step, with which the device is done at `end_ps`."""
        now, replica = self.now, self.replica
        features, num_regular, noted = now.features, now.num_regular, now.noted
        if num_requests := features[0] + features[5]:
            now_ps = end_ps if end_ps > replica.now_ps else replica.now_ps
            replica.now_ps = now_ps = now_ps + self._update_ps + self._update_per_seq_ps * num_requests
            replica.send(now_ps, num_regular + len(noted), features[0], num_regular)
        if now.ending or noted or now.losing or self.keeps_steps:
            self.leap.let_go(replica.now_ps, replica.sent_ps)

    def _leap(self) -> bool:
        """Many decode-only steps at once, if they have a closed form; False where not.

        The first update takes in the newest step, each other one a step of this batch.
        """
        now, group, leap = self.now, self.group, self.leap
        if self._never_leaps or not now.has_stepped or (self.is_async and now.newest_ps == NEVER):
            return False
        most = leap.most_steps()
        if most < 2 or self.host.draws_for(group.size):
            return False
        kv, replica, num_free = self.kv, self.replica, self.kv.free + now.taken
        if (most // group.block_size + 1) * group.size > num_free:
            most = group.rounds_within(most, num_free)
        pace = self._pace(most)
        if pace is None:
            return False
        num_steps, start_ps, period_ps, period_slope_ps, updated_ps, _, _, _, last_start_ps, last_ps, free_ps = pace
        num_decodes, context, schedule_ps = group.size, group.context, replica.now_ps
        num_blocks = group.blocks_for(num_steps)
        leap.write_span(
            (start_ps, num_steps, self.duration_ps, self.slope_ps, period_ps, period_slope_ps, num_decodes,
             num_decodes, context, 0, 0, 0, len(leap.scheduler.running), replica.num_waiting, num_free - num_blocks)
        )  # fmt: skip
        if not self.is_async:
            replica.send(updated_ps, num_decodes, num_decodes, num_decodes)
        elif now.ending or now.noted or now.losing or self.keeps_steps:
            # what they give back is handed out from the second step on
            kv.take(group.blocks_next - now.taken)
            now.taken = group.blocks_next
            group.ahead = 1, 1
            replica.now_ps = schedule_ps + self.part[0]
            self.let_go(self.device.free_ps)
            group.ahead = 0, 0
        else:
            features = now.features
            if features[0] + features[5]:
                replica.send(updated_ps, now.num_regular, features[0], now.num_regular)
        self._send(pace, num_decodes)
        if self.keeps_steps:
            ended = self._walk(pace, num_decodes, context, schedule_ps)
        else:
            kv.take(num_blocks - now.taken)
            replica.number += num_steps
            ended = group.advance(num_steps)
        now.taken = 0
        self.device.free_ps, replica.now_ps = free_ps, last_ps
        now.newest_ps, now.ending, now.noted = last_start_ps, ended, NOBODY
        now.features, now.num_regular = _new(Features, (num_decodes, context, 0, 0, 0, 0)), num_decodes
        if ended and leap.refuses_chunks:
            leap.close_preemptions()
        if not self.is_async:
            leap.let_go(last_ps, replica.sent_ps)
        return True

    def _pace(self, most: int) -> Pace | None:
        """Who sets the pace of up to `most` steps, and until when; None where they are not several."""
        cost, num_decodes, features = self.cost, self.group.size, self.now.features
        self.slope_ps = slope_ps = cost.decode_context_ps * num_decodes
        self.duration_ps = duration_ps = cost.decode_ps(num_decodes) + cost.decode_context_ps * self.group.context
        launch_ps = self._launch_ps.get(num_decodes)
        if launch_ps is None:
            launch_ps = self._launch_ps[num_decodes] = self.host.launch_ps(num_decodes, 0, num_decodes)
        update_ps = before_ps = self._update_ps + self._update_per_seq_ps * num_decodes
        if self.is_async:
            num_before = features[0] + features[5]
            before_ps = self._update_ps + self._update_per_seq_ps * num_before if num_before else 0
        host = self.part = launch_ps, update_ps, before_ps, self._lag_ps, self._tail_ps
        now_ps, free_ps, cut_ps = self.replica.now_ps, self.device.free_ps, self.inbox.next_ps
        if self.is_async:
            pace = device_paced(now_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
            if pace is None:
                pace = host_paced(now_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
        else:
            pace = synchronous(now_ps, duration_ps, slope_ps, host, most, cut_ps)
        if pace is None or pace[0] < 2 or not (self.front_end is None or self._keeps_up(pace)):
            return None
        return pace

    def _keeps_up(self, pace: Pace) -> bool:
        """Whether the front end has always sent a step's chunks when those of the next one come."""
        front_end, now, num_decodes = self.front_end, self.now, self.group.size
        assert front_end is not None
        num_first = now.num_regular + len(now.noted) if self.is_async else num_decodes
        sent_ps = max(front_end.sent_ps, pace.updated_ps) + front_end.work_ps(num_first)
        gap_ps = pace.gap_ps if pace.num_steps > 2 else pace.second_ps - pace.updated_ps
        return sent_ps <= pace.second_ps and front_end.work_ps(num_decodes) <= gap_ps

    def _send(self, pace: Pace, num_decodes: int) -> None:
        """The tokens of all updates but the first leave; the front end keeps up with them."""
        replica, front_end = self.replica, self.front_end
        num_steps, _, _, _, updated_ps, second_ps, gap_ps, slope_ps, _, last_ps, _ = pace
        num_more, before_ps = num_steps - 1, replica.sent_ps
        work_ps = front_end.work_ps(num_decodes) if front_end is not None else 0
        first_ps = second_ps + work_ps - before_ps
        rows = self.leap.recorder.token_rows
        if first_ps == gap_ps - slope_ps:
            rows.extend((before_ps, num_more, first_ps, slope_ps, num_decodes, num_decodes))
        else:
            rows.extend((before_ps, 1, first_ps, 0, num_decodes, num_decodes))
            if num_more > 1:
                rows.extend((before_ps + first_ps, num_more - 1, gap_ps, slope_ps, num_decodes, num_decodes))
        replica.sent_ps = last_ps + work_ps
        if front_end is not None:
            last_gap_ps = gap_ps + (num_more - 2) * slope_ps if num_more > 1 else second_ps - updated_ps
            gap_before_ps = last_gap_ps - slope_ps if num_more > 2 else second_ps - updated_ps
            front_end.send_alike(last_ps, last_gap_ps, gap_before_ps, num_more, num_decodes)

    def _walk(self, pace: Pace, num_decodes: int, context: int, schedule_ps: int) -> list[Request]:
        """The steps one by one, each kept in full; returns whose last tokens the last one brings."""
        now, ended, number = self.now, NOBODY, self.replica.number
        launch_ps, tail_ps = self.part[0], self.part[4]
        for k in range(pace.num_steps):
            self.kv.take(self.group.blocks_next - now.taken)
            now.taken = 0
            batch, start_ps = now.batch({}), pace.start_of(k)
            end_ps = max(start_ps + self.duration_ps + k * self.slope_ps, schedule_ps + launch_ps + tail_ps)
            features = Features(num_decodes, context + k * num_decodes, 0, 0, 0, 0)
            times = schedule_ps, schedule_ps + launch_ps, start_ps, end_ps
            older, now.step = now.step, Step(batch, *times, features, number + k + 1, num_decodes, NOBODY)
            ended = self.group.advance(1)
            schedule_ps = pace.updated_of(k)
            done = older if self.is_async else now.step
            if done is not None and done.batch.entries and (self.is_async or k < pace.num_steps - 1):
                done.updated_ps = schedule_ps
                self.replica.log_step(done, [])
        self.replica.number += pace.num_steps
        return ended


_new = tuple.__new__  # in the engine's loops: a third of what the constructor takes
