"""Skip-join multi-level feedback queue: short answers first, without knowing which are short."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from math import ceil, log2
from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Plan, Policy, RequestView
from simbatch.policies.planning import Room

Standing = tuple[int, int, float]  # level, output tokens when it came there, when it began to wait


class MultiLevelFeedback(Policy):
    """Serve `max_batch_size` requests a step, those of the highest level first; who uses a level's quantum up sinks.

    The quantum of a level is twice that of the one above. A request skips the levels whose quantum its prompt would
    use up (by the profile). Who has not been served for `promote_s` rises to the top, so nobody starves. Who is passed
    over keeps seat and blocks, as long as there are any. Plans every step. Source: Wu et al., Fast Distributed
    Inference Serving for Large Language Models (FastServe, 2023): where long answers block the way, mean latency falls
    against first come, first served.
    """

    quantum_s: Annotated[float, Field(gt=0, description="of the highest level")] = 0.5
    num_levels: Annotated[int, Field(ge=1, le=32, description="levels")] = 6
    promote_s: Annotated[float, Field(gt=0, description="unserved for so long, a request rises to the top")] = 30.0
    max_batch_size: Annotated[int, Field(ge=1, description="requests in a step")] = 64

    def start(self, engine: EngineView) -> None:
        """Nobody has a level."""
        self._standing: dict[str, Standing] = {}

    def finished(self, request: RequestView) -> None:
        """Forget it."""
        self._standing.pop(request.request_id, None)

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """The highest levels, as many as make a batch; the lowest give way."""
        step_s = engine.step_time_s(0) if engine.num_decoding else 0.0
        rank = {request: self._rank(request, step_s, engine) for request in [*running, *waiting]}
        ranked = nsmallest(engine.max_num_seqs + len(running), rank, key=rank.__getitem__)
        lowest = sorted(running, key=rank.__getitem__, reverse=True)
        room = Room(running, engine)
        for request in ranked:
            if len(room.tokens) >= self.max_batch_size or not room.budget:
                break
            below = (other for other in lowest if rank[other] > rank[request])
            if not room.serve(request, below) and not request.num_computed_tokens:
                break
        for request in room.tokens:
            level, since, _ = self._standing[request.request_id]
            self._standing[request.request_id] = level, since, engine.now_s
        return room.plan()

    def starvation_bound_s(self) -> float | None:
        """At the top it is overtaken only by those who came to it before."""
        return None

    def _rank(self, request: RequestView, step_s: float, engine: EngineView) -> tuple[int, float, str]:
        """Level, arrival, name; moves the request to the level where it belongs."""
        standing = self._standing.get(request.request_id)
        if standing is None:
            prompt_s = engine.step_time_s(request.num_prompt_tokens)
            level = min(max(ceil(log2(max(prompt_s / self.quantum_s, 1e-9))), 0), self.num_levels - 1)
            standing = level, 0, request.arrival_s
        level, since, waits_since_s = standing
        if level and engine.now_s - waits_since_s > self.promote_s:
            level, since = 0, request.num_output_tokens
        elif (request.num_output_tokens - since) * step_s > self.quantum_s * 2**level and level < self.num_levels - 1:
            level, since = level + 1, request.num_output_tokens
        self._standing[request.request_id] = level, since, waits_since_s
        return level, request.arrival_s, request.request_id
