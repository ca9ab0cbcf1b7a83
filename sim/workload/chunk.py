"""Requests on their way from a workload to the engine: columns of up to 65,536, never a whole file in memory.

Each purpose of a workload draws from a random stream of its own, so that a change of one leaves the others' draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from math import isfinite
from numbers import Real
from typing import Protocol, TypeVar

import numpy as np

from simbatch.sim.clock import to_s
from simbatch.sim.errors import Problem, UserError

CHUNK_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class RequestChunk:
    """Requests in arrival order; all lists have the same length, at most `CHUNK_SIZE`."""

    arrival_ps: list[int]
    num_prompt_tokens: list[int]
    num_output_tokens: list[int]
    priority: list[int] | None = None  # None: all 0
    request_id: list[str] | None = None  # None: the running index as text ("0", "1", ...)
    tenant: list[str | None] | None = None
    predicted_output_tokens: list[float] | None = None  # what was foretold of the output lengths
    hash_ids: list[tuple[int, ...]] | None = None  # prefix hashes of the prompt, `hash_block_tokens` tokens each

    def __len__(self) -> int:
        return len(self.arrival_ps)


class RequestSource(Protocol):
    """Where requests come from, a synthetic workload or a trace."""

    hash_block_tokens: int  # 0 when there are no hashes
    num_requests: int | None  # None when not known before the end (streamed traces)
    max_concurrency: int | None  # the engine holds arrivals back so that at most that many are in the system
    think_time_ps: int  # closed loop: a user's pause between its last request's end and its next one
    skipped: int  # rows left out on purpose (`on_empty: skip`), filled while reading
    # Where rows are turns of sessions also `turns: Turns | None` (turns_in); then all rows are known at once

    def chunks(self) -> Iterator[RequestChunk]:
        """The requests from the first on; may be called again."""
        ...


def unread_of(source: RequestSource) -> tuple[str, ...]:
    """How a trace's file was read, and what in it was not, in sentences; complete when the source was read."""
    unread = getattr(source, "unread", None)
    return tuple(unread()) if unread else ()


@dataclass(frozen=True, slots=True)
class Predictable:
    """What a predictor is shown of a request; with the true length, so that it can err in a way of its own."""

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    priority: int
    tenant: str | None


Predictor = Callable[[Predictable], float]  # tokens, above 0


class PredictedSource:
    """The requests of `source` with what `predictor` says of each, asked once a request, in order of arrival."""

    def __init__(self, source: RequestSource, predictor: Predictor) -> None:
        self._source, self._predictor = source, predictor
        self.hash_block_tokens = source.hash_block_tokens
        self.num_requests = source.num_requests
        self.max_concurrency = source.max_concurrency
        self.think_time_ps = source.think_time_ps
        self.turns = getattr(source, "turns", None)
        self.skipped = 0

    def chunks(self) -> Iterator[RequestChunk]:
        """The requests; UserError for a predictor that fails or does not answer with a length."""
        first = 0
        for chunk in self._source.chunks():
            yield replace(chunk, predicted_output_tokens=[self._ask(each) for each in _shown(chunk, first)])
            first += len(chunk)
        self.skipped = self._source.skipped

    def unread(self) -> tuple[str, ...]:
        """What the source itself says of its file."""
        return unread_of(self._source)

    def _ask(self, request: Predictable) -> float:
        name = name_of(self._predictor)
        try:
            predicted = self._predictor(request)
        except Exception as error:
            from simbatch.sim.plugins import place_of

            place, mend = place_of(error, self._predictor)
            rule = f"predictor {name} failed for request {request.request_id}: {type(error).__name__}: {error}"
            raise UserError(Problem(place, rule, mend=mend)) from error
        if isinstance(predicted, Real) and isfinite(predicted) and predicted > 0:
            return float(predicted)
        rule = f"must return a number of tokens above 0 (for request {request.request_id})"
        raise UserError(Problem(f"predictor {name}", rule, predicted, "mend the predictor"))


def name_of(predictor: Predictor) -> str:
    """What results call it: `module:function`, or its class."""
    named = predictor if hasattr(predictor, "__qualname__") else type(predictor)
    return f"{named.__module__}:{named.__qualname__}"


def _shown(chunk: RequestChunk, first: int) -> Iterator[Predictable]:
    for i, arrival_ps in enumerate(chunk.arrival_ps):
        yield Predictable(
            chunk.request_id[i] if chunk.request_id else str(first + i),
            to_s(arrival_ps),
            chunk.num_prompt_tokens[i],
            chunk.num_output_tokens[i],
            chunk.priority[i] if chunk.priority else 0,
            chunk.tenant[i] if chunk.tenant else None,
        )


T = TypeVar("T")


class Purpose(IntEnum):
    """What a stream is for; the numbers are part of what a seed means."""

    ARRIVALS = 1
    PROMPT_LEN = 2
    OUTPUT_LEN = 3
    PRIORITIES = 4
    PREFIX = 5
    TENANTS = 6
    BLOCKS = 7
    TURNS = 8
    THINK_TIMES = 9
    TOOL_TIMES = 10
    TOOLS = 11
    BRANCHES = 12
    SYSTEM_PROMPTS = 13


def stream(seed: int, purpose: Purpose, part: int | None = None) -> np.random.Generator:
    """A fresh generator; the same seed, purpose and part of a mix give the same draws."""
    parts = [] if part is None else [part + 1]  # numpy takes a 0 at the end for nothing
    return np.random.default_rng([seed, int(purpose), *parts])


def draw_shares(shares: Sequence[tuple[T, float]], rng: np.random.Generator, n: int) -> list[T] | None:
    """A class or a tenant for each of `n` requests, drawn independently; None when there are no shares."""
    if not shares:
        return None
    ends = np.cumsum([share for _, share in shares])
    which = np.searchsorted(ends, rng.random(n) * ends[-1], side="right")
    names = [name for name, _ in shares]
    return [names[i] for i in which.tolist()]
