"""Skip-join multi-level feedback queue: short answers first, without knowing which are short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import ceil, log2
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.planning import Room
from simbatch.sim.plugins.policy import EngineView, Plan, Policy, RequestView


@dataclass
class Level:
    """Where a request stands: its level, how much of the level's quantum it has used, when it was served last."""

    level: int
    served_at_s: float
    used_s: float = 0.0


class MultiLevelFeedback(Policy):
    """Serve `max_batch_size` requests a step, those of the highest level first; who uses a level's quantum up sinks.

    The quantum of a level is twice that of the one above; what counts are the steps that a request is part of. A
    request joins at the first level whose quantum holds its first step (its prompt, by the profile). Who has not been
    served for `promote_s` rises to the top, so nobody starves. On a level first come is first served. Who is passed
    over keeps seat and blocks, and loses them (to compute them again) only to one of higher rank that has not lost
    its own; so give the engine more seats than `max_batch_size`. Plans every step.

    Source: Wu et al., FastServe: Iteration-Level Preemptive Scheduling for Large Language Model Inference (NSDI 2026;
    arXiv 2305.05920), whose code has a highest quantum of 10 ms, levels without end, 3 s to rise, and moves blocks to
    the host's memory. Figure 11: where long answers block the way, latency per token falls far below first come, first
    served.
    """

    known_as = "FastServe"
    quantum_s: Annotated[float, Field(gt=0, description="of the highest level")] = 0.5
    num_levels: Annotated[int, Field(ge=1, le=32, description="levels, each with twice the quantum")] = 6
    promote_s: Annotated[float, Field(gt=0, description="unserved for so long, a request rises to the top")] = 30.0
    max_batch_size: Annotated[int, Field(ge=1, description="requests in a step")] = 64

    def start(self, engine: EngineView) -> None:
        """Nobody has a level."""
        self._standing: dict[str, Level] = {}
        self._served: list[str] = []  # by the step that was planned last, at `_planned_at_s`
        self._planned_at_s = engine.now_s

    def finished(self, request: RequestView) -> None:
        """Forget it."""
        self._standing.pop(request.request_id, None)

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """The highest levels, as many as make a batch; the lowest give way."""
        self._charge_last_step(engine.now_s)
        rank = {request: self._rank(request, engine) for request in [*running, *waiting]}
        first = nsmallest(engine.max_num_seqs, waiting, key=rank.__getitem__)
        ranked = sorted([*running, *first], key=rank.__getitem__)
        lowest = sorted(running, key=rank.__getitem__, reverse=True)
        room, newcomers, is_full = Room(running, engine), set(waiting), False
        for request in ranked:
            if len(room.tokens) >= self.max_batch_size or not room.budget:
                break
            if not (is_full and request in newcomers):
                # who has lost its own blocks takes nobody's: risen ones would take turns, and compute for ever
                is_loser = request in newcomers and request.num_preemptions > 0
                below = () if is_loser else (other for other in lowest if rank[other] > rank[request])
                is_full |= not room.serve(request, below) and request in newcomers
        self._served = [request.request_id for request in room.tokens]
        return room.plan()

    def _charge_last_step(self, now_s: float) -> None:
        """To those whom the last step served, until now; who has more than the quantum sinks by a level."""
        elapsed_s, self._planned_at_s = now_s - self._planned_at_s, now_s
        for standing in filter(None, map(self._standing.get, self._served)):
            standing.served_at_s = now_s
            standing.used_s += elapsed_s
            if standing.used_s > self.quantum_s * 2**standing.level and standing.level < self.num_levels - 1:
                standing.level, standing.used_s = standing.level + 1, 0.0

    def _rank(self, request: RequestView, engine: EngineView) -> tuple[int, float, str]:
        """Level, arrival, name."""
        standing = self._standing.get(request.request_id)
        if standing is None:
            standing = Level(self._first_level(request, engine), request.arrival_s)
            self._standing[request.request_id] = standing
        if standing.level and engine.now_s - standing.served_at_s > self.promote_s:
            standing.level, standing.used_s = 0, 0.0
        return standing.level, request.arrival_s, request.request_id

    def _first_level(self, request: RequestView, engine: EngineView) -> int:
        num_quanta = max(engine.step_time_s(request.num_prompt_tokens) / self.quantum_s, 1.0)
        return min(ceil(log2(num_quanta)), self.num_levels - 1)
