"""What a policy sees: read-only, in seconds and tokens, and nothing that a real scheduler could not know."""

from __future__ import annotations

from typing import Any, Protocol

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import KnownRequest


class Engine(Protocol):
    """What stands behind a view of an engine: a simulated replica, or vLLM itself (`simbatch.vllm_scheduler`)."""

    @property
    def now_ps(self) -> int:
        """The clock."""

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""

    def ahead_of(self, request: Any) -> tuple[int, int]:
        """Tokens computed, and tokens known, that a request's own numbers do not say yet."""

    def freed_by(self, request: Any) -> int:
        """KV blocks that a request alone holds."""

    def cached_tokens(self, request: Any) -> int:
        """Tokens of a waiting request that the prefix cache would give it now."""

    def decoding(self) -> tuple[int, int]:
        """How many running requests want one token after their prompt, and the sum of their computed tokens."""

    def step_ps_with(self, num_tokens: int, num_computed: int) -> int:
        """How long a step lasts that computes so many prompt tokens, after others, beside all decodes."""


class SentView:
    """What a client sends, as policies and routers see it alike: never how long the output will be."""

    __slots__ = ("_request",)

    def __init__(self, request: KnownRequest) -> None:
        self._request = request

    @property
    def request_id(self) -> str:
        """The name it came with."""
        return self._request.request_id

    @property
    def arrival_s(self) -> float:
        """When the client sent it."""
        return self._request.arrival_ps / PS_PER_S

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self._request.num_prompt_tokens

    @property
    def priority(self) -> int:
        """Lower goes first, as in vLLM."""
        return self._request.priority

    @property
    def tenant(self) -> str | None:
        """Whose request it is, when the trace says."""
        return self._request.tenant

    @property
    def session_id(self) -> str | None:
        """Which conversation, or task of an agent, it is a turn of; None where nobody says."""
        return self._request.session_id

    @property
    def turn(self) -> int:
        """How many turns of its session came before, one after the other."""
        return self._request.turn

    @property
    def has_next_turn(self) -> bool:
        """Whether it is known that another turn waits for its end."""
        return self._request.has_next_turn

    def __repr__(self) -> str:
        return f"<request {self.request_id}>"


class PolicyRequest(SentView):
    """A request as a policy may see it: never its true output length (`simbatch.sim.plugins.policy.RequestView`)."""

    __slots__ = ("_engine",)

    def __init__(self, request: KnownRequest, engine: Engine) -> None:
        super().__init__(request)
        self._engine = engine

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed now."""
        return self._request.num_computed_tokens + self._engine.ahead_of(self._request)[0]

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens that it knows and has not computed, 0 if it can have none in the next step."""
        output = self.num_output_tokens
        if output >= self._request.max_tokens:
            return 0
        return self._request.num_prompt_tokens + output - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced so far, one that is on its way included."""
        request = self._request
        return request.num_output_tokens + request.num_placeholders + self._engine.ahead_of(request)[1]

    @property
    def predicted_output_tokens(self) -> float:
        """What is predicted of the output's length, by whoever predicts in this run."""
        if self._request.predicted_output_tokens is None:
            raise AttributeError(
                "nothing was predicted: give the policy a parameter predictor_error, which states the error, "
                "the trace a column predicted_output_tokens, or simulate() a predictor"
            )
        return self._request.predicted_output_tokens

    @property
    def num_preemptions(self) -> int:
        """How often it has lost its blocks."""
        return self._request.num_preemptions

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, once there is one."""
        first = self._request.first_token_ps
        return (first - self._request.arrival_ps) / PS_PER_S if 0 <= first <= self._engine.now_ps else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first, once finished with more than one."""
        request = self._request
        if request.finish_ps < 0 or request.num_output_tokens < 2:
            return None
        return (request.finish_ps - request.first_token_ps) / (request.num_output_tokens - 1) / PS_PER_S

    @property
    def e2el_s(self) -> float | None:
        """End-to-end latency, once finished."""
        finish = self._request.finish_ps
        return None if finish < 0 else (finish - self._request.arrival_ps) / PS_PER_S


def request_of(view: PolicyRequest) -> Any:
    """The request behind a view, as whoever made the view knows it."""
    return view._request


class PolicyEngine:
    """The engine as a policy may see it (`simbatch.sim.plugins.policy.EngineView`)."""

    __slots__ = ("_config", "_engine")

    def __init__(self, config: EngineConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine

    @property
    def now_s(self) -> float:
        """The clock at this decision."""
        return self._engine.now_ps / PS_PER_S

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones among them."""
        return self._engine.num_waiting

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return self._engine.num_running

    @property
    def num_decoding(self) -> int:
        """Running requests that want one token in the next step, their prompts computed."""
        return self._engine.decoding()[0]

    def step_time_s(self, num_prompt_tokens: int, num_computed_tokens: int = 0) -> float:
        """How long a step lasts that computes so many prompt tokens beside all decodes."""
        return self._engine.step_ps_with(num_prompt_tokens, num_computed_tokens) / PS_PER_S

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""
        return self._engine.free_blocks

    def blocks_freed_by(self, request: Any) -> int:
        """How many blocks a running request's preemption would free."""
        return self._engine.freed_by(request._request)

    def cached_tokens(self, request: Any) -> int:
        """How many tokens of a waiting request are in the prefix cache."""
        return self._engine.cached_tokens(request._request)

    @property
    def num_usable_blocks(self) -> int:
        """All KV blocks but vLLM's null block."""
        return self._config.num_gpu_blocks - 1

    @property
    def block_size(self) -> int:
        """Tokens a KV block holds."""
        return self._config.block_size

    @property
    def max_num_seqs(self) -> int:
        """Seats that the engine has."""
        return self._config.max_num_active_seqs or self._config.max_num_seqs

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that a step can take."""
        return self._config.max_num_batched_tokens


def view_of(request: KnownRequest, engine: PolicyEngine) -> PolicyRequest:
    """The one view of a request."""
    if request.view is None:
        request.view = PolicyRequest(request, engine._engine)
    return request.view  # type: ignore[return-value]
