"""Chunks of prompts just large enough to keep the time between tokens under a bound."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Policy


class Sarathi(Policy):
    """Let a step have as many prompt tokens beside its decodes as it can with the bound kept, by the profile.

    Everything else is vLLM's own: decodes first, prompts in order of arrival, cut into chunks. Source: Agrawal et al.,
    Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024), which takes the token budget
    from a profile and the bound on the time between tokens; here for each step, by what decodes in it. The tail of the
    time between tokens comes down to the bound, at nearly the throughput of whole prompts; times to first token get
    longer.
    """

    target_tpot_ms: Annotated[float, Field(gt=0, description="bound on a step that somebody decodes in")] = 100.0
    tile_tokens: Annotated[int, Field(ge=1, description="chunks are multiples of this, at least one")] = 64

    def start(self, engine: EngineView) -> None:
        """Begin to look at one tile."""
        self._num_tiles = 1

    def token_budget(self, engine: EngineView) -> int:
        """All of it when nobody decodes; else the decodes and the largest chunk within the bound."""
        limit, num_decodes = engine.max_num_batched_tokens, engine.num_decoding
        if not num_decodes:
            return limit
        most = (limit - num_decodes) // self.tile_tokens
        n = min(self._num_tiles, most)  # where the last search ended: it mostly ends there again
        step = 1
        if self._fits(n, engine):
            while n < most and self._fits(min(n + step, most), engine):
                n, step = min(n + step, most), 2 * step
        else:
            while n > 1 and not self._fits(max(n - step, 1), engine):
                n, step = max(n - step, 1), 2 * step
            n = max(n - step, 1)
        while step > 1:  # it fits with n and may fit with less than n + step
            step //= 2
            if n + step <= most and self._fits(n + step, engine):
                n += step
        self._num_tiles = n = max(n, 1)
        return min(num_decodes + n * self.tile_tokens, limit)

    def _fits(self, num_tiles: int, engine: EngineView) -> bool:
        return engine.step_time_s(num_tiles * self.tile_tokens) * 1000 <= self.target_tpot_ms
