"""Decodes before prompts: nothing disturbs those who are being answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.planning import Room
from simbatch.sim.plugins.policy import EngineView, Plan, Policy, RequestView


class DecodeFirst(Policy):
    """Fill a batch with prompts, answer all of it to the end, and only then let the next ones in.

    A batch is filled for as long as somebody waits and seats and blocks last; from then on no prompt is computed while
    anybody decodes. Plans every step. Source: the decode-prioritising schedulers of Agrawal et al., Taming
    Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024, sections 2 and 3), FasterTransformer
    among them: the smallest time between tokens, and the lowest throughput, since the seats of those who have ended
    stay empty until the last one ends.
    """

    known_as = "FasterTransformer"
    max_batch_size: Annotated[int, Field(ge=1, description="most requests that run")] = 64

    def start(self, engine: EngineView) -> None:
        """The first batch is to be filled."""
        self._is_filling = True

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Prompts while the batch is filled, those begun first; then decodes, until nobody is left."""
        room = Room(running, engine, self.max_batch_size)
        self._is_filling = self._is_filling or not running
        if self._is_filling:
            room.serve_prompts(running, waiting)
            self._is_filling = bool(room.tokens)
        if not self._is_filling:
            for request in running:
                room.serve(request, reversed(running))
        return room.plan()

    def starvation_bound_s(self) -> float | None:
        """First come, first served."""
        return 0.0
