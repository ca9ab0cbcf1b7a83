"""Shortest remaining processing time first, with limits on preemption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.planning import Room
from simbatch.sim.plugins.policy import EngineView, Plan, Policy, RequestView


class ShortestRemainingFirst(Policy):
    """Serve those with the fewest predicted tokens left; a shorter newcomer takes the seat of a longer one.

    What the loser has computed is computed again. So who has produced `preemptible_share` of its predicted output
    keeps its seat; and with `weigh_recompute` a newcomer must be shorter by more than all others together lose while
    that is computed again, by the profile. Plans every step.

    Source: Shahout et al., Don't Stop Me Now: Embedding Based Scheduling for LLMs (TRAIL, ICLR 2025), whose limit on
    preemption is the share (c, there 0.8) alone: mean latency and mean TTFT fall against first come, first served;
    preempting late costs more than it gives.
    """

    known_as = "TRAIL"
    predictor_error: Annotated[float, Field(ge=0, le=10, description="of ln(predicted / true); 0: an oracle")] = 0.5
    preemptible_share: Annotated[
        float, Field(ge=0, le=1, description="of the prediction, until which a seat can be lost")
    ] = 0.8
    weigh_recompute: Annotated[bool, Field(description="take a seat only for more than computing again costs")] = True

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Whoever is nearly done, then by what is left; the longest of the others give way."""
        firm = [request for request in running if self._is_firm(request)]
        loose = sorted((request for request in running if not self._is_firm(request)), key=self._left)
        room = Room(running, engine)
        for request in firm:
            room.serve(request, [*reversed(loose), *reversed(firm)])
        newcomers, waits, is_full = nsmallest(engine.max_num_seqs, waiting, key=self._left), set(waiting), False
        for request in sorted([*loose, *newcomers], key=self._left):  # ties: who runs, then who came first
            is_new = request in waits
            if not (is_new and is_full):
                is_full |= not room.serve(request, self._longer(loose, request, engine, is_new=is_new)) and is_new
        return room.plan()

    def _is_firm(self, request: RequestView) -> bool:
        return request.num_output_tokens >= self.preemptible_share * request.predicted_output_tokens

    def _left(self, request: RequestView) -> float:
        return max(request.predicted_output_tokens - request.num_output_tokens, 1.0)

    def _longer(
        self, loose: Sequence[RequestView], request: RequestView, engine: EngineView, *, is_new: bool
    ) -> Iterator[RequestView]:
        """Who would give way to a request, the longest first; to a newcomer only if all of that is worth it."""
        lost = 0.0
        for other in reversed(loose):
            gain = self._left(other) - self._left(request)
            if is_new and self.weigh_recompute:
                lost += self._lost_tokens(other, engine)
            if gain <= lost:
                return
            yield other

    def _lost_tokens(self, request: RequestView, engine: EngineView) -> float:
        """Steps for which everybody, running and waiting, is held up while a request's tokens are computed again."""
        step_s = engine.step_time_s(0)
        num_steps = (engine.step_time_s(request.num_computed_tokens) - step_s) / max(step_s, 1e-9)
        return num_steps * (engine.num_running + engine.num_waiting)
