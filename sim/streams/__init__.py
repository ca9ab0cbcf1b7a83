"""The engine's steps, rebuilt from streams: from the times at which a benchmark's client got its tokens.

While it runs, a request has one token in every step: its j-th chunk came with step (first + j). So only one number a
request is unknown, the step of its first token. Requests are laid beside the steps that those before them told, one
after the other in the order of their first tokens: at that place, of the few near by, where all its chunks come closest
to the others' of the same steps. A client that lags, whose chunks of two steps overlap, does not break that. A request
that fits nowhere is `irregular` and tells no times; it still counts as running.

A step in which nobody gets a token (a piece of a prompt, while nobody decodes) cannot be seen.
"""

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


PAUSE, MAX_PAUSE_S = 0.3, 1.5e-3  # first tokens that far apart, in gaps between a request's chunks, are of two steps
NEAR = 4  # places tried on either side
MAX_LAID = 512  # chunks of a request that are laid beside steps
MAX_LAID_BROKEN = 32  # of one that lacks some: before the first that is missing they are where they belong
RECENT = 16_384  # steps ahead of a request that others have told already: the longest output that is looked at
CLOSE = 0.5  # of a gap: how far a request's chunks may be from the others' of their steps on average


@dataclass(frozen=True)
class RebuiltSteps:
    """Steps in order, and the place of each request among them."""

    streams: Streams
    first: Ints  # in which step each request got its first token
    is_regular: NDArray[np.bool_]  # by request: its chunks come with the others' of their steps
    begin_s: Floats  # when the first of a step's chunks came to the client
    end_s: Floats  # and the last
    mean_s: Floats  # all of them on average
    num_seen: Ints  # chunks behind that

    def __len__(self) -> int:
        return len(self.begin_s)

    @cached_property
    def last(self) -> Ints:
        """In which step each request got its last token."""
        return np.asarray(np.minimum(self.first + self.streams.num_output_tokens, len(self)) - 1)

    @cached_property
    def num_first(self) -> Ints:
        """First tokens in each step: prompts that ended in it."""
        return np.bincount(self.first, minlength=len(self))

    @cached_property
    def num_decodes(self) -> Ints:
        """Requests that got a token in each step, and not their first."""
        return np.cumsum(self._change(np.ones(len(self.streams))))[: len(self)].round().astype(np.int64)

    @cached_property
    def decode_context(self) -> Ints:
        """Tokens computed before, over all decodes: prompt and outputs but the newest."""
        constant = np.cumsum(self._change((self.streams.num_prompt_tokens - self.first - 1).astype(np.float64)))[
            : len(self)
        ]
        return (constant + self.num_decodes * np.arange(len(self))).round().astype(np.int64)

    @cached_property
    def prompt_tokens(self) -> Ints:
        """Of the prompts that ended in each step, whole."""
        return _sums(self.first, self.streams.num_prompt_tokens, len(self))

    def _change(self, values: Floats) -> Floats:
        """Sums over decoding requests as they change from step to step."""
        size = len(self) + 1
        begun, gone = (np.bincount(steps + 1, values, size)[:size] for steps in (self.first, self.last))
        return np.asarray(begun - gone, dtype=np.float64)


def rebuild_steps(streams: Streams) -> RebuiltSteps:
    """The steps that a run's streams tell; whether they can be believed is `judge`'s to say."""
    gap_s = float(np.median(streams.gaps_s)) if len(streams.gaps_s) else MAX_PAUSE_S
    laid = _Laid(len(streams.time_s), min(MAX_PAUSE_S, PAUSE * gap_s), CLOSE * gap_s)
    first, is_regular = np.zeros(len(streams), dtype=np.int64), np.ones(len(streams), dtype=bool)
    is_whole = streams.number == streams.num_output_tokens
    for i in np.argsort(streams.first_s, kind="stable").tolist():
        time_s = streams.time_s[streams.first[i] : streams.first[i + 1]]
        first[i], is_regular[i] = laid.lay(time_s, bool(is_whole[i]))
    size = laid.size
    return RebuiltSteps(
        streams, first, is_regular, laid.begin_s[:size], laid.end_s[:size], laid.mean_s(0, size), laid.number[:size]
    )


