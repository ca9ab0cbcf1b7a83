"""A policy at work in vLLM's scheduler: what it is shown of requests and engine, and what it decides.

Nothing is imported from vLLM here; its requests and its scheduler are read by the names of the version that
`simbatch.serving.scheduler` was written for.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from itertools import takewhile
from typing import Any, Protocol

from simbatch.serving.engine_facts import UNASKED, ServedRequest
from simbatch.serving.options import PLACE
from simbatch.sim.clock import to_ps
from simbatch.sim.cost.model import CostModel, step_ps_beside
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.decisions import Decisions
from simbatch.sim.scheduler.request import KnownRequest, decoding, has_prefill
from simbatch.sim.scheduler.views import PolicyEngine

LOWEST = float("inf")  # priority: above every integer, so first to be preempted


class ServedClock(Protocol):
    """The policy's time, ps."""

    def now_ps(self) -> int:
        """The time now."""

    def arrival_ps(self, arrival_time: float) -> int:
        """When a request came, from what vLLM knows of it."""


class EngineClock:
    """Time since it was made; vLLM stamps requests with the wall clock's."""

    def __init__(self) -> None:
        self._origin_s, self._begin_s = time.time(), time.perf_counter()

    def now_ps(self) -> int:
        """The time now."""
        return to_ps(time.perf_counter() - self._begin_s)

    def arrival_ps(self, arrival_time: float) -> int:
        """When a request came."""
        return to_ps(arrival_time - self._origin_s)


class ServedDecisions(Decisions):
    """A request that vLLM puts back without having preempted it keeps its lane: the policy is asked once, as ever."""

    def _lane(self, request: KnownRequest) -> Hashable:
        assert isinstance(request, ServedRequest)
        if request.lane is UNASKED:
            request.lane = super()._lane(request)
        return request.lane


