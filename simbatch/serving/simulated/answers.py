"""Which token comes next: a word, the end of the answer at its drawn length, or what a grammar allows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.workload.lengths import length_draw
from simbatch.sim.workload.model import Workload

STREAM = 0x5EEDE05  # apart from the streams of a simulation with this seed
ENDLESS = 1 << 60
AT_ONCE = 1024  # lengths drawn ahead
Bits = npt.NDArray[np.int32]


class AnswerLengths:
    """Output lengths in the order in which requests are first scheduled."""

    def __init__(self, resolved: Resolved) -> None:
        workload = resolved.scenario.workload
        assert isinstance(workload, Workload)
        assert workload.output_len is not None
        folder = resolved.scenario.folder
        self._draw = length_draw(workload.output_len, folder=folder, of="num_output_tokens")
        self._rng = np.random.default_rng([STREAM, resolved.scenario.seed])
        self._drawn: list[int] = []

    def next(self) -> int:
        """How long the next answer is, its end included."""
        if not self._drawn:
            self._drawn = self._draw(self._rng, AT_ONCE).tolist()[::-1]
        return self._drawn.pop()


class MadeUpAnswer:
    """What one request gets: tokens by their number, whatever was preempted in between."""

    __slots__ = ("_end", "_length", "num_logprobs", "num_prompt_tokens")

    def __init__(self, num_prompt_tokens: int, sampling_params: Any, lengths: AnswerLengths) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.num_logprobs: int | None = sampling_params.logprobs
        self._end = sampling_params.eos_token_id  # None with `ignore_eos`
        self._length = ENDLESS
        if self._end is not None:
            self._length = max(lengths.next(), sampling_params.min_tokens + 1)

    def token(self, number: int, words: Sequence[int]) -> int:
        """The `number`-th token, from 1."""
        if number >= self._length and self._end is not None:
            return int(self._end)
        return words[(number * 7919 + self.num_prompt_tokens * 104729) % len(words)]


def allowed_token(bits: Bits, closers: Iterable[int]) -> int:
    """A token that a grammar allows: the first of `closers` (ends, brackets, quotes), so that it ends, else the lowest.

    `bits` has a bit for each token, 32 in a number, the lowest first.
    """
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")
    return next((token for token in closers if allowed[token]), int(allowed.argmax()))


def made_up_logprobs(tokens: Sequence[int | None], num_logprobs: int, words: Sequence[int]) -> list[npt.NDArray[Any]]:
    """Ids, logprobs and ranks as vLLM's LogprobsLists has them: each step's token first, then words, a nat apart."""
    shape = (len(tokens), max(num_logprobs, 0) + 1)
    ids = np.resize(np.array(words, dtype=np.int32), shape)
    ids[:, 0] = [token or 0 for token in tokens]
    falling = np.broadcast_to(-1.0 - np.arange(shape[1], dtype=np.float32), shape)
    return [ids, falling, np.ones(len(tokens), dtype=np.int32)]
