"""Requests on their way into the engine, and out: taken in, turned away, held back, made into static batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simbatch.sim.engine.arrivals import Arrivals
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.shown import ShownEngine
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.decisions import Decisions
from simbatch.sim.scheduler.request import Request

PROGRESS_INTERVAL = 500  # requests


class Intake(ShownEngine):
    """The part of a replica that is its door."""

    config: EngineConfig
    arrivals: Arrivals
    recorder: Recorder
    decisions: Decisions
    num_gone = 0  # requests that have left the system
    _progress: Callable[[int], None] | None
    _held_until_ps = 0  # what the policy has promised, while nobody runs

    def intake(self) -> int:
        """Take in every request that has arrived; returns how long (ps) that keeps the engine's host busy."""
        num_taken = self.arrivals.take(self.now_ps, self.add)
        if num_taken:
            self.scheduler.may_admit, self._held_until_ps = True, 0
        if self.backlog and not self.scheduler.running and not self.scheduler.waiting and not self.is_held():
            self._form_batch(self.backlog)
        return num_taken * self.config.host.admit_base_ps if self.config.host else 0

    def add(self, request: Request) -> None:
        """Queue an arriving request, unless it is turned away."""
        if self.decisions.predicts:
            self.decisions.predict(request)
        if request.num_prompt_tokens >= self.config.max_model_len or self.decisions.rejects:
            reason = self._too_long(request) or self.decisions.reject(request)
            if reason is not None:
                self._turn_away(request, reason)
                return
        (self.scheduler.waiting if self.backlog is None else self.backlog).add(request)

    def is_held(self) -> bool:
        """Whether the policy waits for a fuller batch; nobody runs then. A promise is kept: it is not asked again."""
        if not self.decisions.holds or self.scheduler.running:
            return False
        waiting = self.scheduler.waiting or self.backlog
        if not waiting or (self.backlog is not None and self.scheduler.waiting):
            return False
        if not 0 < self._held_until_ps <= self.now_ps:
            self._held_until_ps = self.decisions.hold_until_ps(waiting.head)
        return self._held_until_ps > self.now_ps

    def _form_batch(self, backlog: Any) -> None:
        self.scheduler.may_admit = True
        num_seats = self.decisions.seats()
        while backlog and len(self.scheduler.waiting) < num_seats:
            request = backlog.take()
            reason = self.decisions.shed(request) if self.decisions.sheds else None
            if reason is None:
                self.scheduler.waiting.add(request)
            else:
                self._turn_away(request, reason)

    def _turn_away(self, request: Request, reason: str) -> None:
        self.recorder.rejected(request, reason)
        self._gone(self.now_ps)

    def _gone(self, at_ps: int) -> None:
        self.num_gone += 1
        if self.arrivals.is_limited:
            self.arrivals.ended(at_ps)
        if not self.num_gone % PROGRESS_INTERVAL:
            self.recorder.pack()
            if self._progress is not None:
                self._progress(self.num_gone)

    def _too_long(self, request: Request) -> str | None:
        """Why vLLM's front end turns the request away (v1/engine/input_processor.py), if it does."""
        limit = self.config.max_model_len
        if request.num_prompt_tokens < limit:
            return None
        return f"prompt of {request.num_prompt_tokens} tokens is not shorter than max_model_len ({limit})"
