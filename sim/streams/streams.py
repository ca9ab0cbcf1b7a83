"""The token times of a run, as its client saw them, in one flat column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ROLE_SHARE, AT_ONCE = 0.9, 0.1


@dataclass(frozen=True)
class Streams:
    """Requests that got tokens, in the order of their sending; times in s by the client's clock.

    `time_s` has every chunk's, request after request; request i's are `first[i]` to `first[i + 1]`.
    """

    sent_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints  # as the client counted them, which need not be the number of its chunks
    time_s: Floats
    first: Ints
    max_concurrency: int | None = None  # of a closed loop

    @classmethod
    def of(
        cls,
        start_s: Sequence[float] | Floats,
        ttft_s: Sequence[float] | Floats,
        itl_s: Sequence[Any] | NDArray[np.object_],
        num_prompt_tokens: Sequence[int] | Ints,
        num_output_tokens: Sequence[int] | Ints,
        max_concurrency: int | None = None,
    ) -> Streams:
        """From `start_times`, `ttfts`, `itls`, `input_lens` and `output_lens` of a detailed result."""
        start, ttft = np.asarray(start_s, dtype=np.float64), np.asarray(ttft_s, dtype=np.float64)
        order = np.argsort(start, kind="stable")
        itl_s = _without_role(itl_s, num_output_tokens)
        number = np.array([len(itl_s[i]) for i in order], dtype=np.int64) + 1
        first = np.concatenate([[0], np.cumsum(number)])
        gaps = np.zeros(int(first[-1]))
        gaps[first[:-1]] = ttft[order]
        if (number > 1).any():
            later = np.ones(len(gaps), dtype=bool)
            later[first[:-1]] = False
            gaps[later] = np.concatenate([np.asarray(itl_s[i], dtype=np.float64) for i in order])
        total = np.cumsum(gaps)
        before = np.concatenate([[0.0], total])[first[:-1]]
        begin = start[order]
        return cls(
            begin,
            np.asarray(num_prompt_tokens, dtype=np.int64)[order],
            np.asarray(num_output_tokens, dtype=np.int64)[order],
            total + np.repeat(begin - before, number),
            first,
            max_concurrency,
        )

    def __len__(self) -> int:
        return len(self.sent_s)

    @cached_property
    def number(self) -> Ints:
        """Chunks of each request."""
        return np.diff(self.first)

    @cached_property
    def request(self) -> Ints:
        """Whose chunk each is."""
        return np.repeat(np.arange(len(self)), self.number)

    @cached_property
    def first_s(self) -> Floats:
        """When each request got its first chunk."""
        return self.time_s[self.first[:-1]]

    @cached_property
    def last_s(self) -> Floats:
        """When each request got its last one."""
        return self.time_s[self.first[1:] - 1]

    @cached_property
    def gaps_s(self) -> Floats:
        """Every time between two chunks of a request."""
        gaps = np.diff(self.time_s)
        keeps = np.ones(len(self.time_s), dtype=bool)
        keeps[self.first[:-1]] = False
        return gaps[keeps[1:]]

    def at(self, clock: Callable[[Floats], Floats]) -> Streams:
        """Sent and received by another clock, which tells its own time of each of this one's."""
        return replace(self, sent_s=clock(self.sent_s), time_s=clock(self.time_s))

    def take(self, chosen: NDArray[Any]) -> Streams:
        """These requests alone, by a mask or by rising indices."""
        indices = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        keeps = np.zeros(len(self), dtype=bool)
        keeps[indices] = True
        return Streams(
            self.sent_s[indices],
            self.num_prompt_tokens[indices],
            self.num_output_tokens[indices],
            self.time_s[keeps[self.request]],
            np.concatenate([[0], np.cumsum(self.number[indices])]),
            self.max_concurrency,
        )


def _without_role(itl_s: Any, num_output_tokens: Any) -> Any:
    """Without the empty chunk that chat begins with (a role): one more than tokens, and the next comes at once."""
    number = np.array([len(gaps) for gaps in itl_s])
    if not len(number) or not number.all() or np.mean(number == np.asarray(num_output_tokens)) < ROLE_SHARE:
        return itl_s
    second = np.median([gaps[0] for gaps in itl_s])
    usual = np.median(np.concatenate([np.asarray(gaps, dtype=np.float64) for gaps in itl_s]))
    return [gaps[1:] for gaps in itl_s] if second < AT_ONCE * usual else itl_s
