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

    target_tpot_ms: Annotated[float, Field(gt=0, description="bound on a step that somebody decodes in")] = 50.0
    min_chunk_tokens: Annotated[int, Field(ge=1, description="what prompts get in any case")] = 64

    def token_budget(self, engine: EngineView) -> int:
        """All of it when nobody decodes; else the largest chunk within the bound, to a power of two or half-way."""
        limit = engine.max_num_batched_tokens
        num_decodes = engine.num_decoding
        if not num_decodes:
            return limit
        chunk = self.min_chunk_tokens
        step = chunk
        while step >= self.min_chunk_tokens:
            if num_decodes + chunk + step <= limit and engine.step_time_s(chunk + step) * 1000 <= self.target_tpot_ms:
                chunk += step
                step *= 2
            else:
                step //= 2
        return min(num_decodes + chunk, limit)
