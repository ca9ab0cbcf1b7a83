"""Intervals over replications: against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simbatch.sim.statistics.intervals import Interval, mean_interval, paired_difference, paired_ratio

VALUES = [12.1, 9.8, 11.4, 10.2, 13.0, 10.9]
OTHERS = [12.9, 10.1, 12.6, 10.8, 14.3, 11.0]
numbers = st.floats(0.1, 100).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_a_mean_is_student_s_t(confidence: float) -> None:
    interval = mean_interval(VALUES, confidence)
    expected = stats.t.interval(confidence, 5, np.mean(VALUES), stats.sem(VALUES))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert (interval.estimate, interval.n) == (pytest.approx(np.mean(VALUES)), 6)


def test_pairs_are_compared_by_their_differences() -> None:
    paired = stats.ttest_rel(OTHERS, VALUES).confidence_interval(0.95)
    interval = paired_difference(VALUES, OTHERS)
    assert (interval.low, interval.high) == pytest.approx((paired.low, paired.high))
    apart = stats.ttest_ind(OTHERS, VALUES).confidence_interval(0.95)
    assert interval.low > 0 > apart.low  # what the common seeds give


def test_a_ratio_is_fieller_s() -> None:
    """At the bounds the paired t statistic of `other - ratio * base` is exactly critical."""
    interval = paired_ratio(VALUES, OTHERS)
    assert interval is not None
    for bound in (interval.low, interval.high):
        rest = np.array(OTHERS) - bound * np.array(VALUES)
        assert abs(rest.mean() / stats.sem(rest)) == pytest.approx(stats.t.ppf(0.975, 5))
    assert interval.estimate == pytest.approx(np.mean(OTHERS) / np.mean(VALUES))


@given(pairs)
def test_ratio_and_difference_never_contradict_each_other(pairs: list[tuple[float, float]]) -> None:
    base, other = zip(*pairs, strict=True)
    ratio, difference = paired_ratio(base, other), paired_difference(base, other)
    margin = min(abs(difference.low), abs(difference.high))
    if ratio is not None and margin > 1e-6:  # not at the very bound, where rounding decides
        assert ratio.holds(1.0) == difference.holds(0.0)
        assert ratio.low <= ratio.estimate <= ratio.high


def test_no_ratio_to_what_may_be_zero() -> None:
    assert paired_ratio([0.0, 0.0, 3.0], [1.0, 2.0, 5.0]) is None
    assert paired_ratio([0.0, 0.0], [0.0, 0.0]) is None


def test_tiny_and_huge_figures_have_the_same_ratio() -> None:
    known = paired_ratio(VALUES, OTHERS)
    for scale in (1e-200, 1e200):
        scaled = paired_ratio(np.multiply(VALUES, scale), np.multiply(OTHERS, scale))
        assert known is not None
        assert scaled is not None
        assert (scaled.low, scaled.high) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0], [3.0, 4.0]]])
def test_what_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match="an interval needs"):
        mean_interval(values)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="got 3 and 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_an_interval_holds_its_bounds() -> None:
    interval = Interval(2.0, 1.0, 3.0, 5)
    assert interval.holds(1.0)
    assert interval.holds(3.0)
    assert not interval.holds(0.999)
    assert interval.half_width == 1.0
