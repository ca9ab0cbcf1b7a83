"""Chunks of prompts just large enough to keep the time between tokens under a bound."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Policy, RequestView


class Sarathi(Policy):
    """Let a step have as many prompt tokens beside its decodes as it can with the bound kept, by the profile.

    Everything else is vLLM's own: decodes first, prompts in order of arrival, cut into chunks. Source: Agrawal et al.,
    Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024, section 4), which takes one token
    budget from a profile and the bound on the time between tokens; here for each step, by what decodes in it. The tail
    of the time between tokens comes down to the bound, at nearly the throughput of whole prompts; times to first token
    get longer.
    """

    target_tpot_ms: Annotated[float, Field(gt=0, description="bound on a step that somebody decodes in")] = 50.0
    min_chunk_tokens: Annotated[int, Field(ge=1, description="what prompts get in any case")] = 64

    def start(self, engine: EngineView) -> None:
        """Nobody is in the middle of a prompt."""
        self._newest: RequestView | None = None

    def admitted(self, request: RequestView) -> None:
        """Whose prompt is under way, if any is: prompts are computed in order."""
        self._newest = request

    def token_budget(self, engine: EngineView) -> int:
        """All of it when nobody decodes; else the largest chunk within the bound, in multiples of the smallest."""
        limit = engine.max_num_batched_tokens
        num_decodes, num_computed = engine.num_decoding, self._num_computed()
        if not num_decodes:
            return limit
        chunk = step = self.min_chunk_tokens
        while step >= self.min_chunk_tokens:  # doubled while it fits, then halved
            longer = chunk + step
            fits = num_decodes + longer <= limit
            if fits and engine.step_time_s(longer, num_computed) * 1000 <= self.target_tpot_ms:
                chunk = longer
                step *= 2
            else:
                step //= 2
        return min(num_decodes + chunk, limit)

    def _num_computed(self) -> int:
        """How much of the prompt under way is computed, which its next chunk attends to."""
        newest = self._newest
        return newest.num_computed_tokens if newest and newest.num_computed_tokens < newest.num_prompt_tokens else 0
