"""The requests that both sides serve, read once: columns in memory and the tokens of their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk, RequestSource

FIRST_TOKEN_ID = 3  # below it models keep their special tokens
PRIVATE, SHARED = 0, 1  # streams of random tokens


@dataclass
class Requests:
    """A `RequestSource` that is held whole; nothing changes it."""

    all: RequestChunk
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    think_time_ps: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.num_requests: int | None = len(self.all)

    def __len__(self) -> int:
        return len(self.all)

    @classmethod
    def of(cls, source: RequestSource) -> Requests:
        """Everything that `source` has; UserError for what is malformed in it."""
        chunks = list(source.chunks())
        return cls(
            _joined(chunks), source.hash_block_tokens, source.max_concurrency, source.think_time_ps, source.skipped
        )

    def chunks(self) -> Iterator[RequestChunk]:
        """As an engine reads them."""
        columns: dict[str, Any] = {name: getattr(self.all, name) for name in RequestChunk.__slots__}
        for first in range(0, len(self.all), CHUNK_SIZE):
            part = slice(first, first + CHUNK_SIZE)
            chosen: dict[str, Any] = {name: None if c is None else c[part] for name, c in columns.items()}
            yield RequestChunk(**chosen)

    def arriving(self, arrival_ps: list[int]) -> Requests:
        """These requests at other times."""
        return replace(self, all=replace(self.all, arrival_ps=arrival_ps))


def prompts(requests: Requests, vocab_size: int, seed: int) -> list[list[int]]:
    """Random token ids for each prompt; what has the same hashes begins with the same tokens, all else is its own.

    A hash gives the same tokens wherever it stands, so prompts share the blocks that their common beginning covers:
    vLLM names a block by its tokens and all that precede them.
    """
    h, known = requests.hash_block_tokens, dict[int, list[int]]()

    def shared(hash_id: int) -> list[int]:
        if hash_id not in known:
            known[hash_id] = _tokens((seed, SHARED, hash_id % 2**64), h, vocab_size)
        return known[hash_id]

    made = []
    for i, length in enumerate(requests.all.num_prompt_tokens):
        hashes = requests.all.hash_ids[i] if requests.all.hash_ids else ()
        tokens = [token for hash_id in hashes for token in shared(hash_id)][:length]
        made.append(tokens + _tokens((seed, PRIVATE, i), length - len(tokens), vocab_size))
    return made


def _tokens(stream: tuple[int, int, int], length: int, vocab_size: int) -> list[int]:
    rng = np.random.default_rng(stream)
    tokens: list[int] = rng.integers(min(FIRST_TOKEN_ID, vocab_size - 1), vocab_size, length).tolist()
    return tokens


def _joined(chunks: list[RequestChunk]) -> RequestChunk:
    columns: dict[str, Any] = {}
    for name in RequestChunk.__slots__:
        parts = [getattr(chunk, name) for chunk in chunks]
        if name == "tenant":  # the first tenant may stand far down in a file
            parts = [part or [None] * len(chunk) for part, chunk in zip(parts, chunks, strict=True)]
        columns[name] = None if any(part is None for part in parts) else [value for part in parts for value in part]
    return RequestChunk(**columns)
