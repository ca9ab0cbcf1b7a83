"""A request as the scheduler sees it, and a step's batch: of each request a decode, part of a prompt, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol, TypeVar

from simbatch.sim.cost.model import is_decode as is_decode_entry
from simbatch.sim.scheduler.names import MOST_BLOCKS, cut, num_in

NEVER: Final = -1  # compiled code has it as a number of its own


class KnownRequest(Protocol):
    """A request as decisions and views know it: the simulator's own, or one of vLLM's (`serving.engine_facts`)."""

    index: int
    view: object
    predicted_output_tokens: float | None
    arrival_ps: int
    first_token_ps: int
    finish_ps: int
    max_tokens: int
    priority: int
    tenant: str | None
    session_id: str | None
    turn: int
    has_next_turn: bool

    @property
    def request_id(self) -> str:
        """The name it came with."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def num_tokens(self) -> int:
        """The prompt and the outputs received."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced and received so far."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed."""

    @property
    def num_placeholders(self) -> int:
        """Tokens sampled by steps in flight."""

    @property
    def num_preemptions(self) -> int:
        """How often it has lost its blocks."""


class Request:
    """One request on its way through the engine; lengths in tokens, times in ps (-1: not yet).

    What most requests never change stands on the class, so that making one is cheap.
    """

    num_computed_tokens = 0  # advanced when scheduled, not when the step ends (vLLM v1/core/sched/scheduler.py)
    num_registered_tokens = 0  # tokens whose full blocks are in the prefix cache's index
    num_placeholders = 0  # tokens sampled by steps in flight (asynchronous scheduling)
    num_cached_tokens = 0  # prefix-cache hit at the first admission
    num_preemptions = 0
    is_chunk = False  # its newest step stopped short of its known tokens
    num_lost_tokens = 0  # computed when it was preempted, until it is admitted again
    predicted_output_tokens: float | None = None  # what a predictor of stated error says (predictor.py)
    scheduled_ps = NEVER
    first_token_ps = NEVER
    last_token_ps = NEVER  # at the front end's door, if there is one
    last_step = NEVER  # number of the step that computes its newest token
    queued_ps = NEVER  # taken in by the engine
    sent_again_ps = NEVER  # by the gateway, when the replica that had it was down
    first_sent_ps = NEVER  # when its first token left the front end
    finish_sent_ps = NEVER
    is_told = False  # its gateway knows when its last token leaves, before the replica has taken it in
    tenant: str | None = None
    finish_ps = NEVER
    seat = 0  # admission number: `running` is in this order
    joined_round = -1  # round in which it joined the decode group (decode_group.py), -1 outside
    row = NEVER  # of a session's turn: its row in the source, whose order is not that of sending
    session_id: str | None = None  # the conversation that it is a turn of
    turn = 0  # how many turns of its session came before it
    has_next_turn = False  # whether it is known that another turn follows
    num_known_tokens = 0  # of its prompt, in whole blocks, that its conversation has had computed
    view: object = None  # what policies see of it (views.py), made when it is first asked for
    keys: list[int] = []  # noqa: RUF012 - identity of each full block that others may share; replaced, never changed
    # Names of the full blocks that others may share, from the first on: equal where all tokens up to the end are equal.
    # As ranges, [begin, end, begin, end, ...]; replaced, never changed. Further blocks have names that follow from
    # `index`, since only the request itself can hit them, after a preemption.
    names: list[int] = []  # noqa: RUF012
    num_names = 0  # of these blocks, which others may find as soon as they are computed: those behind when it lets go
    num_held = 0  # its first blocks that the prefix cache has in its index

    def __init__(
        self, index: int, name: str | None, arrival_ps: int, num_prompt_tokens: int, max_tokens: int, priority: int = 0
    ) -> None:
        self.index = index
        self._name = name
        self.arrival_ps = arrival_ps
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.priority = priority
        self.num_tokens = num_prompt_tokens  # the prompt and the outputs received

    @property
    def last_token_in_flight(self) -> bool:
        """Whether a step in flight brings its last token (asynchronous scheduling)."""
        known = self.num_tokens + self.num_placeholders
        return self.num_placeholders > 0 and known - self.num_prompt_tokens >= self.max_tokens

    @property
    def request_id(self) -> str:
        """The name it came with, or its place in the input."""
        return str(self.index) if self._name is None else self._name

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced and received so far."""
        return self.num_tokens - self.num_prompt_tokens

    def anew(self, at_ps: int) -> Request:
        """A copy of the request as it came, sent again."""
        other = Request(self.index, self._name, self.arrival_ps, self.num_prompt_tokens, self.max_tokens, self.priority)
        other.tenant, other.predicted_output_tokens = self.tenant, self.predicted_output_tokens
        other.session_id, other.turn, other.has_next_turn = self.session_id, self.turn, self.has_next_turn
        other.names, other.num_names = self.names, self.num_names
        other.sent_again_ps, other.row = at_ps, self.row
        return other

    def prompt_names(self, block_size: int) -> list[int]:
        """Names of the full blocks of its prompt that others may share, as ranges."""
        return cut(self.names, self.num_prompt_tokens // block_size)

    def share(self, names: list[int], num_at_once: int = MOST_BLOCKS) -> None:
        """Give its first blocks names, as ranges; others may find so many at once, the rest when it lets go of them."""
        self.names, self.num_names = names, min(num_in(names), num_at_once)

    def __repr__(self) -> str:
        return f"Request({self.request_id}, {self.num_computed_tokens}/{self.num_tokens})"


K = TypeVar("K", bound=KnownRequest)


class Entry(NamedTuple):
    """One request's share of a step."""

    request: Request
    num_tokens: int
    num_computed_tokens: int  # before the step
    samples: bool  # the step ends with a new token for it

    @property
    def is_decode(self) -> bool:
        """One token of a request whose prompt is computed."""
        return is_decode_entry(self.num_tokens, self.num_computed_tokens, self.request.num_prompt_tokens, self.samples)


