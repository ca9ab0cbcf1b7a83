"""The contract between the engine and a batching policy.

A policy changes decisions, not mechanics. Each decision is one small method whose default is vLLM's behaviour; the
engine allocates, counts and checks. A policy sees requests and the engine through read-only views, in seconds and
tokens, and never a request's true output length.

When it is asked, between `start` and the last `finished`:

- `reject`: of a request that arrives. `order` and `lane`: then, and after a preemption; with lanes, `order` of the
  heads of all lines at each admission.
- `hold`: when the engine is idle and somebody waits, and again at each arrival.
- `shed` and `seats`: after a change, when the head of the queue may get a seat, and again after each admission.
- `token_budget`: in steps that may compute prompts. `victim`: when a running request finds no free block.
- `admitted` and `finished` tell of a request that has got a seat, or its last token.
- `plan`: at every step, in place of `order`, `lane`, `hold`, `shed`, `seats`, `token_budget` and `victim`.

A change is an arrival, an end, a preemption, or a step that computed prompts. While nothing of that kind happens the
engine leaps over the steps and asks nothing: an answer stands until the next change. It should depend on what the
policy is shown and was told, and change nothing, since how often a policy is asked at one moment is left open. Views
may be kept: they show a request as it is when they are read.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from simbatch.sim.plugins import Plugin, Plugins, SentRequest


class RequestView(SentRequest, Protocol):
    """What a policy may know about a request."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed now."""

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens that it knows and has not computed: 1 for a decode, 0 if it can have none in the next step."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced so far, one that is on its way (asynchronous scheduling) included."""

    @property
    def predicted_output_tokens(self) -> float:
        """What was predicted of the output's length.

        By a trace's column of this name, or `simulate(..., predictor=...)`; without either the truth times
        exp(predictor_error * z), z standard normal, for a policy with a parameter `predictor_error`: 0 is an oracle.
        Results say who predicted, and the error where it is stated.
        """

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
    def num_decoding(self) -> int:
        """Running requests whose prompt is computed and that want a token in the next step."""

    def step_time_s(self, num_prompt_tokens: int, num_computed_tokens: int = 0) -> float:
        """How long the profile says a step lasts with so many prompt tokens (after others) beside all decodes."""

    @property
    def free_blocks(self) -> int:
        """KV blocks nobody holds."""

    def blocks_freed_by(self, request: RequestView) -> int:
        """How many blocks a running request's preemption would free: those it shares stay taken."""

    def cached_tokens(self, request: RequestView) -> int:
        """How many tokens of a waiting request, from the first on, are in the prefix cache: 0 without one.

        They may be evicted before it is admitted: who waits holds no blocks.
        """

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


DECISIONS = ("order", "lane", "hold", "seats", "shed", "token_budget", "victim", "reject", "plan")


class Policy(Plugin):
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

    known_as: ClassVar[str] = ""  # what the field calls it: the system or paper that it comes from
    disciplines: ClassVar[tuple[str, ...]] = ("continuous",)  # of `continuous`, `static`

    def start(self, engine: EngineView) -> None:
        """Set the state for a run; called once before it."""

    def order(self, request: RequestView) -> Any:
        """What the queue is sorted by, smaller first, ties by arrival; asked at arrival and after a preemption.

        It may look at the request and at what was told, not at how far others are: a preemption is in mid-step.
        Without it: first come, first served, and a preempted request goes to the front.
        """
        return request.arrival_s

    def lane(self, request: RequestView) -> Hashable:
        """The line that a request waits in, first come, first served (a preempted one in front).

        The next to be admitted is the head of a line with the smallest `order`, asked afresh at each admission: so an
        order can change while requests wait, at the cost of one question a line. Without it: the order stands.
        """
        return None

    def hold(self, head: RequestView, engine: EngineView) -> float:
        """Until when (s) an idle engine waits for a fuller batch; `head` would be first. Now or earlier: not at all.

        Asked again at every arrival; what it said last is kept to.
        """
        return engine.now_s

    def seats(self, engine: EngineView) -> int:
        """How many requests may run (static: how many make a batch). Lowering it preempts nobody."""
        return engine.max_num_seqs

    def shed(self, request: RequestView, engine: EngineView) -> str | None:
        """Why to drop a request that is about to get its first seat, or None to admit it."""
        return None

    def token_budget(self, engine: EngineView) -> int:
        """How many tokens the next step may take. It cuts prompts short; no decode is held back by it.

        Not asked without chunked prefill, when no prompt can be cut.
        """
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

    def admitted(self, request: RequestView) -> None:
        """Feedback: `request` has just got a seat, the first or, after a preemption, another one."""

    def finished(self, request: RequestView) -> None:
        """Feedback: `request` has just got its last token."""

    def starvation_bound_s(self) -> float | None:
        """How much later (s) than a request another one may arrive and yet be admitted before it; None: no bound.

        A promise about `order`, which `simbatch policies check` tests; first come, first served is 0.
        """
        return None if self.overrides("order") or self.overrides("plan") else 0.0

    @classmethod
    def overrides(cls, method: str) -> bool:
        """Whether this policy decides `method` itself; where it does not, the engine does not even ask."""
        return getattr(cls, method) is not getattr(Policy, method)

    @classmethod
    def decisions(cls) -> list[str]:
        """The decisions that this policy takes itself."""
        return [name for name in DECISIONS if cls.overrides(name)]


POLICIES = Plugins("policy", "policy", "policies", "simbatch.policies", Policy, "simbatch.policies.Policy")


__all__ = ["DECISIONS", "EngineView", "Plan", "Policy", "RequestView"]
