"""Queueing theory: where the answer is known, the simulation gives it.

Intervals over replications, cut to what a figure can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simbatch.policies.fixed import Fixed
from simbatch.policies.vllm import VLLM
from simbatch.sim.clock import PS_PER_S, to_ps
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics.registry import HIGHER, REGISTRY, Metric, metrics_of, steady_metrics
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Difference, Runs, bounds_of, possible, possible_difference
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.statistics import Interval, mean_interval, paired_difference, paired_ratio
from simbatch.sim.text import plus_minus
from tests.engine_cases import MS, ListSource

STEP_S = 0.010
CONSTANT_STEP = LinearCost(to_ps(STEP_S), 0, 0, 0)


def engine(max_num_seqs: int, batching: str = "continuous") -> EngineConfig:
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        num_gpu_blocks=10_000,
        enable_prefix_caching=False,
        batching=batching,
    )


def serve(arrivals_s: np.ndarray, outputs: np.ndarray, max_num_seqs: int = 1) -> RunRecord:
    rows = [(to_ps(a), 1, int(n), 0, ()) for a, n in zip(arrivals_s, outputs, strict=True)]
    return run(engine(max_num_seqs), CONSTANT_STEP, VLLM(), ListSource(rows))


def mean_wait_s(record: RunRecord) -> float:
    requests = record.requests
    warm = len(requests) // 10
    return float((requests.scheduled_ps - requests.arrival_ps)[warm:].mean() / PS_PER_S)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("service", ["one token", "geometric"])
def test_mean_wait_is_pollaczek_khinchine(load: float, service: str) -> None:
    """One seat and a constant step: M/D/1 with one output token, M/G/1 with geometric outputs, within 3 errors."""
    mean_tokens = 1.0 if service == "one token" else 5.0
    rate_per_s = load / (mean_tokens * STEP_S)
    variance = 0.0 if service == "one token" else mean_tokens * (mean_tokens - 1) * STEP_S**2
    second_moment = variance + (mean_tokens * STEP_S) ** 2
    expected_s = rate_per_s * second_moment / (2 * (1 - load))
    waits = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 77])
        outputs = rng.geometric(1 / mean_tokens, 4000)
        waits.append(mean_wait_s(serve(rng.exponential(1 / rate_per_s, 4000).cumsum(), outputs)))
    error_s = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert abs(np.mean(waits) - expected_s) < 3 * error_s


@pytest.mark.parametrize(("gap_s", "expected"), [(0.015, "nobody waits"), (0.008, "the queue grows by 2 ms each")])
def test_d_d_1_is_exact(gap_s: float, expected: str) -> None:
    record = serve(np.arange(50) * gap_s, np.ones(50, dtype=int))
    waits_ps = record.requests.scheduled_ps - record.requests.arrival_ps
    growth_ps = 0 if expected == "nobody waits" else 2 * MS
    assert waits_ps.tolist() == [i * growth_ps for i in range(50)]
    assert (record.requests.finish_ps - record.requests.scheduled_ps == 10 * MS).all()


def test_several_seats_in_lockstep_worked_by_hand() -> None:
    """Two seats, steps of 10 ms; all numbers in ms.

    A arrives at 0 with 3 tokens, B at 4 with 2, C at 5 with 1, D at 21 with 1.
    0-10: A. 10-20: A, B (C finds both seats taken). 20-30: A, B; both end. 30-40: C, D.
    """
    record = serve(np.array([0.0, 0.004, 0.005, 0.021]), np.array([3, 2, 1, 1]), max_num_seqs=2)
    requests = record.requests
    assert (requests.scheduled_ps // MS).tolist() == [0, 10, 30, 30]
    assert (requests.first_token_ps // MS).tolist() == [10, 20, 40, 40]
    assert (requests.finish_ps // MS).tolist() == [30, 30, 40, 40]
    assert record.num_steps == 4


def test_a_static_batch_runs_until_its_longest_member_ends() -> None:
    """Batches of two: (3 tokens, 1 token) end together at 30 ms; the third request waits for them, seat or no seat."""
    rows = [(0, 1, 3, 0, ()), (0, 1, 1, 0, ()), (0, 1, 2, 0, ())]
    record = run(engine(4, "static"), CONSTANT_STEP, Fixed(batch_size=2), ListSource(rows))
    assert (record.requests.scheduled_ps // MS).tolist() == [0, 0, 30]
    assert (record.requests.first_token_ps // MS).tolist() == [10, 10, 40]
    assert (record.requests.finish_ps // MS).tolist() == [30, 30, 50]
    assert record.segments["num_decodes"].tolist() == [0, 1, 0, 1]  # the ended member costs no more time


@pytest.mark.parametrize("draw", [lambda rng: rng.geometric(0.2, 500), lambda rng: rng.integers(1, 60, 500)])
def test_work_is_conserved(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    """One seat: the device is busy exactly as long as all tokens take."""
    rng = np.random.default_rng(5)
    outputs = draw(rng)
    record = serve(rng.exponential(0.05, 500).cumsum(), outputs)
    spans = record.segments
    assert spans["num_steps"].sum() == outputs.sum()
    assert (spans["num_steps"] * spans["duration_ps"]).sum() == outputs.sum() * 10 * MS


@pytest.mark.parametrize(("is_async", "expected_ms"), [(False, 30), (True, 40)])
@pytest.mark.parametrize("late_ps", [0, 1])
def test_ties_are_exact(is_async: bool, expected_ms: int, late_ps: int) -> None:
    """An arrival at the very moment a step is planned is in it; a picosecond later it is not.

    Steps of 10 ms; 0.03 s is not a whole number of binary fractions of a second, yet three steps end at it exactly.
    Asynchronous: the step that starts at 30 ms was planned at 20 ms, so the next one has the newcomer.
    """
    config = dataclasses.replace(engine(4), async_scheduling=is_async)
    rows = [(0, 1, 10, 0, ()), (to_ps(0.03) + late_ps, 1, 1, 0, ())]
    record = run(config, CONSTANT_STEP, VLLM(), ListSource(rows))
    assert record.requests.scheduled_ps[1] == (expected_ms + (10 if late_ps else 0)) * MS


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
    assert ratio.low == 0.0
    signed = paired_ratio([10.0, 11.0, 10.5], [-1.0, 30.0, 2.0])
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
