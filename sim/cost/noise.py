"""Noise of step times: how measured steps are spread round what the cost model says, and draws from that spread.

Draw i belongs to the i-th step that an engine plans, so that a run in spans and one step by step draw the same. Times
are multiplied in integers, and the generator is PCG64's raw output: the same seed gives the same times on any machine
and with any version of numpy.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field, model_validator

from simbatch.sim.cost.step_time import Strict

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLE_BITS = 14  # a table of 16,384 ratios: 4 of them are beyond the 99.98th percentile
RATIO_SHIFT = 24  # ratios are integers of that many more bits
BLOCK = 4096  # draws at once
STREAM = 0x5EED0F5  # apart from arrivals, lengths, priorities and prefixes, which draw from the same seed
MEAN_TOLERANCE = 1e-3

Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1000)]


class Ratios(Strict):
    """Quantiles of measured over predicted time, linear in between; the mean is 1, so that totals stay."""

    share: Annotated[tuple[Share, ...], Field(strict=False, min_length=2, max_length=4096)]
    ratio: Annotated[tuple[Ratio, ...], Field(strict=False, min_length=2, max_length=4096)]

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Ratios:
        if len(self.share) != len(self.ratio):
            raise ValueError(f"share and ratio must be of one length, not {len(self.share)} and {len(self.ratio)}")
        if self.share[0] != 0 or self.share[-1] != 1 or any(b <= a for a, b in pairwise(self.share)):
            raise ValueError("share must rise from 0 to 1")
        if any(b < a for a, b in pairwise(self.ratio)):
            raise ValueError("ratio must not fall")
        if abs(self.mean - 1) > MEAN_TOLERANCE:
            raise ValueError(f"the mean ratio must be 1, not {self.mean:.4f}")
        return self

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        pairs = pairwise(zip(self.share, self.ratio, strict=True))
        return sum((p1 - p0) * (r0 + r1) / 2 for (p0, r0), (p1, r1) in pairs)

    def table(self) -> list[int]:
        """Equally likely ratios as integers, their mean 1 to the last bit."""
        size = 1 << TABLE_BITS
        values = np.interp((np.arange(size) + 0.5) / size, self.share, self.ratio)
        ratios = [round(value * (1 << RATIO_SHIFT)) for value in (values / values.mean()).tolist()]
        middle = size // 2
        ratios[middle] += size * (1 << RATIO_SHIFT) - sum(ratios)  # what rounding left: a few millionths of one ratio
        return ratios


class StepNoise(Strict):
    """The spread of decode-only steps and of steps with prefills."""

    decode: Ratios
    mixed: Ratios

    def draws(self, seed: int) -> NoiseDraws:
        """Draws for one run."""
        return NoiseDraws(self, seed)


class NoiseDraws:
    """A stream of draws, one for each step that is planned."""

    def __init__(self, noise: StepNoise, seed: int) -> None:
        self._decode, self._mixed = noise.decode.table(), noise.mixed.table()
        self._bits = np.random.PCG64(np.random.SeedSequence([STREAM, seed]))
        self._block: list[int] = []

    def step_ps(self, duration_ps: int, has_prefill: bool) -> int:
        """How long the next step lasts that the cost model says takes `duration_ps`; at least 1 ps."""
        if not self._block:
            self._block = _indices(self._bits.random_raw(BLOCK))
        ratio = (self._mixed if has_prefill else self._decode)[self._block.pop()]
        return (duration_ps * ratio + (1 << (RATIO_SHIFT - 1)) >> RATIO_SHIFT) or 1


def _indices(raw: NDArray[np.uint64]) -> list[int]:
    """The highest bits, the first draw last: `pop` takes from there."""
    return [int(value) for value in (raw >> np.uint64(64 - TABLE_BITS))[::-1]]
