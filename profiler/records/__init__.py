"""What real servers leave behind, in one form each: here steps and requests; samples, lines and results beside.

Steps as columns: what batches looked like, what they took, and the range and spread that a profile states. Requests of
a real run and of its simulation are read once: columns in memory and the tokens of their prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.cost.model import CostModel, step_ps_alike
from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk, RequestSource

if TYPE_CHECKING:
    from simbatch.sim.workload.turns import Turns

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PS_TO_S = 1e-12


@dataclass(frozen=True)
class Steps:
    """One entry per step, in tokens; a prefill schedules q tokens after h computed ones, a decode one after k.

    Without decodes the contexts are 0.
    """

    num_prefills: Ints
    prefill_tokens: Ints  # sum of q
    prefill_context: Ints  # sum of h + q
    prefill_attention: Ints  # sum of q * (2h + q)
    num_decodes: Ints
    decode_context: Ints  # sum of k
    min_context: Ints
    max_context: Ints

    def __len__(self) -> int:
        return len(self.num_prefills)

    @property
    def num_tokens(self) -> Ints:
        """Scheduled tokens."""
        return self.prefill_tokens + self.num_decodes

    @property
    def num_seqs(self) -> Ints:
        """Requests in the step."""
        return self.num_prefills + self.num_decodes

    @property
    def mean_context(self) -> Floats:
        """Mean k, 0 without decodes."""
        return self.decode_context / np.maximum(1, self.num_decodes)

    def select(self, rows: NDArray[np.bool_]) -> Steps:
        """Return the chosen steps."""
        return Steps(*(getattr(self, column.name)[rows] for column in fields(self)))


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps with their times in s and the draw of the design that each belongs to."""

    steps: Steps
    time_s: Floats
    episodes: Ints

    def __len__(self) -> int:
        return len(self.time_s)

    def select(self, rows: Any) -> MeasuredSteps:
        """Return the chosen steps."""
        return MeasuredSteps(self.steps.select(rows), self.time_s[rows], self.episodes[rows])

    def regime(self, name: str) -> Any:
        """Which steps are `decode` (no prefill), `prefill` (nothing else) or `mixed`."""
        has_prefill, has_decodes = self.steps.prefill_tokens > 0, self.steps.num_decodes > 0
        return {"decode": ~has_prefill, "prefill": has_prefill & ~has_decodes, "mixed": has_prefill & has_decodes}[name]


def concatenate(parts: Sequence[Steps]) -> Steps:
    """Put steps one after the other."""
    return Steps(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Steps)))


def predict_s(cost: CostModel, steps: Steps) -> Floats:
    """What a cost model gives for each step, s: the very integers that a simulation adds up."""
    durations = np.empty(len(steps))
    for i in range(len(steps)):
        chunk = (int(steps.prefill_tokens[i]), int(steps.prefill_context[i]), int(steps.prefill_attention[i]))
        durations[i] = step_ps_alike(cost, int(steps.num_decodes[i]), int(steps.decode_context[i]), *chunk)
    return durations * PS_TO_S


def range_of(data: MeasuredSteps) -> dict[str, Any]:
    """Lowest and highest of everything that `MeasuredRange` looks at."""
    is_decode = data.regime("decode")
    decode, mixed = data.steps.select(is_decode), data.steps.select(~is_decode)
    # as MeasuredRange computes it: chunks of one size
    squares = mixed.prefill_tokens**2 / np.maximum(1, mixed.num_prefills)
    history = np.maximum(0.0, mixed.prefill_attention - squares) / (2 * mixed.prefill_tokens)
    return {
        "decode": {"num_decodes": _bounds(decode.num_decodes), **_contexts(decode)},
        "mixed": {
            "num_tokens": _bounds(mixed.num_tokens),
            "prefill_tokens": _bounds(mixed.prefill_tokens),
            "mean_history": _bounds(history),
            "num_decodes": _bounds(mixed.num_decodes),
            **_contexts(mixed.select(mixed.num_decodes > 0)),
        },
    }


def _contexts(steps: Steps) -> dict[str, tuple[int, int]]:
    return {"mean_context": _bounds(steps.mean_context), "decode_context": _bounds(steps.decode_context)}


def _bounds(values: NDArray[Any]) -> tuple[int, int]:
    return (int(np.floor(values.min())), int(np.ceil(values.max()))) if len(values) else (0, 0)


TAIL = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07)
SHARES = (*TAIL, *(round(0.1 + 0.05 * i, 2) for i in range(17)), *(round(1 - share, 3) for share in reversed(TAIL)))
DIGITS = 6


def noise_of(data: MeasuredSteps, held_out_s: Floats) -> dict[str, Any]:
    """Quantiles of measured over held-out prediction for decodes and for steps with prefills, their means scaled to 1.

    Nothing is cut off: the slowest step is the last quantile, and shares lie close together towards both ends.
    """
    ratios, is_decode = data.time_s / held_out_s, data.regime("decode")
    return {"decode": noise_quantiles(ratios[is_decode]), "mixed": noise_quantiles(ratios[~is_decode])}


def noise_quantiles(ratios: Floats) -> dict[str, list[float]]:
    """Quantiles of ratios, their mean scaled to 1."""
    values = np.quantile(ratios, SHARES)
    mean = float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(SHARES)))
    return {"share": list(SHARES), "ratio": [round(float(value / mean), DIGITS) for value in values]}


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
        from simbatch.sim.workload.turns import turns_in

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
