"""Whether something keeps growing, or still goes one way: what forbids a claim about the steady state."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simbatch.sim.statistics.intervals import student_t

NUM_PERIODS = 20
GROWTH_CONFIDENCE = 0.98  # two-sided: one queue in a hundred that is steady seems to grow
TREND_CONFIDENCE = 0.999


def keeps_growing(levels: ArrayLike, confidence: float = GROWTH_CONFIDENCE) -> bool:
    """Whether a level (how many wait), given by its means over equal periods, grows all the time.

    A t test on its growth from one period to the next. A steady queue ends about where it began, so that what it grows
    and shrinks between is many times the mean growth; under overload the mean growth is what the rates differ by.
    One burst, however large, has one or a few steps up and is told from a trend.
    """
    growth = np.diff(np.asarray(levels, dtype=np.float64))
    mean, error = float(growth.mean()), float(growth.std(ddof=1)) / len(growth) ** 0.5
    return bool(mean > student_t(len(growth) - 1, confidence) * error)


def is_trending(means: NDArray[np.float64], confidence: float = TREND_CONFIDENCE) -> bool:
    """Whether the means of consecutive batches go up or down as a whole: a t test on their slope.

    Widened for neighbours that are alike, since a steady queue wanders.
    """
    n = len(means)
    place = np.arange(n) - (n - 1) / 2
    deviation = means - means.mean()
    if float((deviation**2).sum()) <= 1e-18 * n * float(means.mean()) ** 2:  # the same figure, rounded
        return False
    line = float((place * deviation).sum() / (place**2).sum()) * place
    rest = deviation - line
    unexplained = float((rest**2).sum()) * widening(rest)
    return float((line**2).sum()) * (n - 2) > student_t(n - 2, confidence) ** 2 * unexplained


def widening(deviation: NDArray[np.float64]) -> float:
    """How much larger the variance of a mean is when neighbours are alike: (1 + r) / (1 - r), r their correlation.

    That of an autoregressive process of order one; 1 when the neighbours' correlation is not positive.
    """
    total = float((deviation**2).sum())
    correlation = float((deviation[1:] * deviation[:-1]).sum()) / total if total else 0.0
    correlation = min(max(correlation, 0.0), 0.99)
    return (1 + correlation) / (1 - correlation)
