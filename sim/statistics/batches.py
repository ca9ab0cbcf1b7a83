"""Intervals from one long run: means of consecutive batches.

Requests in a queue resemble their neighbours: whoever comes after one that waited long waits long too. Resampling them
one by one (a bootstrap over requests) would call the error far too small. Means over long batches of neighbours are all
but independent, so the t interval over 20 of them is valid (Law, Simulation Modeling and Analysis, 9.5.3); what
correlation is left between neighbouring batches widens it by sqrt((1 + r) / (1 - r)), r their lag-1 correlation if
positive (A. Tafazzoli, J. R. Wilson, E. K. Lada, N. M. Steiger, Performance of Skart, INFORMS J. Computing 23 (2011)).
Quantiles by sectioning: the quantile of all, and how far the batches' own quantiles are from it (S. Asmussen,
P. W. Glynn, Stochastic Simulation (2007), III.5a).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.statistics.drift import is_trending, widening
from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, student_t

NUM_BATCHES = 20
MIN_BATCH = 10  # requests
MIN_TAIL = 10  # requests of each batch beyond a quantile
MIN_INDEPENDENT = 100
SAME = 1e-9  # relative: what differs less is the same figure, rounded


class Refusal(Exception):  # noqa: N818  (not a mistake: what cannot be said, and why)
    """No interval can be given; the message says why."""


class Batches:
    """A series in order of time, cut into 20 batches of one length; up to 19 values at its beginning are left over.

    Refusal when it is too short, or goes one way as a whole.
    """

    def __init__(self, series: NDArray[np.float64]) -> None:
        self.length = len(series) // NUM_BATCHES
        if self.length < MIN_BATCH:
            raise Refusal(f"too short: {len(series):,} requests are left, {NUM_BATCHES * MIN_BATCH} are needed")
        self.values = series[len(series) - NUM_BATCHES * self.length :].reshape(NUM_BATCHES, self.length)
        self.means = self.values.mean(axis=1)
        if is_trending(self.means):
            rises = self.means[NUM_BATCHES // 2 :].sum() > self.means[: NUM_BATCHES // 2].sum()
            raise Refusal(f"not steady: it {'rises' if rises else 'falls'} over the whole run")

    def mean(self, confidence: float = CONFIDENCE) -> Interval:
        """Of the mean; Refusal when the requests are worth fewer than 100 independent ones."""
        interval = _over_batches(float(self.means.mean()), self.means, confidence)
        error = interval.half_width / student_t(NUM_BATCHES - 1, confidence)
        spread = float(self.values.std())
        if spread <= SAME * abs(interval.estimate) or error <= SAME * spread:
            return interval
        if (worth := (spread / error) ** 2) < MIN_INDEPENDENT:
            raise Refusal(
                f"too short: neighbours are so alike that {self.values.size:,} requests are worth {worth:.0f} "
                f"independent ones, and {MIN_INDEPENDENT} are needed"
            )
        return interval

    def quantile(self, share: float, confidence: float = CONFIDENCE) -> Interval:
        """Of a quantile; Refusal when a batch has fewer than 10 requests beyond it, or the mean has no interval."""
        self.mean(confidence)
        needed = round(MIN_TAIL / min(share, 1 - share))
        if self.length < needed:
            raise Refusal(f"too short: batches of {needed:,} requests are needed, these have {self.length:,}")
        of_batches = np.quantile(self.values, share, axis=1)
        return _over_batches(float(np.quantile(self.values, share)), of_batches, confidence)


def _over_batches(estimate: float, values: NDArray[np.float64], confidence: float) -> Interval:
    """Student's t over the batches' deviations from the estimate of all, wider for what correlation is left."""
    deviation, n = values - estimate, len(values)
    error = (float((deviation**2).sum()) / (n - 1) / n * widening(deviation)) ** 0.5
    reach = student_t(n - 1, confidence) * error
    return Interval(estimate, estimate - reach, estimate + reach, n)
