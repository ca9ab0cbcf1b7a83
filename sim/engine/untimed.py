"""A leap's steps where nothing but the device takes time: tokens exist when it is done (`timed` has the others)."""

from __future__ import annotations

from simbatch.sim.engine.gathered import NO_ENTRIES, Gathered
from simbatch.sim.engine.record import pack_span
from simbatch.sim.engine.resources import Step, span_ps, steps_until
from simbatch.sim.scheduler.request import NEVER, Batch, Request


class Untimed:
    """Plans and counts the steps of a leap; the leap lets the clock run."""

    def __init__(self, now: Gathered) -> None:
        replica = now.replica
        self.replica, self.now, self.group = replica, now, now.group
        self.device, self.kv, self.cost = replica.device, replica.kv, replica.device.cost
        # parts of the cost model, which compiled code knows by what they do and not by their class
        self.windows, self.context_ps = self.cost.windows, self.cost.decode_context_ps
        self.decode_ps: list[int] = []  # of a decode-only step but for its context, by the number of decodes
        self.write_segment = replica.recorder.segments.extend
        self.keeps_steps, self.is_async = now.keeps_steps, now.is_async
        # of the span under way, where steps are kept one by one: steps, the next one's duration, slope, blocks
        self.left: tuple[int, int, int, int] | None = None
        self.longest: tuple[int, int, int] | None = None  # of the span to come, if `reach_ps` has found it
        self.kept: Step | None = None  # the newest step, where steps are kept

    def advance(self, planned: dict[Request, int] | None) -> None:
        """A step with prefills, or decode-only steps; the clock is where the next one is planned then."""
        self._advance(planned)
        while self.left is not None:
            self._advance(None)

    def _advance(self, planned: dict[Request, int] | None) -> None:
        """Launch steps, let go of the one before them, and let the clock run."""
        now, replica, device, is_async = self.now, self.replica, self.device, self.is_async
        start_ps = device.free_ps if device.free_ps > replica.now_ps else replica.now_ps
        newest_ps, ended = self._step(planned, start_ps) if planned else self._span(start_ps)
        now.has_stepped = True
        if replica.lane is not None:
            replica.publish()
            if ended and now.tells:
                replica.lane.tell(ended, device.free_ps)
        if now.preempted or (ended and now.refuses_chunks):
            now.close_preemptions()
        if is_async and (now.ending or now.noted or self.keeps_steps):
            if now.is_watched and start_ps > replica.now_ps:
                replica.now_ps = start_ps
            now.let_go(start_ps, start_ps)
        wake_ps = newest_ps if is_async else device.free_ps
        if wake_ps > replica.now_ps:
            replica.now_ps = wake_ps
        if is_async or ended or self.keeps_steps:
            now.newest_ps, now.ending, now.step = newest_ps, ended, self.kept
            if not is_async:
                now.let_go(wake_ps, wake_ps)

    def finish(self) -> None:
        """Let the device finish the newest step, and take in its tokens."""
        replica = self.replica
        if self.device.free_ps > replica.now_ps:
            replica.now_ps = self.device.free_ps
        self.now.let_go(replica.now_ps, replica.now_ps)

    def _step(self, planned: dict[Request, int], start_ps: int) -> tuple[int, list[Request]]:
        """A step with prefills, beside decodes: when it starts, whose last token it brings."""
        replica, device = self.replica, self.device
        batch = self.now.batch(planned) if self.keeps_steps else NO_ENTRIES
        sums, noted, fresh, ended, num_regular = self.now.compute(planned, start_ps > device.free_ps)
        work_ps = device.work_ps(sums)
        device.free_ps = end_ps = start_ps + work_ps
        for request in fresh:
            request.scheduled_ps = start_ps
        replica.note_tokens(noted, end_ps, end_ps)
        replica.log_batch(start_ps, work_ps, sums, num_regular)
        if self.keeps_steps:
            self._keep(start_ps, batch)
        return start_ps, ended

    def _span(self, start_ps: int) -> tuple[int, list[Request]]:
        """Decode-only steps likewise; of a span that is under way the next one, where steps are kept."""
        now, group, device = self.now, self.group, self.device
        num_steps, duration_ps, slope_ps, num_blocks = self.left or self._plan_span(start_ps)
        if self.keeps_steps:  # one step at a time
            self.left = (num_steps - 1, duration_ps + slope_ps, slope_ps, 0) if num_steps > 1 else None
            num_steps, num_blocks = 1, group.blocks_next
        elif now.ending and num_steps > 1:  # what they give back is handed out from the second step on
            self.kv.take(group.blocks_next - now.taken)
            now.taken = group.blocks_next
            if now.is_watched:
                self.replica.now_ps = start_ps
            group.ahead = 1, 1  # the first of the steps is under way
            now.let_go(start_ps, start_ps)
            group.ahead = 0, 0
        if num_blocks != now.taken:
            self.kv.take(num_blocks - now.taken)
        now.taken = 0
        newest_ps = start_ps + (num_steps - 1) * duration_ps + slope_ps * ((num_steps - 1) * (num_steps - 2) // 2)
        device.free_ps = newest_ps + duration_ps + slope_ps * (num_steps - 1)
        self.replica.number += num_steps
        if self.keeps_steps:
            self._keep(newest_ps, now.batch({}))
        return newest_ps, group.advance(num_steps)

    def reach_ps(self) -> int:
        """Where the clock is after as many decode-only steps as nothing can change, if nobody comes."""
        group, now_ps, free_ps = self.group, self.replica.now_ps, self.device.free_ps
        if self.device.noise is not None:
            return now_ps
        self.longest = num_steps, duration_ps, slope_ps = self._longest()
        if num_steps < 2:
            return now_ps
        num_free = self.kv.free + self.now.taken
        if (num_steps // group.block_size + 1) * group.size > num_free:
            num_steps = group.rounds_within(num_steps, num_free)
        if self.now.is_async:  # the next step is planned when the last one begins
            num_steps -= 1
        return (free_ps if free_ps > now_ps else now_ps) + span_ps(num_steps, duration_ps, slope_ps)

    def _longest(self) -> tuple[int, int, int]:
        """Decode-only steps in a row that change nothing, the first one's duration, slope; arrivals are not asked."""
        group, windows, context_ps = self.group, self.windows, self.context_ps
        size = group.size
        while size >= len(self.decode_ps):
            self.decode_ps.append(self.cost.decode_ps(len(self.decode_ps)))
        duration_ps, slope_ps = self.decode_ps[size] + context_ps * group.context, context_ps * size
        if windows is not None:
            duration_ps += windows.decode_ps * group.in_window
            slope_ps += windows.decode_ps * group.num_growing
        return self.now.most_steps(), duration_ps, slope_ps

    def leaves_ps(self) -> int:
        """When the newest step's tokens will have left."""
        return self.device.free_ps

    def _keep(self, start_ps: int, batch: Batch) -> None:
        """The step in full, for the record."""
        now_ps, replica = self.replica.now_ps, self.replica
        self.kept = Step(batch, now_ps, now_ps, start_ps, self.device.free_ps, number=replica.number)

    def _plan_span(self, start_ps: int) -> tuple[int, int, int, int]:
        """As many decode-only steps as nothing can change: their number, the first one's duration, slope, blocks."""
        now, group, num_regular = self.now, self.group, self.group.size
        num_steps, duration_ps, slope_ps = self.longest or self._longest()
        self.longest = None
        if self.device.noise is not None:
            num_steps, duration_ps, slope_ps = 1, self.device.noise.step_ps(duration_ps, has_prefill=False), 0
        elif num_steps > 1:
            time_left_ps = self.replica.cut_ps() - start_ps
            if num_steps * (duration_ps + slope_ps * num_steps) > time_left_ps:  # at most, and quick to say
                before = steps_until(time_left_ps, duration_ps, slope_ps)  # a plan can see the next arrival before
                num_steps = min(num_steps, before + 1 if now.is_async else max(before, 1))
        if not now.has_stepped:
            num_regular -= self._note_late(start_ps, start_ps + duration_ps)
        num_blocks, num_free = group.blocks_for(num_steps), self.kv.free + now.taken
        if num_blocks > num_free:
            num_steps = group.rounds_within(num_steps, num_free)
            num_blocks = group.blocks_for(num_steps)
        self.write_segment(pack_span(
            start_ps, num_steps, duration_ps, slope_ps, group.size, num_regular, group.context,
            len(self.replica.scheduler.running), self.replica.count_waiting(), num_free - num_blocks,
        ))  # fmt: skip
        return num_steps, duration_ps, slope_ps, num_blocks

    def _note_late(self, start_ps: int, end_ps: int) -> int:
        """Members whose token does not come one step after the one before: how many there are."""
        is_paused = start_ps > self.device.free_ps
        noted = self.now.late(NEVER - 1 if is_paused else self.replica.number)
        self.replica.number += is_paused
        self.replica.note_tokens(noted, end_ps, end_ps)
        return len(noted)
