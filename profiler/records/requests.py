"""The requests that both sides serve, read once: columns in memory and the tokens of their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk, RequestSource
from simbatch.sim.workload.turns import Turns, turns_in

FIRST_TOKEN_ID = 3  # below it models keep their special tokens
PRIVATE, SHARED, SYSTEM, ANSWER = range(4)  # streams of random tokens


@dataclass
class Requests:
    """A `RequestSource` that is held whole; nothing changes it."""

    all: RequestChunk
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    think_time_ps: int = 0
    skipped: int = 0
    turns: Turns | None = None  # where they are turns of sessions

    def __post_init__(self) -> None:
        self.num_requests: int | None = len(self.all)

    def __len__(self) -> int:
        return len(self.all)

    @classmethod
    def of(cls, source: RequestSource) -> Requests:
        """Everything that `source` has; UserError for what is malformed in it."""
        chunks = list(source.chunks())
        return cls(
            _joined(chunks),
            source.hash_block_tokens,
            source.max_concurrency,
            source.think_time_ps,
            source.skipped,
            turns_in(source),
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


class PromptTokens:
    """Random token ids for each prompt; what has the same hashes begins with the same tokens, all else is its own.

    A hash gives the same tokens wherever it stands, so prompts share the blocks that their common beginning covers:
    vLLM names a block by its tokens and all that precede them.
    """

    def __init__(self, requests: Requests, vocab_size: int, seed: int) -> None:
        self.requests, self._vocab_size, self._seed = requests, vocab_size, seed
        self._shared: dict[int, list[int]] = {}  # by hash

    def of(self, row: int) -> list[int]:
        """The prompt of a row."""
        columns, length = self.requests.all, self.requests.all.num_prompt_tokens[row]
        hashes = columns.hash_ids[row] if columns.hash_ids else ()
        tokens = [token for hash_id in hashes for token in self._of_hash(hash_id)][:length]
        return tokens + self.drawn(PRIVATE, row, length - len(tokens))

    def drawn(self, stream: int, number: int, length: int) -> list[int]:
        """Tokens of a stream of their own."""
        return _tokens((self._seed, stream, number), length, self._vocab_size)

    def _of_hash(self, hash_id: int) -> list[int]:
        if hash_id not in self._shared:
            self._shared[hash_id] = self.drawn(SHARED, hash_id % 2**64, self.requests.hash_block_tokens)
        return self._shared[hash_id]


class LivePrompts:
    """Prompts of turns, made when they are sent: the conversation so far, with the answers as they have come.

    What a prompt goes on with is told by its length, as everywhere (`sim/workload/turns.py`); where rows have hashes,
    an answer stands in its place if the prompt's hashes begin with all full ones of the turn before.
    """

    def __init__(self, tokens: PromptTokens, turns: Turns) -> None:
        self._tokens, self._turns = tokens, turns
        self._num_children: dict[int, int] = {}
        for parent in turns.parent:
            self._num_children[parent] = self._num_children.get(parent, 0) + 1
        self._sent: dict[int, list[int]] = {}  # prompts of those that others go on with, by row
        self._answers: dict[int, list[int]] = {}
        self.num_made_up = 0  # tokens of answers that the server did not tell

    def of(self, row: int) -> list[int]:
        """The prompt of a turn that is about to be sent."""
        parent, prompt = self._turns.parent[row], self._tokens.of(row)
        before, answer = self._sent.get(parent), self._answers.get(parent, [])
        hashes = self._tokens.requests.all.hash_ids
        if hashes and hashes[row]:
            if before is not None and self._goes_on(hashes[row], hashes[parent], len(before)):
                prompt[len(before) :] = [*answer, *prompt[len(before) + len(answer) :]][: len(prompt) - len(before)]
        elif before is not None and len(prompt) >= len(before):
            whole = [*before, *answer] if len(prompt) >= len(before) + len(answer) else before
            prompt = [*whole, *prompt[len(whole) :]]
        else:
            system = self._system(row)[: len(prompt)]
            prompt[: len(system)] = system
        if row in self._num_children:
            self._sent[row] = prompt
        if parent in self._sent:
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                del self._sent[parent], self._answers[parent]
        return prompt

    def ended(self, row: int, answer: list[int], num_tokens: int) -> None:
        """A turn has ended; `answer` are the token ids that came, which may be fewer than there were, or none."""
        missing = num_tokens - len(answer)
        self.num_made_up += max(missing, 0)
        if row in self._num_children:
            self._answers[row] = [*answer, *self._tokens.drawn(ANSWER, row, max(missing, 0))][:num_tokens]

    def _goes_on(self, hashes: tuple[int, ...], others: tuple[int, ...], num_before: int) -> bool:
        num_full = min(num_before // self._tokens.requests.hash_block_tokens, len(others))
        return len(hashes) >= num_full and hashes[:num_full] == others[:num_full]

    def _system(self, row: int) -> list[int]:
        session = self._turns.session[row]
        number = session if self._turns.system is None else self._turns.system[session]
        return self._tokens.drawn(SYSTEM, number, self._turns.num_system_tokens)


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