class Batch(NamedTuple):
    """What one step computes, in vLLM's order, and who was preempted to make room."""

    entries: list[Entry]
    preempted: list[Request]


class Refusal(NamedTuple):
    """Why the head of the queue was not admitted: what it needed, what there was, what the watermark keeps.

    `reason` is `seats`, `blocks`, `budget`, `chunk` (chunked prefill is off), `interval` (prefills are held back) or
    `preemption` (admission was closed).
    """

    reason: str
    needed: int = 0
    available: int = 0
    watermark: int = 0


def decoding(running: Iterable[KnownRequest]) -> tuple[int, int]:
    """How many requests want one token after their prompt, and the sum of their computed tokens."""
    members = [request.num_computed_tokens for request in running if is_decoding(request)]
    return len(members), sum(members)


def is_partial(request: KnownRequest) -> bool:
    """Whether a running request's prompt, or what it computes again, is not done."""
    wanted = request.num_tokens + request.num_placeholders - request.num_computed_tokens
    return wanted > 1 or request.num_computed_tokens < request.num_prompt_tokens


def is_decoding(request: KnownRequest) -> bool:
    """Whether a running request wants one token, after its prompt, and the step to come may give it."""
    known = request.num_tokens + request.num_placeholders
    return (
        request.num_computed_tokens == known - 1 >= request.num_prompt_tokens
        and known - request.num_prompt_tokens < request.max_tokens
    )


def is_decode(request: KnownRequest) -> bool:
    """Whether the one token that a request has just been advanced by is a decode (`Entry.is_decode`)."""
    return request.num_tokens + request.num_placeholders == request.num_computed_tokens > request.num_prompt_tokens


def has_prefill(planned: Mapping[K, int]) -> bool:
    """Whether a step that has just been planned computes more than decodes."""
    for request, n in planned.items():  # noqa: SIM110 - most of the time the first one tells
        if n > 1 or not is_decode(request):
            return True
    return False
