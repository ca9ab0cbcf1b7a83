"""One engine from outside: its door, where requests are taken in, turned away or held, and what policies see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from simbatch.sim.cost.model import CostModel, step_ps_beside
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.resources import Host
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.request import Request, decoding, is_decoding
from simbatch.sim.scheduler.scheduler import Scheduler
from simbatch.sim.scheduler.waiting import WaitingQueue


class Inbox(Protocol):
    """Where an engine's requests come from: the traffic itself, or a front end."""

    next_ps: int  # when there is something to take next

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""

    def take(self, now_ps: int, add: Callable[[Request, int], int], /) -> int:
        """Hand over what has come by `now_ps`; `add` prices an admission (ps), the answer is the clock after them."""


class Door:
    """Who gets in, and when a batch is formed."""

    def __init__(
        self,
        scheduler: Scheduler,
        recorder: Recorder,
        left: Callable[[Request, int], None],
        listener: Listener | None,
        host: Host,
    ) -> None:
        config, decisions = scheduler.config, scheduler.decisions
        self._decisions = decisions
        self._scheduler = scheduler
        self._recorder = recorder
        self._left = left  # told who has left the system, and when
        self._listener = listener
        self._may_refuse, self._predicts = decisions.rejects, decisions.predicts
        self._max_model_len: int = config.max_model_len
        self._host = host
        self._is_timed = recorder.is_timed
        self._waiting = scheduler.waiting
        self.held_until_ps = 0  # what the policy has promised, while nobody runs
        self.is_static = config.batching == "static"
        self.backlog: WaitingQueue[Request] | None = decisions.new_queue() if self.is_static else None

    def add(self, request: Request, now_ps: int) -> int:
        """Queue an arriving request, unless it is turned away; returns what that takes on the host (ps)."""
        self._scheduler.may_admit, self.held_until_ps = True, 0
        if self._listener is not None:
            self._listener.arrived(request, now_ps)
        if self._predicts:
            self._decisions.predict(request)
        if request.num_prompt_tokens >= self._max_model_len or self._may_refuse:
            reason = self._too_long(request) or self._decisions.reject(request)
            if reason is not None:
                self.turn_away(request, reason, now_ps)
                return 0
        (self._waiting if self.backlog is None else self.backlog).add(request)
        if not self._is_timed:
            return 0
        request.queued_ps = now_ps
        return self._host.admit_ps(request.num_prompt_tokens)

    def is_held(self, now_ps: int) -> bool:
        """Whether the policy waits for a fuller batch; nobody runs then. A promise is kept: it is not asked again."""
        if not self._decisions.holds or self._scheduler.running:
            return False
        waiting = self._scheduler.waiting or self.backlog
        if not waiting or (self.backlog is not None and self._scheduler.waiting):
            return False
        if not 0 < self.held_until_ps <= now_ps:
            self.held_until_ps = self._decisions.hold_until_ps(waiting.head)
        return self.held_until_ps > now_ps

    def form_batch(self, now_ps: int) -> None:
        """Static batching: when everybody has left, as many as there are seats go in together."""
        backlog, scheduler = self.backlog, self._scheduler
        if not backlog or scheduler.running or scheduler.waiting or self.is_held(now_ps):
            return
        scheduler.may_admit = True
        num_seats = self._decisions.seats()
        while backlog and len(scheduler.waiting) < num_seats:
            request = backlog.take()
            reason = self._decisions.shed(request) if self._decisions.sheds else None
            if reason is None:
                scheduler.waiting.add(request)
            else:
                self.turn_away(request, reason, now_ps)

    def turn_away(self, request: Request, reason: str, now_ps: int) -> None:
        """A request leaves without an answer."""
        self._recorder.rejected(request, reason)
        if self._listener is not None:
            self._listener.turned_away(request, reason, now_ps)
        self._left(request, now_ps)

    def _too_long(self, request: Request) -> str | None:
        """Why vLLM's front end turns the request away (v1/engine/input_processor.py), if it does."""
        limit = self._max_model_len
        if request.num_prompt_tokens < limit:
            return None
        return f"prompt of {request.num_prompt_tokens} tokens is not shorter than max_model_len ({limit})"


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
    count_waiting: Callable[[], int]  # requests in the queue

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self.count_waiting()

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

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a waiting request that the prefix cache would give it now."""
        return self.kv.lookup(request)[0] * self.kv.block_size

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
