"""Order statistics of pooled progressions against numpy on the expanded multiset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.metrics.gaps import PooledGaps

PERCENTS = [0, 1, 12.5, 50, 90, 95, 99, 100]

rows = st.tuples(
    st.integers(0, 60) | st.integers(10**9, 10**14),
    st.integers(0, 9) | st.integers(0, 10**7),
    st.integers(1, 12),
    st.integers(1, 5),
)


def pool(progressions):
    return PooledGaps.from_progressions(
        *(np.array(column, dtype=np.int64) for column in zip(*progressions, strict=True))
    )


def expand(progressions):
    parts = [np.repeat(first + slope * np.arange(count), weight) for first, slope, count, weight in progressions]
    return np.concatenate(parts).astype(np.int64)


@given(st.lists(rows, min_size=1, max_size=12))
def test_statistics_are_those_of_the_expanded_multiset(progressions):
    gaps, expanded = pool(progressions), expand(progressions)
    assert gaps.size == len(expanded)
    np.testing.assert_allclose(gaps.percentiles_ps(PERCENTS), np.percentile(expanded, PERCENTS), rtol=1e-14)
    assert gaps.mean_ps() == sum(map(int, expanded)) / len(expanded)
    assert gaps.std_ps() == pytest.approx(expanded.std(), rel=1e-9, abs=1e-7 * expanded.mean() + 1e-9)


@given(st.lists(rows, min_size=1, max_size=6), st.data())
def test_every_rank_is_exact(progressions, data):
    gaps, expanded = pool(progressions), np.sort(expand(progressions))
    rank = data.draw(st.integers(0, len(expanded) - 1))
    following = expanded[min(rank + 1, len(expanded) - 1)]
    assert gaps.order_statistics(rank) == (expanded[rank], following)


@given(st.lists(rows, min_size=1, max_size=6))
def test_splitting_spans_into_steps_changes_nothing(progressions):
    steps = [(first + j * slope, 0, 1, weight) for first, slope, count, weight in progressions for j in range(count)]
    spans, single = pool(progressions), pool(steps)
    assert spans.percentiles_ps(PERCENTS) == single.percentiles_ps(PERCENTS)
    assert spans.mean_ps() == single.mean_ps()


def test_a_falling_progression_is_a_rising_one_read_backwards():
    assert pool([(30, -10, 4, 1)]).percentiles_ps([0, 50, 100]) == [0, 15, 30]


def test_sums_beyond_int64_are_exact():
    day = 86_400 * 10**12
    gaps = pool([(day, 0, 1000, 1000), (day + 32, 0, 1000, 1000)])
    assert gaps.mean_ps() == day + 16
    assert gaps.percentiles_ps([50]) == [day + 16]


def test_the_sketch_for_pictures_ends_at_one_and_stays_near():
    progressions = [(1000, 10, 100, 3), (5000, 0, 50, 2), (200, 1, 7, 1)]
    values, shares = pool(progressions).sketch()
    expanded = np.sort(expand(progressions))
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(values) >= 0).all()
    exact = np.searchsorted(expanded, values, side="right") / len(expanded)
    np.testing.assert_allclose(shares, exact, atol=0.06)
