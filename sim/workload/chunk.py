"""Requests on their way from a workload to the engine: columns of up to 65,536, never a whole file in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

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

    def chunks(self) -> Iterator[RequestChunk]:
        """The requests from the first on; may be called again."""
        ...