class _Laid:
    """Steps so far: sums, numbers and earliest of their chunks' times."""

    def __init__(self, most: int, pause_s: float, close_s: float) -> None:
        self.sum_s, self.number = np.zeros(most + 1), np.zeros(most + 1, dtype=np.int64)
        self.begin_s, self.end_s = np.full(most + 1, np.inf), np.full(most + 1, -np.inf)
        self.size = 0
        self._pause_s, self._close_s = pause_s, close_s

    def mean_s(self, begin: int, end: int) -> Floats:
        return self.sum_s[begin:end] / self.number[begin:end]

    def lay(self, time_s: Floats, is_whole: bool) -> tuple[int, bool]:
        """The step of a request's first token, and whether its chunks come with the others'."""
        place, distance_s = self._place(time_s, is_whole)
        is_regular = is_whole and distance_s <= self._close_s
        if place == self.size or is_regular:
            self._add(place, time_s)
        return place, is_regular

    def _place(self, time_s: Floats, is_whole: bool) -> tuple[int, float]:
        size = self.size
        if size == 0:
            return 0, 0.0
        begin = max(0, size - RECENT)
        near = begin + int(np.searchsorted(self.mean_s(begin, size), time_s[0]))
        if near >= size and time_s[0] - self.sum_s[size - 1] / self.number[size - 1] > self._pause_s:
            return size, 0.0
        best, place = np.inf, size
        most = MAX_LAID if is_whole else MAX_LAID_BROKEN
        for candidate in range(max(0, near - NEAR), min(size, near + NEAR + 1)):
            number = min(len(time_s), size - candidate, most)
            distance_s = float(np.abs(time_s[:number] - self.mean_s(candidate, candidate + number)).mean())
            if distance_s < best:
                best, place = distance_s, candidate
        return place, best

    def _add(self, place: int, time_s: Floats) -> None:
        rows = slice(place, place + len(time_s))
        self.sum_s[rows] += time_s
        self.number[rows] += 1
        self.begin_s[rows] = np.minimum(self.begin_s[rows], time_s)
        self.end_s[rows] = np.maximum(self.end_s[rows], time_s)
        self.size = max(self.size, place + len(time_s))


def _sums(steps: Ints, values: Ints, number: int) -> Ints:
    return np.bincount(steps, weights=values, minlength=number).round().astype(np.int64)


STANDS_S, STANDS = 0.5, 5.0  # and that many times what steps with as many prompt tokens take
ALIKE, ALIKE_STEPS = 0.7, 5  # of its prompt tokens, or more; so many such steps
TAKEN_OUT = "standstills of {0:.1f} s or more: {1} of them, {2:.1f} of its {3:.0f} s, are taken out of its clock"


def without_standstills(steps: RebuiltSteps) -> tuple[Streams, str | None]:
    """A run by a clock that stood when the server did (kernels compiled at a first visit), and a sentence on that.

    No other run repeats them, and in a mean they are most of it: 12 s of 28 on a server of a mixture of experts.
    """
    stands = _standstills(steps)
    if not len(stands):
        return steps.streams, None
    gaps_s = np.diff(steps.mean_s)
    begins, ends = steps.end_s[stands], steps.begin_s[stands + 1]
    lost_s = np.maximum(0.0, ends - begins - np.median(gaps_s))
    moments = np.column_stack([begins, ends]).ravel()
    lost = np.column_stack([np.cumsum(lost_s) - lost_s, np.cumsum(lost_s)]).ravel()
    streams = steps.streams.at(lambda time_s: time_s - np.interp(time_s, moments, lost))
    said = TAKEN_OUT.format(gaps_s[stands].min(), len(stands), lost_s.sum(), steps.mean_s[-1] - steps.mean_s[0])
    return streams, said


def _standstills(steps: RebuiltSteps) -> Ints:
    """Steps before the gaps in which somebody waited far longer than in others with as many prompt tokens, or more."""
    gaps_s, is_busy = np.diff(steps.mean_s), steps.num_decodes[1:] > 0
    tokens = steps.prompt_tokens[1:]  # of the step that came late, or of the next one, whose launch it waited for
    tokens = np.maximum(tokens, np.append(tokens[1:], 0))
    found = []
    for step in np.flatnonzero(is_busy & (gaps_s > STANDS_S)).tolist():
        alike = gaps_s[is_busy & (tokens >= max(1.0, ALIKE * tokens[step]))]
        if len(alike) >= ALIKE_STEPS and gaps_s[step] > STANDS * np.median(alike):
            found.append(step)
    return np.array(found, dtype=np.int64)
