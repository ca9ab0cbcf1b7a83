"""A leap's steps where host and front end take time (`leap` has those where only the device does).

A step is launched, then the one before it is taken in: the tokens of the newest step are written down when the next
one has been launched. Many decode-only steps are one event as far as one of device and host sets the pace (`pace`);
where neither does they are done one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from simbatch.sim.cost.model import Features
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.gathered import NO_ENTRIES, Computed, Gathered
from simbatch.sim.engine.pace import HostPart, Pace, device_paced, host_paced, host_part, synchronous
from simbatch.sim.engine.record import pack_paced, pack_span, pack_token, pack_tokens
from simbatch.sim.engine.resources import NOTHING, Step
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.request import NEVER, Batch, Request


class Known(NamedTuple):
    """What steps of so many decodes and nothing else take, ps."""

    host: HostPart  # the step before the first one is of as many decodes
    decode_ps: int  # the device's, without their contexts
    slope_ps: int  # each further step lasts that much longer on the device, windows apart
    work_ps: int  # the front end's, for the chunks of one step
    is_drawn: bool  # the launch is noisy: each step has its own
    features: Features  # one step's, without contexts: what its update asks


Found = tuple[Pace, Known, int, int]


class Timed:
    """Launches, updates and sends the steps of a leap."""

    def __init__(self, now: Gathered) -> None:
        replica = now.replica
        self.replica, self.now, self.group = replica, now, now.group
        self.device, self.host, self.kv, self.cost = replica.device, replica.host, replica.kv, replica.device.cost
        self.front_end = replica.front_end
        self.is_async = now.is_async
        self.keeps_steps = now.keeps_steps
        self.write_segment, self.write_tokens = replica.recorder.segments.extend, replica.recorder.tokens.extend
        self._never_leaps = self.device.noise is not None
        self._known: dict[int, Known] = {}
        self._update_ps, self._update_per_seq_ps = self.host.times.update_base_ps, self.host.times.update_per_seq_ps
        self._lag_ps, self._tail_ps = self.host.lag_ps, self.host.tail_ps
        self._context_ps, self._windows = self.cost.decode_context_ps, self.cost.windows
        self.found: Found | None = None  # of the steps to come, if `reach_ps` has looked
        self._running, self._count_waiting = replica.scheduler.running, replica.count_waiting
        self._kept: Step | None = None  # the step launched last, where steps are kept

    def advance(self, planned: dict[Request, int] | None) -> None:
        """A step with prefills, or decode-only steps; the clock is after the last update then."""
        if planned:
            batch = self.now.batch(planned) if self.keeps_steps else NO_ENTRIES
            self._launch(batch, self.now.compute(planned, False))
        elif not self._leap():
            self._step_alone()

    def _step_alone(self) -> None:
        """One decode-only step."""
        now, group, replica = self.now, self.group, self.replica
        noted = NOBODY if now.has_stepped else now.late(replica.number)
        self.kv.take(group.blocks_next - now.taken)
        now.taken = 0
        replica.number += 1
        batch = now.batch({}) if self.keeps_steps else NO_ENTRIES
        num_regular = group.size - len(noted)
        features = _new(Features, (group.size, group.context, 0, 0, 0, 0, group.in_window, 0))
        self._launch(batch, (features, noted, NOBODY, group.advance(1), num_regular))

    def _launch(self, batch: Batch, computed: Computed) -> None:
        """Give the device a step, then take in the older one, or itself if there is to be one at a time."""
        replica, now, device = self.replica, self.now, self.device
        features, noted, fresh, ended, num_regular = computed
        num_decodes, _, tokens, _, _, num_prefills, _, _ = features
        num_requests, schedule_ps, was_free_ps = num_decodes + num_prefills, replica.now_ps, device.free_ps
        work_ps = device.work_ps(features)
        times = replica.launch(num_requests, num_prefills, num_decodes + tokens, work_ps)
        replica.now_ps, start_ps, _ = times
        replica.log_batch(start_ps, work_ps, features, num_regular)
        if self.keeps_steps:
            self._kept = Step(batch, schedule_ps, *times, features, replica.number, num_regular, NOBODY)
        for request in fresh:
            request.scheduled_ps = start_ps
        now.has_stepped = True
        if replica.lane is not None:
            replica.publish()
        if now.preempted or (ended and now.refuses_chunks):
            now.close_preemptions()
        if self.is_async and now.newest_ps != NEVER:
            self.let_go(was_free_ps)
        now.newest_ps, now.ending, now.noted, now.step = start_ps, ended, noted, self._kept
        now.features, now.num_regular = features, num_regular
        now.update_ps = self._update_ps + self._update_per_seq_ps * num_requests
        if not self.is_async:
            self.let_go(device.free_ps)
            now.newest_ps = NEVER

    def finish(self) -> None:
        """Let the device finish the newest step, and take in its tokens."""
        self.let_go(self.device.free_ps)
        self.now.newest_ps = NEVER

    def let_go(self, end_ps: int) -> None:
        """Take in the tokens of the newest step, with which the device is done at `end_ps`."""
        now, replica, features = self.now, self.replica, self.now.features
        if features is not NOTHING:
            if end_ps < replica.now_ps:
                end_ps = replica.now_ps
            replica.now_ps = now_ps = end_ps + now.update_ps
            if self.front_end is None:
                before_ps = replica.sent_ps
                self.write_tokens(pack_token(before_ps, 1, now_ps - before_ps, features[0], now.num_regular))
                replica.sent_ps = now_ps
            else:
                num_regular = now.num_regular
                replica.send(now_ps, num_regular + len(now.noted), features[0], num_regular)
        if now.ending or now.noted or now.losing or self.keeps_steps:
            now.let_go(replica.now_ps, replica.sent_ps)

    def _leap(self) -> bool:
        """Many decode-only steps at once, if they have a closed form; False where not.

        The first update takes in the newest step, each other one a step of this batch.
        """
        now, group, replica, found, kv = self.now, self.group, self.replica, self.found, self.kv
        cut_ps, self.found = replica.cut_ps(), None
        if found is None or found[0][9] > cut_ps:  # somebody comes before the end of what was found
            found = self._plan(cut_ps)
            if found is None:
                return False
        pace, known, duration_ps, slope_ps = found
        num_decodes, free_ps, schedule_ps = group.size, self.device.free_ps, replica.now_ps
        self.device.free_ps = pace[10]
        num_blocks = self._log(pace, duration_ps, slope_ps)
        if self.is_async:
            # what those whose last tokens it brings give back is handed out from the second step on
            kv.take(group.blocks_next - now.taken)
            now.taken = group.blocks_next
            group.ahead = 1, 1
            replica.now_ps = schedule_ps + known.host.launch_ps
            self.let_go(free_ps)
            group.ahead = 0, 0
        else:
            replica.send(pace.updated_ps, num_decodes, num_decodes, num_decodes)
        self._send(pace, known.work_ps, num_decodes)
        if self.keeps_steps:
            ended = self._walk(pace, known, duration_ps, slope_ps, schedule_ps)
        else:
            kv.take(num_blocks - now.taken)
            replica.number += pace[0]
            ended = group.advance(pace[0])
        now.taken = 0
        if replica.lane is not None:
            replica.publish()
        replica.now_ps, now.newest_ps, now.ending, now.noted = pace[9], pace[8], ended, NOBODY
        now.features, now.num_regular, now.update_ps = known.features, num_decodes, known.host.update_ps
        if ended and now.refuses_chunks:
            now.close_preemptions()
        if not self.is_async:
            now.let_go(replica.now_ps, replica.sent_ps)
        return True

    def _log(self, pace: Pace, duration_ps: int, slope_ps: int) -> int:
        """Write a row for the steps; returns the blocks that they need."""
        group, num_steps, period_ps, period_slope_ps = self.group, pace[0], pace[2], pace[3]
        num_decodes, num_blocks = group.size, group.blocks_for(num_steps)
        num_running, num_waiting = len(self._running), self._count_waiting()
        num_free = self.kv.free + self.now.taken - num_blocks
        if period_ps == duration_ps and period_slope_ps == slope_ps:
            self.write_segment(pack_span(
                pace[1], num_steps, duration_ps, slope_ps, num_decodes, num_decodes, group.context,
                num_running, num_waiting, num_free,
            ))  # fmt: skip
        else:
            self.write_segment(pack_paced(
                pace[1], num_steps, duration_ps, slope_ps, period_ps, period_slope_ps, num_decodes, num_decodes,
                group.context, num_running, num_waiting, num_free,
            ))  # fmt: skip
        return num_blocks

    def reach_ps(self) -> int:
        """Where the clock is after as many decode-only steps as have a closed form, if nobody comes."""
        self.found = found = self._plan(FAR)
        return self.replica.now_ps if found is None else found[0][9]

    def leaves_ps(self) -> int:
        """When the newest step's tokens will have left, where `reach_ps` has found a closed form of what comes next."""
        assert self.found is not None
        updated_ps, now = self.found[0].updated_ps, self.now
        if self.front_end is None:
            return updated_ps
        sent_ps = self.front_end.sent_ps
        num_chunks = now.num_regular + len(now.noted)
        return (updated_ps if updated_ps > sent_ps else sent_ps) + self.front_end.work_ps(num_chunks)

    def _plan(self, cut_ps: int) -> Found | None:
        """Decode-only steps in closed form, what one takes, the first one's duration, slope; None where there is none.

        What decides is who sets their pace, and until when, and whether the front end keeps up with them.
        """
        now, group = self.now, self.group
        is_async = self.is_async
        if self._never_leaps or not now.has_stepped or (is_async and now.newest_ps == NEVER):
            return None
        most, num_decodes = now.most_steps(), group.size
        if most < 2:
            return None
        known = self._known.get(num_decodes) or self._learn(num_decodes)
        host, decode_ps, slope_ps, work_ps, is_drawn, _ = known
        if is_drawn:
            return None
        num_free = self.kv.free + now.taken
        if (most // group.block_size + 1) * num_decodes > num_free:
            most = group.rounds_within(most, num_free)
        duration_ps = decode_ps + self._context_ps * group.context
        if self._windows is not None:
            duration_ps += self._windows.decode_ps * group.in_window
            slope_ps += self._windows.decode_ps * group.num_growing
        schedule_ps, free_ps = self.replica.now_ps, self.device.free_ps
        if self.is_async:
            if now.update_ps != host.update_ps:
                host = host_part(host.launch_ps, host.update_ps, now.update_ps, self._lag_ps, self._tail_ps)
            pace = device_paced(schedule_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
            if pace is None:
                pace = host_paced(schedule_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
        else:
            pace = synchronous(schedule_ps, duration_ps, slope_ps, host, most, cut_ps)
        if pace is None or pace[0] < 2 or not (self.front_end is None or self._keeps_up(pace, work_ps)):
            return None
        return pace, known, duration_ps, slope_ps

    def _learn(self, num_decodes: int) -> Known:
        """What a batch of so many decodes takes; kept, since few sizes make up a run."""
        is_drawn, update_ps = self.host.draws_for(num_decodes), self.host.update_ps(num_decodes)
        launch_ps = 0 if is_drawn else self.host.launch_ps(num_decodes, 0, num_decodes)
        known = self._known[num_decodes] = Known(
            host_part(launch_ps, update_ps, update_ps, self._lag_ps, self._tail_ps),
            self.cost.decode_ps(num_decodes),
            self.cost.decode_context_ps * num_decodes,
            self.front_end.work_ps(num_decodes) if self.front_end is not None else 0,
            is_drawn,
            Features(num_decodes, 0, 0, 0, 0, 0),
        )
        return known

    def _keeps_up(self, pace: Pace, work_ps: int) -> bool:
        """Whether the front end is always done with a step's chunks when those of the next one come."""
        front_end, now = self.front_end, self.now
        assert front_end is not None
        first_ps = hold_ps = front_end.hold_ps(work_ps)
        if self.is_async and (num_first := now.num_regular + len(now.noted)) != self.group.size:
            first_ps = front_end.hold_ps(front_end.work_ps(num_first))
        held_ps = front_end.held_ps if front_end.held_ps > pace[4] else pace[4]
        return held_ps + first_ps <= pace[5] and hold_ps <= (pace[6] if pace[0] > 2 else pace[5] - pace[4])

    def _send(self, pace: Pace, work_ps: int, num_decodes: int) -> None:
        """The tokens of all updates but the first one leave; the front end keeps up with them."""
        replica, write = self.replica, self.write_tokens
        num_steps, _, _, _, updated_ps, second_ps, gap_ps, slope_ps, _, last_ps, _ = pace
        num_more, before_ps = num_steps - 1, replica.sent_ps
        if self.front_end is not None:
            last_gap_ps = gap_ps + (num_more - 2) * slope_ps if num_more > 1 else second_ps - updated_ps
            self.front_end.send_alike(last_ps, last_gap_ps, num_more, num_decodes)
        first_ps = second_ps + work_ps - before_ps
        replica.sent_ps = last_ps + work_ps
        if first_ps == gap_ps - slope_ps:
            write(pack_tokens(before_ps, num_more, first_ps, slope_ps, num_decodes, num_decodes))
            return
        write(pack_token(before_ps, 1, first_ps, num_decodes, num_decodes))
        if num_more > 1:
            write(pack_tokens(before_ps + first_ps, num_more - 1, gap_ps, slope_ps, num_decodes, num_decodes))

    def _walk(self, pace: Pace, known: Known, duration_ps: int, slope_ps: int, schedule_ps: int) -> list[Request]:
        """The steps one by one, each kept in full; returns whose last tokens the last one brings."""
        now, group, number, ended = self.now, self.group, self.replica.number, NOBODY
        num_decodes, context = group.size, group.context
        launch_ps, tail_ps = known.host.launch_ps, self._tail_ps
        for k in range(pace.num_steps):
            self.kv.take(group.blocks_next - now.taken)
            now.taken = 0
            batch, start_ps = now.batch({}), pace.start_of(k)
            end_ps = max(start_ps + duration_ps + k * slope_ps, schedule_ps + launch_ps + tail_ps)
            features = Features(num_decodes, context + k * num_decodes, 0, 0, 0, 0)
            times = schedule_ps, schedule_ps + launch_ps, start_ps, end_ps
            older, now.step = now.step, Step(batch, *times, features, number + k + 1, num_decodes, NOBODY)
            ended = group.advance(1)
            schedule_ps = pace.updated_of(k)
            done = older if self.is_async else now.step
            if done is not None and done.batch.entries and (self.is_async or k < pace.num_steps - 1):
                done.updated_ps = schedule_ps
                self.replica.log_step(done, [])
        self.replica.number += pace.num_steps
        return ended


_new = tuple.__new__  # in the engine's loops: a third of what the constructor takes
