"""A step's batch, and what a running request has in it: a decode, part of a prompt, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from simbatch.sim.cost.model import is_decode as is_decode_entry
from simbatch.sim.scheduler.request import KnownRequest, Request

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
