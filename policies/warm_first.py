"""Warm requests first: what is in the prefix cache is used before it is evicted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView


class WarmFirst(Policy):
    """Requests whose prompt is in the prefix cache go first: turns whose conversation has not been evicted yet.

    Who waits holds no blocks. Behind others a turn's conversation is evicted for theirs, and all of it is computed
    again. So a request of which at least `warm_share` is cached when it arrives counts as `patience_s` older than it
    is: nobody is overtaken by one that came more than that later. Source: Zheng et al., SGLang: Efficient Execution
    of Structured Language Model Programs (NeurIPS 2024; arXiv 2312.07104), section 3: cache-aware scheduling, the
    longest shared prefix first, raises the hit rate over first come, first served. That it must not starve others is
    noted there; the bound is ours.
    """

    warm_share: Annotated[float, Field(gt=0, le=1, description="of a request's tokens, from which on it is warm")] = 0.5
    patience_s: Annotated[float, Field(gt=0, description="how much later a warm one may come and yet go first")] = 10.0

    def start(self, engine: EngineView) -> None:
        """Nobody has come."""
        self._engine = engine
        self._is_warm: dict[str, bool] = {}

    def order(self, request: RequestView) -> float:
        """By arrival, the warm ones sooner; a preempted request stays what it was."""
        name = request.request_id
        if name not in self._is_warm:
            share = self._engine.cached_tokens(request) / request.num_prompt_tokens
            self._is_warm[name] = share >= self.warm_share
        return request.arrival_s - self.patience_s * self._is_warm[name]

    def finished(self, request: RequestView) -> None:
        """Forget it."""
        self._is_warm.pop(request.request_id, None)

    def starvation_bound_s(self) -> float:
        """By how much a warm one is older than it is."""
        return self.patience_s
