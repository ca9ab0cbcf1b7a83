"""Step functions of time, and what is asked of them: the highest value, means and peaks in bins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class StepFunction(ABC):
    """Counts, 0 or more, over time (ps); 0 before the first."""

    @abstractmethod
    def pieces(self) -> Iterator[Curve]:
        """The function in the order of time; each piece holds until the next one begins."""

    @property
    def max(self) -> int:
        """The highest value, 0 for an empty function."""
        return max((int(piece.values.max(initial=0)) for piece in self.pieces()), default=0)

    def mean_per_bin(self, edges: Ints) -> Floats:
        """The time-weighted mean between each two edges (ps)."""
        return self.per_bin(edges)[0]

    def per_bin(self, edges: Ints) -> tuple[Floats, Ints]:
        """That mean, and the highest value there, in one pass: a peak is never lost, however narrow."""
        integrals, peaks = np.zeros(len(edges)), np.zeros(len(edges), dtype=np.int64)
        so_far = 0.0  # the integral up to the first time of `piece`
        before: Curve | None = None
        for following in self.pieces():
            if len(following.times):
                piece = following if before is None else before.last().then(following)
                so_far = piece.add_to(edges, so_far, integrals, peaks)
                before = following
        if before is not None:
            before.last().end(edges, so_far, integrals, peaks)
        return np.diff(integrals) / np.diff(edges), peaks[:-1]


@dataclass(frozen=True)
class Curve(StepFunction):
    """A step function in one piece: `values[i]` from `times[i]` (ps, ascending) until the next."""

    times: Ints
    values: Ints

    @classmethod
    def counting(cls, begins: Ints, ends: Ints) -> Curve:
        """How many of the half-open intervals [begin, end) hold each moment."""
        # What a moment changes is its lowest bit, 1 for a begin: numbers are sorted, and nothing is put in their order.
        marked = np.concatenate([ends << 1, (begins << 1) | 1])
        marked.sort(kind="stable")  # which is quick where they are two series that are nearly in order
        values = np.cumsum(((marked & 1) << 1) - 1)
        return cls._at_last(marked >> 1, values)

    @classmethod
    def total(cls, functions: Sequence[StepFunction]) -> Curve:
        """The sum of several."""
        pieces = [piece for function in functions for piece in (_whole(function),) if len(piece.times)]
        if not pieces:
            return cls(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
        times = np.concatenate([piece.times for piece in pieces])
        changes = np.concatenate([np.diff(piece.values, prepend=0) for piece in pieces])
        order = np.argsort(times, kind="stable")
        return cls._at_last(times[order], np.cumsum(changes[order]))

    @classmethod
    def _at_last(cls, times: Ints, values: Ints) -> Curve:
        """What holds when all changes of a moment are made."""
        is_last = np.ones(len(times), dtype=np.bool_)
        np.not_equal(times[1:], times[:-1], out=is_last[:-1])
        return cls(times[is_last], values[is_last])

    def pieces(self) -> Iterator[Curve]:
        """The curve itself."""
        yield self

    def last(self) -> Curve:
        """Its last step alone."""
        return Curve(self.times[-1:], self.values[-1:])

    def then(self, following: Curve) -> Curve:
        """Both in one."""
        return Curve(
            np.concatenate([self.times, following.times]),
            np.concatenate([self.values, following.values]),
        )

    def add_to(self, edges: Ints, so_far: float, integrals: Floats, peaks: Ints) -> float:
        """Fill in what this curve says up to its last time; returns the integral up to there."""
        held = self.values[:-1] * np.diff(self.times).astype(np.float64)
        integral = np.cumsum(np.concatenate([[so_far], held]))
        begin, end = np.searchsorted(edges, self.times[[0, -1]])
        position = np.searchsorted(self.times, edges[begin:end], side="right") - 1
        since = (edges[begin:end] - self.times[position]).astype(np.float64)
        integrals[begin:end] = integral[position] + self.values[position] * since
        peaks[begin:end] = np.maximum(peaks[begin:end], self.values[position])
        first = np.searchsorted(self.times, edges)
        bins = np.flatnonzero(first[:-1] < first[1:])
        if len(bins):
            highest = np.maximum.reduceat(self.values[: first[-1]], first[bins])
            peaks[bins] = np.maximum(peaks[bins], highest)
        return float(integral[-1])

    def end(self, edges: Ints, so_far: float, integrals: Floats, peaks: Ints) -> None:
        """Fill in what holds from its only time on."""
        begin = int(np.searchsorted(edges, self.times[0]))
        integrals[begin:] = so_far + self.values[0] * (edges[begin:] - self.times[0]).astype(np.float64)
        peaks[begin:] = np.maximum(peaks[begin:], self.values[0])


@dataclass(frozen=True)
class Pieces(StepFunction):
    """A step function that is made piece by piece, anew for each question, so that it is never in memory whole."""

    make: Callable[[], Iterator[Curve]]
    highest: Callable[[], int] | None = None  # where that is found without its pieces

    @property
    def max(self) -> int:
        """The highest value, 0 for an empty function."""
        return super().max if self.highest is None else self.highest()

    def pieces(self) -> Iterator[Curve]:
        """What `make` makes."""
        return self.make()


def _whole(function: StepFunction) -> Curve:
    """A step function in one piece."""
    pieces = list(function.pieces())
    if len(pieces) == 1:
        return pieces[0]
    nothing = np.zeros(0, dtype=np.int64)
    return Curve(
        np.concatenate([nothing, *(piece.times for piece in pieces)]),
        np.concatenate([nothing, *(piece.values for piece in pieces)]),
    )
