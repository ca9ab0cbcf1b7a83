"""Confidence intervals over replications: independent runs, one value each.

Student's t throughout: the mean of n values of deviation s is known to within t(n - 1) s / sqrt(n). Runs with the same
seed get the same arrivals (common random numbers), so candidates are compared by the differences of their pairs:
whatever both suffer from a hard seed falls out (A. M. Law, Simulation Modeling and Analysis, 5th ed., 9.4, 10.2, 11.2).

Values that are `is_resampled` come from one trace, drawn anew: their deviation s is the error of the trace's own
figure, which no number of them makes smaller. So nothing is divided by sqrt(n): the interval is t(n - 1) s to each
side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
# What every run asks of `student_t` (in `series`), as scipy says it: a run does without its long import.
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
