"""What policies are shown of a simulated engine (`simbatch.sim.scheduler.views.Engine`)."""

from __future__ import annotations

from simbatch.sim.cost.model import CostModel
from simbatch.sim.engine.step import step_ps_beside
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.scheduler import Scheduler, decoding
from simbatch.sim.scheduler.waiting import WaitingQueue


class ShownEngine:
    """The part of a replica that views read."""

    now_ps: int
    cost: CostModel
    kv: KVCache
    scheduler: Scheduler
    backlog: WaitingQueue | None
    _decoding: tuple[int, int] | None = None  # as it was before the step that is being planned

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self.scheduler.waiting) + (len(self.backlog) if self.backlog else 0)

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return len(self.scheduler.running)

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""
        return self.kv.free

    def freed_by(self, request: Request) -> int:
        """KV blocks that a request alone holds."""
        return self.kv.freed_by(request)

    def ahead_of(self, request: Request) -> tuple[int, int]:
        """Tokens computed, and tokens known, that a request's own numbers do not say yet."""
        return 0, 0

    def decoding(self) -> tuple[int, int]:
        """How many running requests want one token after their prompt, and the sum of their computed tokens."""
        return decoding(self.scheduler.running) if self._decoding is None else self._decoding

    def step_ps_with(self, num_tokens: int, num_computed: int) -> int:
        """How long a step lasts that computes so many prompt tokens, after others, beside all decodes."""
        return step_ps_beside(self.cost, self._decoding or self.decoding(), num_tokens, num_computed)
