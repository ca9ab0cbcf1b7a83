"""Which token comes next: a word, or the end of the answer when its drawn length is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simbatch.sim.scenario.resolve import Resolved
from simbatch.sim.workload.lengths import length_draw
from simbatch.sim.workload.model import Workload

STREAM = 0x5EEDE05  # apart from the streams of a simulation with this seed
ENDLESS = 1 << 60
AT_ONCE = 1024  # lengths drawn ahead


class Lengths:
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


class Answer:
    """What one request gets: tokens by their number, whatever was preempted in between."""

    __slots__ = ("_end", "_length", "num_prompt_tokens")

    def __init__(self, num_prompt_tokens: int, sampling_params: Any, lengths: Lengths) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self._end = getattr(sampling_params, "eos_token_id", None)  # None with `ignore_eos`
        self._length = ENDLESS
        if self._end is not None:
            self._length = max(lengths.next(), sampling_params.min_tokens + 1)

    def token(self, number: int, words: Sequence[int]) -> int:
        """The `number`-th token, from 1."""
        if number >= self._length and self._end is not None:
            return int(self._end)
        return words[(number * 7919 + self.num_prompt_tokens * 104729) % len(words)]
