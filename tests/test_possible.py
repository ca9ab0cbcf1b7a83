"""Intervals end where their figure does: no share of 104 %, no time below 0."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from simbatch.sim.metrics.registry import (
    HIGHER,
    REGISTRY,
    Metric,
    bounds_of,
    metrics_of,
    possible,
    possible_difference,
    steady_metrics,
)
from simbatch.sim.results.differences import Difference
from simbatch.sim.results.experiment import Experiment
from simbatch.sim.results.runs import Runs
from simbatch.sim.statistics.intervals import mean_interval, paired_difference, paired_ratio
from simbatch.sim.text import plus_minus


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
