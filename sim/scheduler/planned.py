"""A scheduler whose every step is planned by the policy; the engine checks the plan, allocates and counts."""

from __future__ import annotations

from typing import Any

from simbatch.sim.scheduler.request import Batch, Request
from simbatch.sim.scheduler.scheduler import Scheduler
from simbatch.sim.scheduler.views import PolicyRequest, request_of


class PlannedScheduler(Scheduler):
    """Does as `Policy.plan` says, as far as budget, seats and blocks allow it; a plan beyond them is an error."""

    _num_steps = 0

    def schedule(self) -> Batch:
        """Ask for the next step, check it, and give out seats and blocks."""
        self._num_steps += 1
        plan = self.decisions.plan(self.running, self.waiting.requests())
        wanted: Any = plan  # what a policy gives is checked here, by value: compiled code must not do it by type
        preempted = [self._request_of(view) for view in wanted.preempt]
        for request in preempted:
            if request not in self.running:
                self._refuse(request, "only a running request can be preempted")
            self.preempt(request, self.running.index(request))
        planned: dict[Request, int] = {}
        budget, running = self.config.max_num_batched_tokens, set(self.running)
        for view, n in wanted.tokens.items():
            request = request_of(view) if type(view) is PolicyRequest else self._request_of(view)
            if not isinstance(n, int) or n < 1:
                self._refuse(request, "tokens must be a whole number of at least 1", n)
            if request not in running:
                n = self._admit(request, n)
            elif n > 1 or not self._decode(request):
                self._grow(request, n)
            planned[request] = n
            budget -= n
            if budget < 0:
                self._refuse(request, f"the step is over max_num_batched_tokens ({self.config.max_num_batched_tokens})")
        return Batch(self._entries(planned), preempted)

    def _decode(self, request: Request) -> bool:
        """One more token that needs no block and is not the last in flight: most of what plans say; else False."""
        computed, in_flight = request.num_computed_tokens, request.num_placeholders
        if not computed % self.kv.block_size or computed >= request.num_tokens + in_flight:
            return False
        if in_flight and request.last_token_in_flight:
            return False
        self.advance(request, computed + 1)
        return True

    def _grow(self, request: Request, n: int) -> None:
        wanted = request.num_tokens + request.num_placeholders - request.num_computed_tokens
        if n > wanted or (request.num_placeholders and request.last_token_in_flight):
            self._refuse(request, f"it wants {0 if request.last_token_in_flight else wanted} tokens", n)
        total = request.num_computed_tokens + n
        num_blocks = self.kv.blocks(total) - self.kv.blocks(request.num_computed_tokens)
        if num_blocks:
            self._check_blocks(request, num_blocks)
            self.kv.take(num_blocks)
        self.advance(request, total)

    def _admit(self, request: Request, n: int) -> int:
        if request not in self.waiting.requests():
            self._refuse(request, "it neither runs nor waits")
        if len(self.running) >= self.decisions.max_seats:
            self._refuse(request, f"no seat is left of max_num_seqs ({self.decisions.max_seats})")
        num_hits, num_idle = self.kv.lookup(request)
        num_cached = num_hits * self.kv.block_size
        n = min(n, request.num_tokens - num_cached)
        self._check_blocks(request, self.kv.blocks(num_cached + n) - num_hits + num_idle)
        self.waiting.drop(request)
        self.seat(request, num_hits, num_cached + n)
        return n

    def _check_blocks(self, request: Request, num_blocks: int) -> None:
        if num_blocks > self.kv.free:
            self._refuse(request, f"it needs {num_blocks} KV blocks and {self.kv.free} are free")

    def _request_of(self, view: Any) -> Request:
        if isinstance(view, PolicyRequest):
            request: Request = request_of(view)
            return request
        raise self.decisions.broken("plan() must name requests by the views that it was given", view)

    def _refuse(self, request: Request, rule: str, *value: object) -> None:
        where = f"plan() for step {self._num_steps - 1}, request {request.request_id}"
        raise self.decisions.broken(f"{where}: {rule}", *value)
