"""The contract between the engine and a batching policy.

A policy changes decisions, not mechanics. Each decision is one small method whose default is vLLM's behaviour; the
engine allocates, counts and checks. A policy sees requests and the engine through read-only views, in seconds and
tokens, and never a request's true output length.

The engine asks again only after something has changed (an arrival, an end, a preemption), never at every step: what
a method returns must depend on the state it is shown and on what `finished` told, not on the clock alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, dataclass_transform


class RequestView(Protocol):
    """What a policy may know about a request."""

    @property
    def request_id(self) -> str:
        """The name it came with."""

    @property
    def arrival_s(self) -> float:
        """When the client sent it."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def priority(self) -> int:
        """Lower goes first, as in vLLM: high 0, normal 1, low 2."""

    @property
    def tenant(self) -> str | None:
        """Whose request it is, when the trace says."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed now."""

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens that it knows and has not computed: 1 for a decode, 0 if it can have none in the next step."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced so far."""

    @property
    def num_preemptions(self) -> int:
        """How often it has lost its blocks."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, once there is one."""

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: only of a finished request with more than one."""

    @property
    def e2el_s(self) -> float | None:
        """End-to-end latency, once finished."""


@dataclass(frozen=True)
class Plan:
    """A whole step: who computes how many tokens, in this order, and who gives up blocks and seat before it."""

    tokens: Mapping[RequestView, int]
    preempt: Sequence[RequestView] = ()


class EngineView(Protocol):
    """What a policy may know about the engine."""

    @property
    def now_s(self) -> float:
        """The clock at this decision."""

    @property
    def num_waiting(self) -> int:
        """Requests in the queue, preempted ones among them."""

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""

    @property
    def num_usable_blocks(self) -> int:
        """All KV blocks but vLLM's null block."""

    @property
    def block_size(self) -> int:
        """Tokens a KV block holds."""

    @property
    def max_num_seqs(self) -> int:
        """Seats that the engine has; a policy can offer fewer, never more."""

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that a step can take; a policy can allow fewer, never more."""


@dataclass_transform(eq_default=False)
@dataclass(eq=False)
class Policy:
    """vLLM's own decisions; override what should differ.

    A subclass is a dataclass without saying so: its annotated attributes are the parameters, given in YAML beside the
    name and checked by their types (`Annotated[int, Field(ge=1)]`). State belongs in `start`.

    >>> class ShortestPromptFirst(Policy):
    ...     '''Serve the shortest prompt first.'''
    ...     def order(self, request):
    ...         return request.num_prompt_tokens
    >>> ShortestPromptFirst().parameters()
    {}
    """

    disciplines: ClassVar[tuple[str, ...]] = ("continuous",)  # of `continuous`, `static`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(eq=False)(cls)

    def start(self, engine: EngineView) -> None:
        """Set the state for a run; called once before it."""

    def order(self, request: RequestView) -> Any:
        """What the queue is sorted by, smaller first, ties by arrival; asked at arrival and after a preemption.

        Without it: first come, first served, and a preempted request goes to the front.
        """
        return request.arrival_s

    def seats(self, engine: EngineView) -> int:
        """How many requests may run (static: how many make a batch). Lowering it preempts nobody."""
        return engine.max_num_seqs

    def token_budget(self, engine: EngineView) -> int:
        """How many tokens the next step may take."""
        return engine.max_num_batched_tokens

    def victim(self, running: Sequence[RequestView]) -> RequestView:
        """Who loses its blocks when they run out; `running` is in order of admission."""
        return running[-1]

    def reject(self, request: RequestView, engine: EngineView) -> str | None:
        """Why to turn an arriving request away, or None to take it."""
        return None

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """The whole next step, for a policy that none of the methods above can express; asked at every step.

        It replaces `order`, `seats`, `token_budget` and `victim`, and spans: every step is simulated. Running requests
        that it leaves out keep blocks and seat. The engine checks it: tokens within the budget and within what each
        request wants, seats, free blocks. Cached tokens of a waiting request need not be computed; what is too many
        for that reason alone is cut.
        """
        return Plan({request: request.num_wanted_tokens for request in running if request.num_wanted_tokens})

    def finished(self, request: RequestView) -> None:
        """Feedback: `request` has just got its last token."""

    def overrides(self, method: str) -> bool:
        """Whether this policy decides `method` itself; where it does not, the engine does not even ask."""
        return getattr(type(self), method) is not getattr(Policy, method)

    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as YAML would give them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
