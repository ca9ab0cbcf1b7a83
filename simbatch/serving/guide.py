"""A policy at work in vLLM's scheduler: what it is shown of requests and engine, and what it decides.

Nothing is imported from vLLM here; its requests and its scheduler are read by the names of the version that
`simbatch.serving.scheduler` was written for.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from simbatch.policies.base import Policy
from simbatch.sim.clock import to_ps
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.decisions import Decisions
from simbatch.sim.scheduler.request import Request
from simbatch.sim.scheduler.views import EngineView

LOWEST = float("inf")  # priority: above every integer, so first to be preempted


class Clock(Protocol):
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


class ServedRequest(Request):
    """A request of vLLM's (`inside`) as the simulator's decisions and views know requests; what changes is read live.

    `ahead` holds what the step in planning has given out so far: vLLM adds it up when the step is planned, the
    simulator at once. The tenant comes with the request, in `vllm_xargs` or `SamplingParams.extra_args`.
    """

    def __init__(self, index: int, inside: Any, arrival_ps: int, max_model_len: int, ahead: dict[str, int]) -> None:
        self.index, self.inside, self.arrival_ps, self._ahead = index, inside, arrival_ps, ahead
        self.max_tokens = min(inside.max_tokens, max_model_len - inside.num_prompt_tokens)
        self.priority = inside.priority
        extra = getattr(inside.sampling_params, "extra_args", None) or {}
        self.tenant = extra.get("tenant")
        self._name = extra.get("request_id") or own_name(inside.request_id)

    @property
    def num_prompt_tokens(self) -> int:  # type: ignore[override]
        """Length of the prompt."""
        return int(self.inside.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        """The prompt and the outputs received."""
        return int(self.inside.num_tokens)

    @property
    def num_computed_tokens(self) -> int:  # type: ignore[override]
        """Tokens in the KV cache, or being computed."""
        return int(self.inside.num_computed_tokens) + self._ahead.get(self.inside.request_id, 0)

    @property
    def num_placeholders(self) -> int:  # type: ignore[override]
        """Tokens sampled by steps in flight."""
        return int(self.inside.num_output_placeholders)

    @property
    def num_preemptions(self) -> int:  # type: ignore[override]
        """How often it has lost its blocks."""
        return int(self.inside.num_preemptions)


def own_name(inside: str) -> str:
    """The name that a request came with: vLLM adds a dash and eight random digits (v1/engine/input_processor.py)."""
    name, dash, digits = inside.rpartition("-")
    return name if dash and name and len(digits) == 8 and set(digits) <= set("0123456789abcdef") else inside


class Guide:
    """A policy at work in one scheduler: its decisions, the requests as it knows them, what it sees of the engine."""

    def __init__(self, policy: Policy, scheduler: Any, clock: Clock) -> None:
        self.scheduler, self.clock = scheduler, clock
        self.config = engine_config(scheduler)
        self.decisions = Decisions(self.config, policy)
        self.ahead: dict[str, int] = {}  # tokens that the step in planning gives each request, by vLLM's ids
        self.marked: ServedRequest | None = None  # whose priority is `LOWEST` until it is preempted
        self._left: list[Any] = []  # requests that have ended since a step's output was last taken in
        self.refused: list[tuple[Any, str]] = []  # turned away, and their clients do not know yet
        self._served: dict[str, ServedRequest] = {}
        self._num_arrived = 0
        self.decisions.start(EngineView(self.config, self))

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


def engine_config(scheduler: Any) -> EngineConfig:
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
        }
    )
