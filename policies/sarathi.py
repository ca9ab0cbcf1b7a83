"""Chunks of prompts just large enough to keep the time between tokens under a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

ALIKE_BLOCKS, ALIKE_TOKENS = 32, 256  # steps whose contexts differ by less take equally long, to a thousandth


class Sarathi(Policy):
    """Let a step have as many prompt tokens with its decodes as it can with the bound kept, by the profile.

    Everything else is vLLM's own: decodes first, prompts in order of arrival, cut into chunks. Source: Agrawal et al.,
    Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve (OSDI 2024, section 4), which takes one token
    budget from a profile and the bound on the time between tokens; here for each step, by what decodes in it and how
    far the prompt under way is. The tail of the time between tokens comes down to the bound, at nearly the throughput
    of whole prompts; times to first token get longer.
    """

    known_as = "Sarathi-Serve"
    target_tpot_ms: Annotated[float, Field(gt=0, description="bound on a step that somebody decodes in")] = 100.0
    tile_tokens: Annotated[int, Field(ge=1, description="chunks are multiples of this, at least one")] = 128

    def start(self, engine: EngineView) -> None:
        """No prompt is under way."""
        self._num_tiles: dict[tuple[int, int, int], int] = {}  # by what the answer depends on, coarsely
        self._near = 1  # where the search ended last
        self._newest: RequestView | None = None

    def admitted(self, request: RequestView) -> None:
        """Whose prompt is under way, if any is: prompts are computed in order."""
        self._newest = request

    def token_budget(self, engine: EngineView) -> int:
        """All of it when nobody decodes; else the decodes and the largest chunk within the bound."""
        limit, num_decodes = engine.max_num_batched_tokens, engine.num_decoding
        if not num_decodes:
            return limit
        history = self._tokens_before()
        alike = num_decodes, engine.free_blocks // ALIKE_BLOCKS, history // ALIKE_TOKENS
        n = self._num_tiles.get(alike)
        if n is None:
            most = (limit - num_decodes) // self.tile_tokens
            self._num_tiles[alike] = self._near = n = self._search(engine, most, history)
        return min(num_decodes + n * self.tile_tokens, limit)

    def _search(self, engine: EngineView, most: int, history: int) -> int:
        time_s, bound_s = engine.step_time_s, self.target_tpot_ms / 1000

        def fits(num_tiles: int) -> bool:
            return time_s(num_tiles * self.tile_tokens, history) <= bound_s

        return largest(fits, most, near=self._near)

    def _tokens_before(self) -> int:
        """How much of the prompt under way is computed, if one is: the next chunk attends to it."""
        newest = self._newest
        computed = newest.num_computed_tokens if newest else 0
        return computed if newest and computed < newest.num_prompt_tokens else 0


def largest(fits: Callable[[int], bool], most: int, *, near: int) -> int:
    """The largest number up to `most` that fits, or 1; quickly found when it is close to `near`."""
    n, step = max(min(near, most), 1), 1
    if fits(n):
        while n < most and fits(min(n + step, most)):
            n, step = min(n + step, most), 2 * step
    else:
        while n > 1 and not fits(max(n - step, 1)):
            n, step = max(n - step, 1), 2 * step
        n = max(n - step, 1)
    while step > 1:  # n fits, n + step does not
        step //= 2
        if n + step <= most and fits(n + step):
            n += step
    return n
