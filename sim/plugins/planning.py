"""For policies that plan every step: whoever comes first is served first, as far as the step's limits go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simbatch.sim.plugins.policy import EngineView, Plan, RequestView


class Room:
    """What a step that is being planned has left; nothing is given out that the engine would refuse."""

    def __init__(self, running: Sequence[RequestView], engine: EngineView, max_running: int | None = None) -> None:
        self.engine = engine
        self.tokens: dict[RequestView, int] = {}
        self.preempted: list[RequestView] = []
        self.budget = engine.max_num_batched_tokens
        self._running = set(running)
        self._max_running = min(max_running or engine.max_num_seqs, engine.max_num_seqs)
        self._free_blocks = engine.free_blocks

    def serve(self, request: RequestView, victims: Iterable[RequestView] = ()) -> bool:
        """Give a request what it wants, or what the budget has left of it; False when it finds no seat or no blocks.

        A waiting request needs blocks for all of its tokens at once, as in vLLM. `victims` lose theirs, the first of
        them first, as many as it takes, if that is enough.
        """
        n = min(request.num_wanted_tokens, self.budget)
        if n < 1 or request in self.preempted:
            return True
        evicted = self._evict(request, n, victims)
        if evicted is None:
            return False
        for victim in evicted:
            self._free_blocks += self.engine.blocks_freed_by(victim)
            self._running.remove(victim)
        self.preempted += evicted
        self._free_blocks -= self._blocks_for(request, n)
        self._running.add(request)
        self.tokens[request] = n
        self.budget -= n
        return True

    def serve_prompts(self, running: Iterable[RequestView], waiting: Iterable[RequestView]) -> None:
        """Prompts, those begun first, in order, for as long as budget, seats and blocks last."""
        for request in [*(request for request in running if not is_decoding(request)), *waiting]:
            if not self.budget or not self.serve(request):
                return

    def plan(self) -> Plan:
        """What was given out."""
        return Plan(self.tokens, self.preempted)

    def _evict(self, request: RequestView, n: int, victims: Iterable[RequestView]) -> list[RequestView] | None:
        """Whom to preempt for it: nobody, if there is room; None if that is not enough."""
        is_new = request not in self._running
        num_blocks, free, num_running = self._blocks_for(request, n), self._free_blocks, len(self._running)
        evicted: list[RequestView] = []
        candidates = iter(victims)
        while num_blocks > free or (is_new and num_running >= self._max_running):
            victim = next((v for v in candidates if v in self._running and v not in self.tokens and v != request), None)
            if victim is None:
                return None
            evicted.append(victim)
            free += self.engine.blocks_freed_by(victim)
            num_running -= 1
        return evicted

    def _blocks_for(self, request: RequestView, n: int) -> int:
        size = self.engine.block_size
        if request in self._running:
            computed = request.num_computed_tokens
            return -(-(computed + n) // size) - -(-computed // size)
        return -(-request.num_wanted_tokens // size)


def is_decoding(request: RequestView) -> bool:
    """Whether a running request's prompt is computed, so that it wants one token a step."""
    return request.num_computed_tokens >= request.num_prompt_tokens and request.num_wanted_tokens <= 1
