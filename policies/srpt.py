"""Shortest remaining processing time first, with a limit on preemption."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Plan, Policy, RequestView
from simbatch.policies.planning import Room


class ShortestRemainingFirst(Policy):
    """Serve those with the fewest predicted tokens left; a shorter newcomer takes the seat of a longer one.

    Who has produced `preemptible_share` of its predicted output keeps its seat, since all it has would be computed
    again. Plans every step. Source: Shahout et al., Don't Stop Me Now: Embedding Based Scheduling for LLMs (TRAIL,
    ICLR 2025): mean latency and mean TTFT fall against first come, first served; preempting late costs more than it
    gives.
    """

    predictor_error: Annotated[float, Field(ge=0, le=10, description="of ln(predicted / true); 0: an oracle")] = 0.5
    preemptible_share: Annotated[
        float, Field(ge=0, le=1, description="of the prediction, until which a seat can be lost")
    ] = 0.8

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Whoever is nearly done, then by what is left; the longest of the others give way."""
        firm = [request for request in running if self._is_firm(request)]
        loose = sorted((request for request in running if not self._is_firm(request)), key=self._left)
        room = Room(running, engine)
        for request in firm:
            room.serve(request, [*reversed(loose), *reversed(firm)])
        newcomers = nsmallest(engine.max_num_seqs, waiting, key=self._left)
        for request in sorted([*loose, *newcomers], key=self._left):
            if not room.serve(request, self._longer(loose, request)) and request.num_computed_tokens == 0:
                break
        return room.plan()

    def _is_firm(self, request: RequestView) -> bool:
        return request.num_output_tokens >= self.preemptible_share * request.predicted_output_tokens

    def _left(self, request: RequestView) -> float:
        return max(request.predicted_output_tokens - request.num_output_tokens, 1.0)

    def _longer(self, loose: Sequence[RequestView], request: RequestView) -> list[RequestView]:
        return [other for other in reversed(loose) if self._left(other) > self._left(request)]
