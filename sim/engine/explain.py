"""The life of one request: why it waited in each step, who preempted it, what it hit in the cache.

The scenario is simulated step by step, as vLLM's scheduler goes through it, and one request is watched.
"""

from __future__ import annotations

from typing import NamedTuple

from simbatch.sim.clock import to_s
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Step
from simbatch.sim.scheduler.request import NEVER, Request


class Event(NamedTuple):
    """Something that happened to the request, in one step or in several alike."""

    time_s: float  # when it was decided, or when it came about
    step: int | None  # the first step of it
    num_steps: int
    what: str
    # of the first step, where host or front end take time
    schedule_s: float | None = None  # S: schedule() begins
    launched_s: float | None = None  # L: the launch has returned
    end_s: float | None = None  # D: the device is done
    updated_s: float | None = None  # U: its tokens exist


class Watch(Listener):
    """Tells the life of the request called `watched_id`; `replica` is given before the run."""

    replica: Replica

    def __init__(self, watched_id: str) -> None:
        self.events: list[Event] = []
        self._watched_id = watched_id
        self._watched: Request | None = None
        self._step = 0
        self._was_running = False
        self._needed_by: dict[Request, Request | None] = {}
        self._before = (NEVER, NEVER)
        self._in_flight: dict[Step, int] = {}  # which event a step is the first one of

    def arrived(self, request: Request, now_ps: int) -> None:
        """Note the arrival."""
        if request.request_id != self._watched_id:
            return
        self._watched = request
        lengths = f"{request.num_prompt_tokens} prompt tokens, {request.max_tokens} to produce"
        num_running, num_waiting = len(self.replica.scheduler.running), self.replica.num_waiting
        shown = f"arrives ({lengths}); {num_running} running, {num_waiting} waiting"
        self._tell(shown, at_ps=request.arrival_ps, step=None)

    def forget(self) -> None:
        """The request is sent elsewhere."""
        self._watched = None

    def turned_away(self, request: Request, reason: str, now_ps: int) -> None:
        """Note why there will be no answer."""
        if request is self._watched:
            self._tell(f"rejected: {reason}", step=None)

    def preempted(self, request: Request, needed_by: Request | None) -> None:
        """Note for whom."""
        self._needed_by[request] = needed_by

    def planning(self, now_ps: int) -> None:
        """Note who runs."""
        self._needed_by.clear()
        self._was_running = self._watched in self.replica.scheduler.running

    def planned(self, step: Step) -> None:
        """Note what the step has for the request, or why it has nothing."""
        request, num_events = self._watched, len(self.events)
        if request is not None:
            entry = next((entry for entry in step.batch.entries if entry.request is request), None)
            if request in self._needed_by:
                self._tell(self._preemption(request))
            elif entry is not None:
                self._tell_entry(entry.num_tokens, entry.num_computed_tokens, entry.is_decode, self._was_running)
            elif request in self.replica.scheduler.running:
                self._tell("gets no token: its last one is in flight, or the budget went to those before it")
            elif request.finish_ps < 0 and not self.replica.recorder.reason.get(request.index):
                self._tell(f"waits: {self._why_waiting(request)}")
        if step.batch.entries:
            self._step += 1
            if len(self.events) > num_events and self.replica.is_timed:
                self._in_flight[step] = num_events

    def updating(self, step: Step) -> None:
        """Remember what there was."""
        request = self._watched
        if request is not None:
            self._before = request.first_token_ps, request.finish_ps

    def updated(self, step: Step, finished: list[Request]) -> None:
        """Note the step's times, the first token and the end."""
        request = self._watched
        if (i := self._in_flight.pop(step, None)) is not None:
            self.events[i] = self.events[i]._replace(
                schedule_s=to_s(step.schedule_ps),
                launched_s=to_s(step.launched_ps),
                end_s=to_s(step.end_ps),
                updated_s=to_s(step.updated_ps),
            )
        if request is None:
            return
        if self._before[0] < 0 <= request.first_token_ps:
            after_s = to_s(request.first_token_ps - request.arrival_ps)
            self._tell(f"first token, {after_s:.3f} s after it was sent", step=None)
        if self._before[1] < 0 <= request.finish_ps:
            after_s = to_s(request.finish_ps - request.arrival_ps)
            self._tell(
                f"finished with {request.num_output_tokens} tokens, {after_s:.3f} s after it was sent", step=None
            )

    def _tell(self, what: str, *, at_ps: int | None = None, step: int | None = -1) -> None:
        """Add an event; the same one in consecutive steps is told once."""
        last = self.events[-1] if self.events else None
        if step is not None and last is not None and last.step is not None and last.what == what:
            self.events[-1] = last._replace(num_steps=last.num_steps + 1)
            return
        time_ps = self.replica.now_ps if at_ps is None else at_ps
        self.events.append(Event(to_s(time_ps), None if step is None else self._step, 1, what))

    def _tell_entry(self, n: int, computed: int, is_decode: bool, was_running: bool) -> None:
        if is_decode and was_running:
            self._tell("decodes a token")
        elif was_running:
            self._tell(f"prefill goes on: {n} tokens after {computed}")
        else:
            again = "admitted again" if self._watched and self._watched.num_preemptions else "admitted"
            hit = f"; {computed} tokens hit in the prefix cache" if computed else ""
            self._tell(f"{again}: {n} tokens computed{hit}")

    def _preemption(self, request: Request) -> str:
        by = self._needed_by[request]
        whom = "itself" if by is request or by is None else f"request {by.request_id}"
        return f"preempted: {whom} needed a block and none was free; all that it has computed will be computed again"

    def _why_waiting(self, request: Request) -> str:
        scheduler = self.replica.scheduler
        if self.replica.door.backlog is not None and request not in scheduler.waiting.requests():
            return "a batch is under way (static batching)"
        head = scheduler.waiting.head
        why = REASONS[scheduler.refusal.reason].format(**scheduler.refusal._asdict())
        return why if head is request else f"behind request {head.request_id}, which has {why}"


REASONS = {
    "seats": "no seat: {needed} of {available} are taken",
    "blocks": "too few blocks: {needed} needed ({watermark} of them for the watermark), {available} free",
    "budget": "no tokens left of the step's budget",
    "chunk": "{needed} tokens for {available} left of the budget, and chunked prefill is off",
    "interval": "to wait: prefill_schedule_interval holds prefills back in this step",
    "preemption": "to wait: a preemption closed admission for this step",
}
