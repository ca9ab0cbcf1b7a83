"""Intervals over replications, cut to what a figure can be."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simbatch.sim.metrics.metric import HIGHER, Metric
from simbatch.sim.metrics.registry import REGISTRY, bounds_of, metrics_of, possible, possible_difference, steady_metrics
from simbatch.sim.results.differences import Difference
from simbatch.sim.results.experiment import Experiment
from simbatch.sim.results.runs import Runs
from simbatch.sim.statistics.intervals import Interval, mean_interval, paired_difference, paired_ratio
from simbatch.sim.text import plus_minus

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


@pytest.mark.parametrize(
    ("key", "bounds"),
    [
        ("p99_ttft_ms", (0, inf)),
        ("simbatch.slo_share.all", (0, 1)),
        ("slo_share.ttft", (0, 1)),
        ("classes.high.slo_share.all", (0, 1)),
        ("kv_cache.mean_use", (0, 1)),
        ("simbatch.recomputed_tokens_share", (0, 1)),
        ("fairness.tenants", (0, 1)),
        ("fairness.least_fair_share_ratio", (0, inf)),
        ("tenants.a.fair_share_ratio", (0, inf)),
        ("tenants.slo_share.mean_ttft_ms", (0, inf)),  # a tenant of that name
    ],
)
def test_bounds_go_by_the_name(key: str, bounds: tuple[float, float]) -> None:
    assert bounds_of(key) == bounds


def test_shares_and_indices_are_what_the_metrics_say() -> None:
    summary = {"simbatch": {"classes": {"high": {}, "low": {}}, "tenants": {}, "num_preemptions": 1}}
    for metric in (*metrics_of([summary]), *steady_metrics()):
        assert (bounds_of(metric.key)[1] == 1) == (metric.kind in ("share", "index")), metric.key


def test_a_share_stays_below_1_and_a_time_above_0() -> None:
    share = possible(mean_interval([1.0, 0.9, 1.0]), "slo_share.all")
    assert (share.high, share.low) == (1.0, mean_interval([1.0, 0.9, 1.0]).low)
    time = possible(mean_interval([1.0, 50.0, 2.0]), "p99_ttft_ms")
    assert time.low == 0.0
    assert time.high > 80


def test_differences_and_ratios() -> None:
    shares = possible_difference(paired_difference([0.0, 1.0], [1.0, 0.9]), "slo_share.all")
    assert (shares.low, shares.high) == (-1.0, 1.0)
    assert possible_difference(paired_difference([0.0, 9.0], [90.0, 1.0]), "p99_ttft_ms").low < -9
    ratio = paired_ratio([10.0, 11.0, 10.5], [1.0, 30.0, 2.0])
    assert ratio is not None
    assert ratio.low == 0.0
    signed = paired_ratio([10.0, 11.0, 10.5], [-1.0, 30.0, 2.0])
    assert signed is not None
    assert signed.low < 0


def test_verdicts_are_those_of_the_whole_interval() -> None:
    rng = np.random.default_rng(1)
    metric = Metric("simbatch.slo_share.all", "", HIGHER, "share")
    for _ in range(200):
        base, other = rng.uniform(0.7, 1, 3), rng.uniform(0.7, 1, 3)
        whole = paired_difference(base, other)
        difference = Difference.of(metric, ("a", tuple(base)), ("b", tuple(other)), 0.95, None)
        assert (difference.verdict == "no difference shown") == whole.holds(0.0)


def test_what_is_written_and_stored() -> None:
    interval = Runs([{"p99_ttft_ms": value} for value in (1.0, 50.0, 2.0)]).interval(REGISTRY["p99_ttft_ms"])
    assert interval is not None
    assert interval.low == 0.0
    table: Experiment[str] = Experiment()
    for seed, value in enumerate((1.0, 0.9, 1.0)):
        ours = {"slo_share": {"all": value}, "profile": {"share_of_steps_in_range": None}}
        table.add("a", seed, {"simbatch": ours})
    assert next(table.points())["slo_share.all.high"] == 1.0


def test_an_interval_that_was_cut_is_written_with_its_ends() -> None:
    assert plus_minus(97.6, 94.5, 100.7, 2) == "± 3.10"
    assert plus_minus(97.6, 94.5, 100.0, 2) == "(94.50 to 100.00)"
    assert plus_minus(99.999, 99.998, 100.0, 2) == "± 0.00"  # alike to the digits shown
