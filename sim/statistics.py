"""Intervals over replications, growth and trends, and the Pareto set, on plain arrays.

Replications are independent runs, one value each. Student's t throughout: the mean of n values of deviation s is known
to within t(n - 1) s / sqrt(n). Runs with the same seed get the same arrivals (common random numbers), so candidates are
compared by the differences of their pairs: whatever both suffer from a hard seed falls out (A. M. Law, Simulation
Modeling and Analysis, 5th ed., 9.4, 10.2, 11.2).

Values that are `is_resampled` come from one trace, drawn anew: their deviation s is the error of the trace's own
figure, which no number of them makes smaller. So nothing is divided by sqrt(n): the interval is t(n - 1) s to each
side.

A series that keeps growing, or still goes one way, forbids a claim about the steady state. The Pareto set is what
nothing beats in one goal without losing in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
# What every run asks of `student_t`, as scipy says it: a run does without its long import.
OF_A_RUN = {(19, 0.95): 2.0930240544083087, (18, 0.98): 2.5523796301822506, (18, 0.999): 3.9216458250852084}


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` values, and where the truth is with the confidence asked for."""

    estimate: float
    low: float
    high: float
    n: int

    def holds(self, value: float) -> bool:
        """Whether `value` is not ruled out; the bounds themselves are not."""
        return self.low <= value <= self.high

    def within(self, low: float, high: float) -> Interval:
        """Its part between what is possible at all: an end beyond that says nothing, and no truth is lost with it."""
        return replace(self, low=min(max(self.low, low), high), high=max(min(self.high, high), low))

    @property
    def half_width(self) -> float:
        """Half of the way from `low` to `high`."""
        return (self.high - self.low) / 2


def linear_percentiles(values: NDArray[np.float64], percents: Sequence[float]) -> list[float]:
    """What `numpy.percentile` gives by its method `linear`, by one sort for all of them; one value at least."""
    ordered, last = np.sort(values), len(values) - 1
    ranks = [rank_of(percent, len(values)) for percent in percents]
    return [between(float(ordered[rank]), float(ordered[min(rank + 1, last)]), share) for rank, share in ranks]


def rank_of(percent: float, size: int) -> tuple[int, float]:
    """The rank, from 0, at or below a percentile of `size` values, and what share of the way to the next one it is."""
    position = (size - 1) * (percent / 100)
    rank = min(int(position), size - 1)
    return rank, position - rank


def between(low: float, high: float, share: float) -> float:
    """What stands that share of the way from `low` to `high`, rounded as numpy does it."""
    return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share


def mean_interval(values: ArrayLike, confidence: float = CONFIDENCE, *, is_resampled: bool = False) -> Interval:
    """Of the mean that the values were drawn around; ValueError at fewer than two values."""
    sample = _sample(values)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / _worth(sample, is_resampled) ** 0.5
    reach = student_t(len(sample) - 1, confidence) * error
    return Interval(mean, mean - reach, mean + reach, len(sample))


def paired_difference(
    base: ArrayLike, other: ArrayLike, confidence: float = CONFIDENCE, *, is_resampled: bool = False
) -> Interval:
    """Of the mean of `other` minus that of `base`, whose values belong together one by one."""
    first, second = _pairs(base, other)
    return mean_interval(second - first, confidence, is_resampled=is_resampled)


def paired_ratio(
    base: ArrayLike, other: ArrayLike, confidence: float = CONFIDENCE, *, is_resampled: bool = False
) -> Interval | None:
    """Of the mean of `other` divided by that of `base` (Fieller); None where that mean may as well be zero.

    The ratio r is not ruled out while the mean of `other - r * base` is within its t interval round zero. So 1 is in it
    exactly when 0 is in the interval of the paired difference: both always say the same. Where no value is below zero
    neither is a ratio.
    E. C. Fieller, Some problems in interval estimation, J. R. Statist. Soc. B 16 (1954).
    """
    first, second = _pairs(base, other)
    scale = float(max(np.abs(first).max(), np.abs(second).max())) or 1.0
    first, second = first / scale, second / scale  # squares of tiny figures would vanish
    mean, mean_other, n = float(first.mean()), float(second.mean()), len(first)
    ((var, cov), (_, var_other)) = np.cov(first, second).tolist()
    factor = student_t(n - 1, confidence) ** 2 / _worth(first, is_resampled)
    a, b, c = mean**2 - factor * var, mean * mean_other - factor * cov, mean_other**2 - factor * var_other
    if a <= 0:
        return None
    reach = max(b * b - a * c, 0.0) ** 0.5  # below zero by rounding alone: the estimate itself is always inside
    estimate = mean_other / mean
    interval = Interval(estimate, min((b - reach) / a, estimate), max((b + reach) / a, estimate), n)
    return interval.within(0.0, np.inf) if min(first.min(), second.min()) >= 0 else interval


