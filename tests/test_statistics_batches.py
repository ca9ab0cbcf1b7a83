"""Intervals from one run, growth, trends, and MSER-5: series whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import mm1, mser
from simbatch.sim.statistics.intervals import student_t
from simbatch.sim.statistics.series import BatchMeans, NoClaim, is_trending, keeps_growing, widening


def autoregressive(seed: int, n: int, phi: float, mean: float = 10.0) -> np.ndarray:
    from scipy.signal import lfilter

    rng = np.random.default_rng([seed, 11])
    start = rng.normal(0, 1 / (1 - phi**2) ** 0.5)
    return mean + lfilter([1], [1, -phi], rng.normal(0, 1, n), zi=[phi * start])[0]


def test_means_by_hand() -> None:
    """20 batches of 10 whose means are 1 and 3 in turn: negative correlation, so nothing is widened."""
    series = np.repeat([1.0, 3.0] * 10, 10) + np.tile([-0.5, 0.5], 100) * 100
    batches = BatchMeans(series)
    assert batches.means.tolist() == [1.0, 3.0] * 10
    interval = batches.mean()
    reach = student_t(19, 0.95) * np.std([1, 3] * 10, ddof=1) / 20**0.5
    assert (interval.low, interval.high) == pytest.approx((2 - reach, 2 + reach))


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    means = np.array([1.0] * 10 + [-1.0] * 10)
    correlation = 17 / 20  # 18 products of 1 and one of -1
    assert widening(means) == pytest.approx((1 + correlation) / (1 - correlation))
    assert widening(np.array([1.0, -1.0] * 10)) == 1.0
    assert widening(np.zeros(20)) == 1.0


def test_coverage_of_a_process_whose_mean_is_known() -> None:
    """AR(1), neighbours correlated 0.8: 400 series, whose values one by one would be called 3 times too sure."""
    held = naive = 0
    for seed in range(400):
        series = autoregressive(seed, 10_000, 0.8)
        held += BatchMeans(series).mean().holds(10.0)
        naive += abs(series.mean() - 10) <= 1.96 * series.std() / len(series) ** 0.5
    assert 0.94 <= held / 400 <= 0.99  # widened by chance as often as not: rather too wide
    assert naive / 400 < 0.6


def test_coverage_of_a_quantile() -> None:
    held = sum(
        BatchMeans(np.random.default_rng([seed, 3]).exponential(1.0, 20_000)).quantile(0.99).holds(-np.log(0.01))
        for seed in range(200)
    )
    assert 0.9 <= held / 200 <= 0.99


def test_a_short_series_is_refused() -> None:
    with pytest.raises(NoClaim, match="too short: 199 requests are left, 200 are needed"):
        BatchMeans(np.ones(199))
    with pytest.raises(NoClaim, match="batches of 1,000 requests are needed, these have 999"):
        BatchMeans(np.random.default_rng(1).normal(size=19_999)).quantile(0.99)


def test_a_series_of_few_independent_values_is_refused() -> None:
    with pytest.raises(NoClaim, match=r"2,000 requests are worth \d\d? independent ones, and 100 are needed"):
        BatchMeans(autoregressive(4, 2000, 0.99)).mean()


def test_a_series_that_goes_one_way_is_refused() -> None:
    noise = np.random.default_rng(1).normal(size=4000)
    with pytest.raises(NoClaim, match="not steady: it rises"):
        BatchMeans(noise + np.linspace(0, 1, 4000))
    with pytest.raises(NoClaim, match="not steady: it falls"):
        BatchMeans(noise - np.linspace(0, 1, 4000))


def test_equal_values_are_known_exactly() -> None:
    interval = BatchMeans(np.full(1000, 0.1)).mean()
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_batches_that_are_all_alike_are_known_exactly() -> None:
    interval = BatchMeans(np.tile([1.0, 3.0], 500)).mean()
    assert (interval.low, interval.high) == (2.0, 2.0)


def test_a_steady_queue_seldom_trends() -> None:
    trends = [is_trending(series.reshape(20, -1).mean(axis=1)) for series in mm1(0.8, 4000, 300)]
    assert sum(trends) <= 3


@pytest.mark.parametrize(
    ("levels", "grows"),
    [
        (np.arange(21), True),
        (np.zeros(21), False),
        (np.arange(21)[::-1], False),
        ([0] * 20 + [500], False),  # a burst at the end
        ([0] * 17 + [100, 200, 300, 400], False),  # one that lasts a fifth of the run
        ([0, 30] * 10 + [0], False),
        ([0, 30] * 10 + [30], False),  # ends in a burst
        ([i * 10 + (i % 2) * 10 for i in range(21)], True),
    ],
)
def test_growth_is_told_from_bursts(levels: list[int], grows: bool) -> None:
    assert keeps_growing(levels) == grows


def test_mser_5_cuts_a_transient_and_nothing_else() -> None:
    noise = np.random.default_rng(2).normal(size=5000)
    transient = np.concatenate([np.linspace(50, 0, 500), np.zeros(4500)])
    assert 400 <= mser(noise + transient) <= 600
    assert mser(np.concatenate([np.full(50, 9.0), np.tile([0.0, 1.0], 475)])) == 50
    assert mser(noise + np.linspace(0, 20, 5000)) == 2500  # all transient: no more than half


def test_mser_5_is_biased_on_a_queue_and_a_fixed_share_is_not() -> None:
    """Why the warm-up is a stated share: docs/statistics.md."""
    cut, fixed = np.array(
        [(series[mser(series) :].mean(), series[1000:].mean()) for series in mm1(0.8, 10_000, 300)]
    ).mean(axis=0)
    assert cut < 0.99
    assert abs(fixed - 1) < 0.015
