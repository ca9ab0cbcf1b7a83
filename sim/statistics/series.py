"""Whether something keeps growing, or still goes one way: what forbids a claim about the steady state."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, student_t

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


NUM_BATCHES = 20
MIN_BATCH = 10  # requests
MIN_TAIL = 10  # requests of each batch beyond a quantile
MIN_INDEPENDENT = 100
SAME = 1e-9  # relative: what differs less is the same figure, rounded


class NoClaim(Exception):  # noqa: N818  (not a mistake: what cannot be said, and why)
    """No interval can be given; the message says why."""


class BatchMeans:
    """A series in order of time, cut into 20 batches of one length; up to 19 values at its beginning are left over.

    NoClaim when it is too short, or goes one way as a whole.
    """

    def __init__(self, series: NDArray[np.float64]) -> None:
        self.length = len(series) // NUM_BATCHES
        if self.length < MIN_BATCH:
            raise NoClaim(f"too short: {len(series):,} requests are left, {NUM_BATCHES * MIN_BATCH} are needed")
        self.values = series[len(series) - NUM_BATCHES * self.length :].reshape(NUM_BATCHES, self.length)
        self.means = self.values.mean(axis=1)
        if is_trending(self.means):
            rises = self.means[NUM_BATCHES // 2 :].sum() > self.means[: NUM_BATCHES // 2].sum()
            raise NoClaim(f"not steady: it {'rises' if rises else 'falls'} over the whole run")

    def mean(self, confidence: float = CONFIDENCE) -> Interval:
        """Of the mean; NoClaim when the requests are worth fewer than 100 independent ones."""
        interval = _over_batches(float(self.means.mean()), self.means, confidence)
        error = interval.half_width / student_t(NUM_BATCHES - 1, confidence)
        spread = float(self.values.std())
        if spread <= SAME * abs(interval.estimate) or error <= SAME * spread:
            return interval
        if (worth := (spread / error) ** 2) < MIN_INDEPENDENT:
            raise NoClaim(
                f"too short: neighbours are so alike that {self.values.size:,} requests are worth {worth:.0f} "
                f"independent ones, and {MIN_INDEPENDENT} are needed"
            )
        return interval

    def quantile(self, share: float, confidence: float = CONFIDENCE) -> Interval:
        """Of a quantile; NoClaim when a batch has fewer than 10 requests beyond it, or the mean has no interval."""
        self.mean(confidence)
        needed = round(MIN_TAIL / min(share, 1 - share))
        if self.length < needed:
            raise NoClaim(f"too short: batches of {needed:,} requests are needed, these have {self.length:,}")
        of_batches = np.quantile(self.values, share, axis=1)
        return _over_batches(float(np.quantile(self.values, share)), of_batches, confidence)


def _over_batches(estimate: float, values: NDArray[np.float64], confidence: float) -> Interval:
    """Student's t over the batches' deviations from the estimate of all, wider for what correlation is left."""
    deviation, n = values - estimate, len(values)
    error = (float((deviation**2).sum()) / (n - 1) / n * widening(deviation)) ** 0.5
    reach = student_t(n - 1, confidence) * error
    return Interval(estimate, estimate - reach, estimate + reach, n)
