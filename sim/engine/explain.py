"""The life of one request: why it waited in each step, who preempted it, what it hit in the cache.

The scenario is simulated step by step, as vLLM's scheduler goes through it, and one request is watched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from simbatch.sim.clock import to_s
from simbatch.sim.engine.replica import Replica
from simbatch.sim.scheduler.request import Request

if TYPE_CHECKING:
    from simbatch.sim.engine.step import Step


class Event(NamedTuple):
    """Something that happened to the request, in one step or in several alike."""

    time_s: float  # when it was decided, or when it came about
    step: int | None  # the first step of it
    num_steps: int
    what: str


class WatchedReplica(Replica):
    """A stepwise replica that tells the life of the request called `watched_id`."""

    def __init__(self, *args: Any, watched_id: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[Event] = []
        self._watched_id = watched_id
        self._watched: Request | None = None
        self._step = 0
        self._needed_by: dict[Request, Request | None] = {}
        preempt = self.scheduler.preempt

        def noted(request: Request, position: int, needed_by: Request | None = None) -> None:
            self._needed_by[request] = needed_by
            preempt(request, position, needed_by)

        self.scheduler.preempt = noted  # type: ignore[method-assign]

    def add(self, request: Request) -> None:
        """Note the arrival."""
        if request.request_id == self._watched_id:
            self._watched = request
            lengths = f"{request.num_prompt_tokens} prompt tokens, {request.max_tokens} to produce"
            shown = f"arrives ({lengths}); {len(self.scheduler.running)} running, {self.num_waiting} waiting"
            self._tell(shown, at_ps=request.arrival_ps, step=None)
        super().add(request)
        if request is self._watched and self.recorder.reason.get(request.index):
            self._tell(f"rejected: {self.recorder.reason[request.index]}", step=None)

    def schedule(self, overhead_ps: int) -> Step:
        """Note what the step has for the request, or why it has nothing."""
        self._needed_by.clear()
        was_running = self._watched in self.scheduler.running
        step = super().schedule(overhead_ps)
        request = self._watched
        if request is not None:
            entry = next((entry for entry in step.batch.entries if entry.request is request), None)
            if request in self._needed_by:
                self._tell(self._preemption(request))
            elif entry is not None:
                self._tell_entry(entry.num_tokens, entry.num_computed_tokens, entry.is_decode, was_running)
            elif request in self.scheduler.running:
                self._tell("gets no token: its last one is in flight, or the budget went to those before it")
            elif request.finish_ps < 0 and not self.recorder.reason.get(request.index):
                self._tell(f"waits: {self._why_waiting(request)}")
        self._step += bool(step.batch.entries)
        return step

    def update(self, step: Step) -> None:
        """Note the first token and the end."""
        request = self._watched
        before = None if request is None else (request.first_token_ps, request.finish_ps)
        super().update(step)
        if request is None or before is None:
            return
        if before[0] < 0 <= request.first_token_ps:
            after_s = to_s(request.first_token_ps - request.arrival_ps)
            self._tell(f"first token, {after_s:.3f} s after it was sent", step=None)
        if before[1] < 0 <= request.finish_ps:
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
        time_ps = self.now_ps if at_ps is None else at_ps
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
        if self.backlog is not None and request not in self.scheduler.waiting.requests():
            return "a batch is under way (static batching)"
        head = self.scheduler.waiting.head
        why = REASONS[self.scheduler.refusal.reason].format(**self.scheduler.refusal._asdict())
        return why if head is request else f"behind request {head.request_id}, which has {why}"


REASONS = {
    "seats": "no seat: {needed} of {available} are taken",
    "blocks": "too few blocks: {needed} needed ({watermark} of them for the watermark), {available} free",
    "budget": "no tokens left of the step's budget",
    "chunk": "{needed} tokens for {available} left of the budget, and chunked prefill is off",
    "preemption": "to wait: a preemption closed admission for this step",
}