class Guide:
    """A policy at work in one scheduler: its decisions, the requests as it knows them, what it sees of the engine."""

    def __init__(self, policy: Policy, scheduler: Any, clock: ServedClock, seed: int, cost: CostModel | None) -> None:
        self.scheduler, self.clock = scheduler, clock
        self.config = engine_config(scheduler, seed)
        self.decisions = ServedDecisions(self.config, policy)
        self.ahead: dict[str, int] = {}  # tokens that the step in planning gives each request, by vLLM's ids
        self.marked: ServedRequest | None = None  # whose priority is `LOWEST` until it is preempted
        self.may_admit = True  # as the simulator's scheduler has it: something has changed since a refusal
        self.refused: list[tuple[Any, str]] = []  # turned away, and their clients do not know yet
        self._left: list[Any] = []  # requests that have ended since a step's output was last taken in
        self._served: dict[str, ServedRequest] = {}
        self._num_arrived = 0
        self._cost = cost
        self._decoding: tuple[int, int] | None = None  # as it was before the step that is being planned
        self._has_preempted = False  # in the step that is being planned
        self._holds_prefills = getattr(scheduler, "local_prefill_interval", 1) > 1  # vLLM 0.33
        self.decisions.start(PolicyEngine(self.config, self))

    def begin_step(self) -> int:
        """A step is planned from now on; returns how many tokens it may take."""
        self._has_preempted = False
        if not self.scheduler.running:  # whatever it was that the head of the queue has been refused for
            self.may_admit = True
        if not self.decisions.asked_on_change:
            return self.config.max_num_batched_tokens
        is_admitting = self.may_admit and self.num_waiting > 0
        if not (is_admitting or self.decisions.decides_budget):
            return self.config.max_num_batched_tokens
        running = [self.served(request) for request in self.scheduler.running]
        self._decoding = decoding(running)
        return self.decisions.budget_of_step(running, is_admitting)

    def step_is_planned(self, num_tokens: dict[str, int]) -> None:
        """The step gives these requests so many tokens; vLLM is about to add them up."""
        self.tell_admissions()
        if self.decisions.asked_on_change and not self._has_preempted:
            # who waits for something of vLLM's own (a grammar, a KV transfer, prefill_schedule_interval) comes back
            # without an arrival
            waits_for_vllm = bool(self.scheduler.deferred_waiting) or self._holds_prefills
            self.may_admit = waits_for_vllm or self._has_prefill(num_tokens)
        self.end_step()

    def _has_prefill(self, num_tokens: dict[str, int]) -> bool:
        """Whether the step computes more than decodes; nobody needs to know while nobody waits."""
        if not self.num_waiting:
            return False
        requests = self.scheduler.requests
        return has_prefill({self.served(requests[name]): n for name, n in num_tokens.items()})

    def end_step(self) -> None:
        """Nothing is being planned any more."""
        self.ahead.clear()
        self.unmark()
        self._decoding = None

    def seats(self) -> int:
        """How many requests may run, asked before an admission; hopeless heads of the queue are gone then."""
        if self.decisions.asked_on_change and not self.may_admit:
            return 0
        self.tell_admissions()
        seats, scheduler = self.decisions.seats(), self.scheduler
        while self.decisions.sheds_head and len(scheduler.running) < seats and not scheduler.kv_holding_waiting:
            if not scheduler.waiting:
                return 0
            head = scheduler.waiting.peek_request()
            reason = self.decisions.shed(self.served(head))
            if reason is None:
                break
            scheduler.turn_away(head, reason)
        return seats

    def tell_admissions(self) -> None:
        """Tell the policy who has got a seat since it was last told; they are the last of those that run."""
        if not self.decisions.hears_admissions:
            return
        new = list(takewhile(lambda request: not request.is_seated, map(self.served, reversed(self.scheduler.running))))
        for request in reversed(new):
            request.is_seated = True
            self.decisions.admitted(request)

    def preempts(self, inside: Any) -> None:
        """A running request is about to lose its blocks."""
        self.unmark()
        request = self.served(inside)
        request.is_seated, request.lane = False, UNASKED
        self.ahead.pop(inside.request_id, None)
        self.may_admit = self._has_preempted = True

    def arrives(self, inside: Any) -> str | None:
        """A request has come; returns why the policy turns it away, if it does."""
        request = self.served(inside)
        self.may_admit = True
        if self.decisions.predicts:
            self.decisions.predict(request)
        if request.foretold is not None:
            request.predicted_output_tokens = float(request.foretold)
        return self.decisions.reject(request)

    def served(self, inside: Any) -> ServedRequest:
        """The request as the policy knows it."""
        known = self._served.get(inside.request_id)
        if known is None or known.inside is not inside:
            arrival_ps = self.clock.arrival_ps(inside.arrival_time)
            known = ServedRequest(self._num_arrived, inside, arrival_ps, self.config.max_model_len, self.ahead)
            self._served[inside.request_id] = known
            self._num_arrived += 1
        return known

    def ends(self, inside: Any) -> None:
        """A request has its last token, or is given up; queues may still name it until the step is taken in."""
        self.served(inside).finish_ps = self.now_ps
        self.may_admit = True
        self._left.append(inside)

    def take_ended(self) -> list[ServedRequest]:
        """Who has left, as far as the policy knew them; they are forgotten now."""
        left, self._left = self._left, []
        return [self._served.pop(inside.request_id) for inside in left]

    @property
    def now_ps(self) -> int:
        """The clock."""
        return self.clock.now_ps()

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return int(self.scheduler.get_request_counts()[1])

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return len(self.scheduler.running)

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def ahead_of(self, request: ServedRequest) -> tuple[int, int]:
        """Nothing: its numbers are read live."""
        return 0, 0

    def freed_by(self, request: ServedRequest) -> int:
        """KV blocks that a request alone holds."""
        (blocks, *_) = self.scheduler.kv_cache_manager.get_blocks(request.inside.request_id).blocks
        return sum(block.ref_cnt == 1 for block in blocks)

    def cached_tokens(self, request: ServedRequest) -> int:
        """Tokens of a waiting request that the prefix cache would give it now."""
        if not self.config.enable_prefix_caching:
            return 0
        find, inside = self.scheduler.kv_cache_manager.coordinator.find_longest_cache_hit, request.inside
        return int(find(inside.block_hashes, inside.num_tokens - 1)[1])

    def decoding(self) -> tuple[int, int]:
        """How many running requests want one token after their prompt, and the sum of their computed tokens."""
        return decoding(map(self.served, self.scheduler.running)) if self._decoding is None else self._decoding

    def step_ps_with(self, num_tokens: int, num_computed: int) -> int:
        """How long the profile says that a step lasts with so many prompt tokens, after others, beside all decodes."""
        if self._cost is None:
            rule = "the policy asks how long steps last (step_time_s), and no profile says it"
            raise UserError(Problem(f"{PLACE}.profile", rule, mend="name the profile of this model on this GPU"))
        return step_ps_beside(self._cost, self.decoding(), num_tokens, num_computed)

    def mark_victim(self) -> None:
        """Let the policy choose who is preempted next."""
        victim = self.decisions.victim([self.served(request) for request in self.scheduler.running])
        assert isinstance(victim, ServedRequest)
        self.unmark()
        self.marked = victim
        victim.inside.priority = LOWEST

    def unmark(self) -> None:
        """Give the chosen victim its own priority back."""
        if self.marked is not None:
            self.marked.inside.priority = self.marked.priority
            self.marked = None


def engine_config(scheduler: Any, seed: int) -> EngineConfig:
    """The engine as vLLM resolved it, in the simulator's form."""
    settings = vars(scheduler.scheduler_config)
    names = EngineConfig.__dataclass_fields__.keys() & settings.keys()
    given = {name: settings[name] for name in names}
    return EngineConfig(
        **{
            **given,
            "max_num_batched_tokens": scheduler.max_num_scheduled_tokens,
            "max_model_len": scheduler.max_model_len,
            "num_gpu_blocks": scheduler.kv_cache_config.num_blocks,
            "block_size": scheduler.block_size,
            "enable_prefix_caching": bool(scheduler.cache_config.enable_prefix_caching),
            "scheduling_policy": settings["policy"],
            "seed": seed,
        }
    )