def student_t(degrees: int, confidence: float) -> float:
    """The t that |T| stays below with probability `confidence`; `scipy.stats.t.ppf`, without its long import."""
    if (known := OF_A_RUN.get((degrees, confidence))) is not None:
        return known
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _worth(sample: NDArray[np.float64], is_resampled: bool) -> int:
    """How many independent ones the values are worth when their mean is taken."""
    return 1 if is_resampled else len(sample)


def _sample(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"an interval needs at least two values, got {sample.size}")
    if not np.isfinite(sample).all():
        raise ValueError("an interval needs finite values")
    return sample


def _pairs(base: ArrayLike, other: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _sample(base), _sample(other)
    if len(first) != len(second):
        raise ValueError(f"pairs need as many values on both sides, got {len(first)} and {len(second)}")
    return first, second


def pareto_front(values: ArrayLike, maximise: Sequence[bool]) -> list[int]:
    """Which rows of `values` (rows: candidates, columns: goals) are dominated by no other, in their order.

    A row is dominated when another is at least as good in every goal and better in one. Figures are compared exactly;
    rows that are equal do not dominate each other, so ties stay together.
    """
    table = np.asarray(values, dtype=np.float64).reshape(-1, len(maximise))
    if np.isnan(table).any():
        raise ValueError("a candidate without a figure cannot be compared")
    table = np.where(maximise, table, -table)
    return [i for i, row in enumerate(table) if not _is_dominated(row, table)]


def _is_dominated(row: np.ndarray, table: np.ndarray) -> bool:
    return bool(((table >= row).all(axis=1) & (table > row).any(axis=1)).any())


MIN_POINTS = 3
ROUNDING = 1e-12
RULE = (
    "of the points that no other beats in both figures the one farthest above the straight line between the ends, on "
    "linear axes scaled to 0 .. 1 between them"
)


@dataclass(frozen=True)
class Knee:
    """Which point it is, and how far it stands out: 0 on a straight line, near 1 at a right angle."""

    index: int
    distance: float


def find_knee(gain: Sequence[float], cost: Sequence[float]) -> Knee | None:
    """By `RULE`: the point with the largest scaled gain minus scaled cost, of equals the cheapest.

    Both figures are scaled to 0 .. 1 between the ends of the Pareto set (more `gain`, less `cost`). The axes are
    linear, as throughput over latency is usually drawn. None with fewer than three different points in the set, or when
    none is above the line. The rule is Kneedle's for a whole curve: V. Satopää, J. Albrecht, D. Irwin, B. Raghavan,
    Finding a "Kneedle" in a Haystack, ICDCS Workshops 2011.
    """
    front = pareto_front(list(zip(gain, cost, strict=True)), (True, False))
    if len({(gain[i], cost[i]) for i in front}) < MIN_POINTS:
        return None
    y, x = (np.array([figures[i] for i in front], dtype=np.float64) for figures in (gain, cost))
    y, x = ((values - values.min()) / np.ptp(values) for values in (y, x))
    above = y - x
    highest = float(above.max())
    if highest <= ROUNDING:
        return None
    equals = np.flatnonzero(above >= highest - ROUNDING)
    best = int(equals[np.argmin(x[equals])])
    return Knee(front[best], float(above[best]))


NUM_PERIODS = 20
GROWTH_CONFIDENCE = 0.98  # two-sided: one queue in a hundred that is steady seems to grow
TREND_CONFIDENCE = 0.999


def keeps_growing(levels: ArrayLike) -> bool:
    """Whether a level (how many wait), given by its means over equal periods, grows all the time.

    A t test on its growth from one period to the next. A steady queue ends about where it began, so that what it grows
    and shrinks between is many times the mean growth; under overload the mean growth is what the rates differ by.
    One burst, however large, has one or a few steps up and is told from a trend.
    """
    growth = np.diff(np.asarray(levels, dtype=np.float64))
    mean, error = float(growth.mean()), float(growth.std(ddof=1)) / len(growth) ** 0.5
    return bool(mean > student_t(len(growth) - 1, GROWTH_CONFIDENCE) * error)


def is_trending(means: NDArray[np.float64]) -> bool:
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
    return float((line**2).sum()) * (n - 2) > student_t(n - 2, TREND_CONFIDENCE) ** 2 * unexplained


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
