"""Noise of step times in a profile: how measured steps are spread round what the cost model says."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from simbatch.sim.cost.draws import NoiseDraws, ratio_table
from simbatch.sim.cost.step_time import Strict

__all__ = ["NoiseDraws", "Ratios", "StepNoise"]

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
            raise ValueError(f"the mean ratio must be 1, not {self.mean:.4f}: divide every ratio by that")
        return self

    @property
    def mean(self) -> float:
        """Mean of the distribution."""
        pairs = pairwise(zip(self.share, self.ratio, strict=True))
        return sum((p1 - p0) * (r0 + r1) / 2 for (p0, r0), (p1, r1) in pairs)

    def table(self) -> list[int]:
        """Equally likely ratios as integers, their mean 1 to the last bit."""
        return ratio_table(self.share, self.ratio)


class StepNoise(Strict):
    """The spread of decode-only steps and of steps with prefills."""

    decode: Ratios
    mixed: Ratios

    def draws(self, seed: int, replica: int = 0) -> NoiseDraws:
        """Draws for one run of one replica."""
        return NoiseDraws(self.decode.table(), self.mixed.table(), seed, replica)
