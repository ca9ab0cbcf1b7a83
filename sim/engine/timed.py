"""A leap's steps where host and front end take time (`leap` has those where only the device does).

A step is launched, then the one before it is taken in: the tokens of the newest step are written down when the next
one has been launched. Many decode-only steps are one event as far as one of device and host sets the pace
(`resources`); where neither does they are done one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from simbatch.sim.cost.model import Features, Sums
from simbatch.sim.engine.decode_group import NOBODY
from simbatch.sim.engine.gathered import NO_ENTRIES, Computed, Gathered
from simbatch.sim.engine.record import pack_paced, pack_span, pack_step, pack_token, pack_tokens
from simbatch.sim.engine.resources import HostPart, Pace, PaceFields, Step, device_paced, host_paced, synchronous
from simbatch.sim.engine.traffic import FAR
from simbatch.sim.scheduler.request import NEVER, Batch, Request


@dataclass(slots=True, eq=False)
class Known:
    """What steps of so many decodes and nothing else take, ps."""

    host: HostPart  # the step before the first one is of as many decodes
    decode_ps: int  # the device's, without their contexts
    slope_ps: int  # each further step lasts that much longer on the device, windows apart
    work_ps: int  # the front end's, for the chunks of one step
    is_drawn: bool  # launch or device are noisy: each step has times of its own


Found = tuple[PaceFields, Known, int, int]


class Timed:
    """Launches, updates and sends the steps of a leap."""

    def __init__(self, now: Gathered) -> None:
        replica = now.replica
        self.replica, self.now, self.group = replica, now, now.group
        self.device, self.host, self.kv, self.cost = replica.device, replica.host, replica.kv, replica.device.cost
        self.front_end = replica.front_end
        self.is_async, self.keeps_steps = now.is_async, now.keeps_steps
        self.write_segment, self.write_tokens = replica.recorder.segments.extend, replica.recorder.tokens.extend
        self._known: dict[int, Known] = {}
        self._update_ps, self._update_per_seq_ps = self.host.times.update_base_ps, self.host.times.update_per_seq_ps
        self._lag_ps, self._tail_ps = self.host.lag_ps, self.host.tail_ps
        self._context_ps, self._windows = self.cost.decode_context_ps, self.cost.windows
        self.found: Found | None = None  # of the steps to come, if `reach_ps` has looked
        self._running, self._count_waiting = replica.scheduler.running, replica.count_waiting

    def advance(self, planned: dict[Request, int] | None) -> None:
        """A step with prefills, or decode-only steps; the clock is after the last update then."""
        if planned:
            self._launch(self.now.batch(planned) if self.keeps_steps else NO_ENTRIES, self.now.compute(planned, False))
            return
        cut_ps, found = self.replica.cut_ps(), self.found
        self.found = None
        if found is None or found[0][9] > cut_ps:  # somebody comes before the end of what was found
            found = self._plan(cut_ps)
        if found is None:
            self._step_alone()
        else:
            self._leap(found)

    def _step_alone(self) -> None:
        """One decode-only step."""
        now, group, replica = self.now, self.group, self.replica
        noted = NOBODY if now.has_stepped else now.late(replica.number)
        self.kv.take(group.blocks_next - now.taken)
        now.taken = 0
        replica.number += 1
        batch = now.batch({}) if self.keeps_steps else NO_ENTRIES
        num_regular = group.size - len(noted)
        sums: Sums = (group.size, group.context, 0, 0, 0, 0, group.in_window, 0)
        self._launch(batch, (sums, noted, NOBODY, group.advance(1), num_regular))

    def _launch(self, batch: Batch, computed: Computed) -> None:
        """Give the device a step, then take in the older one, or itself if there is to be one at a time."""
        replica, now, device = self.replica, self.now, self.device
        sums, noted, fresh, ended, num_regular = computed
        num_decodes, context, tokens, _, attention, num_prefills, _, _ = sums
        schedule_ps, was_free_ps = replica.now_ps, device.free_ps
        num_requests, work_ps = num_decodes + num_prefills, device.work_ps(sums)
        times = replica.launch(num_requests, num_prefills, num_decodes + tokens, work_ps)
        replica.now_ps, start_ps, _ = times
        self.write_segment(pack_step(
            start_ps, 1, work_ps, num_decodes, num_regular, context, tokens, num_prefills, attention,
            len(self._running), self._count_waiting(), self.kv.free,
        ))  # fmt: skip
        if self.keeps_steps:
            kept = Step(batch, schedule_ps, *times, Features(*sums), replica.number, num_regular, NOBODY)
        for request in fresh:
            request.scheduled_ps = start_ps
        now.has_stepped = True
        if replica.lane is not None:
            replica.publish()
        if now.preempted or (ended and now.refuses_chunks):
            now.close_preemptions()
        if self.is_async and now.newest_ps != NEVER:
            self.let_go(was_free_ps)
        now.newest_ps, now.ending, now.noted = start_ps, ended, noted
        now.num_requests, now.num_decodes, now.num_regular = num_requests, num_decodes, num_regular
        if self.keeps_steps:
            now.step = kept
        now.update_ps = self._update_ps + self._update_per_seq_ps * num_requests
        if not self.is_async:
            self.finish()

    def finish(self) -> None:
        """Let the device finish the newest step, and take in its tokens."""
        self.let_go(self.device.free_ps)
        self.now.newest_ps = NEVER

    def let_go(self, end_ps: int) -> None:
        """Take in the tokens of the newest step, with which the device is done at `end_ps`."""
        now, replica = self.now, self.replica
        if now.num_requests:
            if end_ps < replica.now_ps:
                end_ps = replica.now_ps
            replica.now_ps = now_ps = end_ps + now.update_ps
            if self.front_end is None:
                before_ps = replica.sent_ps
                self.write_tokens(pack_token(before_ps, 1, now_ps - before_ps, now.num_decodes, now.num_regular))
                replica.sent_ps = now_ps
            else:
                replica.send(now_ps, now.num_regular + len(now.noted), now.num_decodes, now.num_regular)
        if now.ending or now.noted or now.losing or self.keeps_steps:
            now.let_go(replica.now_ps, replica.sent_ps)

    def _leap(self, found: Found) -> None:
        """Many decode-only steps at once, which have a closed form.

        The first update takes in the newest step, each other one a step of this batch.
        """
        now, group, replica = self.now, self.group, self.replica
        pace, known, duration_ps, slope_ps = found
        (
            num_steps, start_ps, period_ps, period_slope_ps, updated_ps, second_ps, gap_ps, gap_slope_ps,
            last_start_ps, last_ps, free_ps,
        ) = pace  # fmt: skip
        num_decodes, num_blocks, schedule_ps = group.size, group.blocks_for(num_steps), replica.now_ps
        if period_ps == duration_ps and period_slope_ps == slope_ps:
            self.write_segment(pack_span(
                start_ps, num_steps, duration_ps, slope_ps, num_decodes, num_decodes, group.context,
                len(self._running), self._count_waiting(), self.kv.free + now.taken - num_blocks,
            ))  # fmt: skip
        else:
            self.write_segment(pack_paced(
                start_ps, num_steps, duration_ps, slope_ps, period_ps, period_slope_ps, num_decodes, num_decodes,
                group.context, len(self._running), self._count_waiting(), self.kv.free + now.taken - num_blocks,
            ))  # fmt: skip
        if self.is_async:
            replica.now_ps = schedule_ps + known.host.launch_ps
            if now.ending or self.keeps_steps:  # what they give back is handed out from the second step on
                if group.blocks_next != now.taken:
                    self.kv.take(group.blocks_next - now.taken)
                    now.taken = group.blocks_next
                group.ahead = 1, 1
            self.let_go(self.device.free_ps)
            group.ahead = 0, 0
        else:
            replica.send(updated_ps, num_decodes, num_decodes, num_decodes)
        sent_ps = replica.sent_ps
        if self.front_end is None and second_ps - sent_ps == gap_ps - gap_slope_ps:  # mostly
            self.write_tokens(
                pack_tokens(sent_ps, num_steps - 1, second_ps - sent_ps, gap_slope_ps, num_decodes, num_decodes)
            )
            replica.sent_ps = last_ps
        else:
            self._send(pace, known.work_ps, num_decodes)
        self.device.free_ps = free_ps
        if self.keeps_steps:
            ended = self._walk(Pace(*pace), known, duration_ps, slope_ps, schedule_ps)
        else:
            if num_blocks != now.taken:
                self.kv.take(num_blocks - now.taken)
            replica.number += num_steps
            ended = group.advance(num_steps)
        now.taken = 0
        if replica.lane is not None:
            replica.publish()
        replica.now_ps, now.newest_ps = last_ps, last_start_ps
        now.ending, now.noted = ended, NOBODY
        now.num_requests = now.num_decodes = now.num_regular = num_decodes
        now.update_ps = known.host.update_ps
        if ended and now.refuses_chunks:
            now.close_preemptions()
        if not self.is_async:
            now.let_go(last_ps, replica.sent_ps)

    def reach_ps(self) -> int:
        """Where the clock is after as many decode-only steps as have a closed form, if nobody comes."""
        self.found = found = self._plan(FAR)
        return self.replica.now_ps if found is None else found[0][9]

    def leaves_ps(self) -> int:
        """When the newest step's tokens will have left, where `reach_ps` has found a closed form of what comes next."""
        assert self.found is not None
        updated_ps, now = self.found[0][4], self.now
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
        most, num_decodes, is_async = now.most_steps(), group.size, self.is_async
        if most < 2 or (is_async and now.newest_ps == NEVER):
            return None
        known = self._known.get(num_decodes) or self._learn(num_decodes)
        if known.is_drawn:
            return None
        num_free = self.kv.free + now.taken
        if (most // group.block_size + 1) * num_decodes > num_free:
            most = group.rounds_within(most, num_free)
        duration_ps, slope_ps = known.decode_ps + self._context_ps * group.context, known.slope_ps
        if self._windows is not None:
            duration_ps += self._windows.decode_ps * group.in_window
            slope_ps += self._windows.decode_ps * group.num_growing
        schedule_ps, free_ps, host = self.replica.now_ps, self.device.free_ps, known.host
        if is_async:
            if now.update_ps != host.update_ps:
                host = HostPart(host.launch_ps, host.update_ps, now.update_ps, self._lag_ps, self._tail_ps)
            pace = device_paced(schedule_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
            if pace is None:
                pace = host_paced(schedule_ps, free_ps, duration_ps, slope_ps, host, most, cut_ps)
        else:
            pace = synchronous(schedule_ps, duration_ps, slope_ps, host, most, cut_ps)
        if pace is None or pace[0] < 2 or not (self.front_end is None or self._keeps_up(pace, known.work_ps)):
            return None
        return pace, known, duration_ps, slope_ps

    def _learn(self, num_decodes: int) -> Known:
        """What a batch of so many decodes takes; kept, since few sizes make up a run."""
        update_ps, draws = self.host.update_ps(num_decodes), self.host.draws_for(num_decodes)
        launch_ps = 0 if draws else self.host.launch_ps(num_decodes, 0, num_decodes)
        known = self._known[num_decodes] = Known(
            HostPart(launch_ps, update_ps, update_ps, self._lag_ps, self._tail_ps),
            self.cost.decode_ps(num_decodes),
            self.cost.decode_context_ps * num_decodes,
            self.front_end.work_ps(num_decodes) if self.front_end is not None else 0,
            draws or self.device.noise is not None,
        )
        return known

    def _keeps_up(self, pace: PaceFields, work_ps: int) -> bool:
        """Whether the front end is always done with a step's chunks when those of the next one come."""
        front_end, now = self.front_end, self.now
        assert front_end is not None
        first_ps = hold_ps = front_end.hold_ps(work_ps)
        if self.is_async and (num_first := now.num_regular + len(now.noted)) != self.group.size:
            first_ps = front_end.hold_ps(front_end.work_ps(num_first))
        held_ps = front_end.held_ps if front_end.held_ps > pace[4] else pace[4]
        return held_ps + first_ps <= pace[5] and hold_ps <= (pace[6] if pace[0] > 2 else pace[5] - pace[4])

    def _send(self, pace: PaceFields, work_ps: int, num_decodes: int) -> None:
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
