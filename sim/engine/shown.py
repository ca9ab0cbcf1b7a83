"""What policies are shown of a simulated engine (`simbatch.sim.scheduler.views.Engine`)."""

from __future__ import annotations

from collections.abc import Sequence

from simbatch.sim.cost.model import CostModel, step_ps_beside
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.door import Door
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.scheduler import Scheduler, decoding, is_decoding


class ShownEngine:
    """The part of a replica that views read."""

    now_ps: int
    cost: CostModel
    kv: KVCache
    scheduler: Scheduler
    door: Door
    group: DecodeGroup  # who decodes, counted together, while steps are leapt over
    partials: Sequence[Request] = ()  # running requests beside the group
    decoding_before: tuple[int, int] | None = None  # as it was before the step that is being planned

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        num_waiting, backlog = len(self.scheduler.waiting), self.door.backlog
        return num_waiting if backlog is None else num_waiting + len(backlog)

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
        return self.group.ahead_of(request)

    def decoding(self) -> tuple[int, int]:
        """How many running requests want one token after their prompt, and the sum of their computed tokens."""
        if self.decoding_before is not None:
            return self.decoding_before
        group = self.group
        if not group.size:
            return decoding(self.scheduler.running)
        num_decodes, context = group.size, group.context
        for request in self.partials:
            if is_decoding(request):  # the last token of what it computes again
                num_decodes, context = num_decodes + 1, context + request.num_computed_tokens
        return num_decodes, context

    def step_ps_with(self, num_tokens: int, num_computed: int) -> int:
        """How long a step lasts that computes so many prompt tokens, after others, beside all decodes."""
        return step_ps_beside(self.cost, self.decoding(), num_tokens, num_computed)
