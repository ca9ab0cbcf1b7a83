"""Pooled gaps are exact, long arrays are worked on in pieces, and a figure is one entry of the registry."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Result, simulate
from simbatch.sim.metrics import registry
from simbatch.sim.metrics.curves import first_steps_ps, output_tokens_per_second
from simbatch.sim.metrics.latencies import PooledGaps
from simbatch.sim.metrics.registry import LOWER, REGISTRY, Metric, metrics_of, steady_metrics
from simbatch.sim.metrics.step_function import Curve, Pieces
from simbatch.sim.report import run_pictures
from simbatch.sim.report.compare import Comparison
from simbatch.sim.report.result import Result as ResultClass
from simbatch.sim.search.sweep import sweep
from simbatch.sim.statistics import linear_percentiles
from simbatch.sim.tuning.goal import Limit
from tests.made_scenarios import INLINE, fixed, serving, uniform

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


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=40))
def test_percentiles_are_numpys_to_the_last_digit(values):
    assert linear_percentiles(np.array(values), PERCENTS) == np.percentile(values, PERCENTS).tolist()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_intervals_are_counted_at_each_moment(pairs):
    spans = [(min(pair), max(pair)) for pair in pairs]
    curve = Curve.counting(*np.array(spans, dtype=np.int64).reshape(-1, 2).T)
    assert curve.times.tolist() == sorted({moment for span in spans for moment in span})
    assert curve.values.tolist() == [sum(a <= t < b for a, b in spans) for t in curve.times.tolist()]


@given(st.lists(rows, min_size=1, max_size=12))
def test_statistics_are_those_of_the_expanded_multiset(progressions):
    gaps, expanded = pool(progressions), expand(progressions)
    assert gaps.size == len(expanded)
    np.testing.assert_allclose(gaps.percentiles_ps(PERCENTS), np.percentile(expanded, PERCENTS), rtol=1e-14)
    assert gaps.mean_ps == sum(map(int, expanded)) / len(expanded)
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
    assert spans.mean_ps == single.mean_ps


def test_a_falling_progression_is_a_rising_one_read_backwards():
    assert pool([(30, -10, 4, 1)]).percentiles_ps([0, 50, 100]) == [0, 15, 30]


def test_sums_beyond_int64_are_exact():
    day = 86_400 * 10**12
    gaps = pool([(day, 0, 1000, 1000), (day + 32, 0, 1000, 1000)])
    assert gaps.mean_ps == day + 16
    assert gaps.percentiles_ps([50]) == [day + 16]


def test_the_sketch_for_pictures_ends_at_one_and_stays_near():
    progressions = [(1000, 10, 100, 3), (5000, 0, 50, 2), (200, 1, 7, 1)]
    values, shares = pool(progressions).sketch()
    expanded = np.sort(expand(progressions))
    assert shares[-1] == pytest.approx(1)
    assert (np.diff(values) >= 0).all()
    exact = np.searchsorted(expanded, values, side="right") / len(expanded)
    np.testing.assert_allclose(shares, exact, atol=0.06)


STEP_TIME = {"base_s": 0.02, "per_prefill_token_s": 1e-4, "per_decode_seq_s": 1e-3, "per_context_token_s": 1e-6}


@pytest.fixture(scope="module")
def simulated() -> Result:
    """A run with preemptions and idle times."""
    engine = {"max_num_seqs": 16, "block_size": 16, "max_model_len": 400}
    lengths = {"prompt_len": uniform(20, 90), "output_len": uniform(1, 250)}
    return simulate(serving({"num_gpu_blocks": 40, "step_time": STEP_TIME}, 60, 0.6, engine=engine, **lengths))


def pictured(result: Result) -> list[np.ndarray]:
    record = result.record
    functions = (
        run_pictures.curves.waiting_with_preempted(record),
        run_pictures.curves.batch_size(record),
        run_pictures.curves.used_blocks(record),
    )
    return [part for function in functions for part in run_pictures.binned(function, record, 57)]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_size_of_the_slices_changes_nothing(simulated, size, monkeypatch, tmp_path):
    record = simulated.record
    assert record.num_preemptions > 0
    assert len(record.segments) > 100
    whole_pictured, whole_tokens = pictured(simulated), output_tokens_per_second(record)
    whole_sketch = PooledGaps.of(record).sketch()
    simulated.save(tmp_path / "whole")
    monkeypatch.setattr("simbatch.sim.engine.record.ROWS_PER_SLICE", size)
    record = replace(record)  # another one, with nothing kept of what was asked before
    sliced = ResultClass(record, simulated.facts)
    assert json.dumps(sliced.summary) == json.dumps(simulated.summary)
    for part, whole in zip(pictured(sliced), whole_pictured, strict=True):
        np.testing.assert_array_equal(part, whole)
    np.testing.assert_array_equal(output_tokens_per_second(record), whole_tokens)
    for part, whole in zip(PooledGaps.of(record).sketch(), whole_sketch, strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-12)
    sliced.save(tmp_path / "sliced")
    tables = [pq.read_table(tmp_path / name / "requests.parquet") for name in ("whole", "sliced")]
    assert tables[0].equals(tables[1])
    assert tables[0]["request_id"].to_pylist() == [str(i) for i in range(len(record.requests))]


def test_tokens_per_second_are_those_of_the_single_steps(simulated):
    record = simulated.record
    origin_ps = int(record.requests.arrival_ps.min())
    firsts = (record.requests.first_token_ps - origin_ps) // 10**12
    expected = np.bincount(firsts, minlength=10_000).astype(float)
    for row in record.segments:
        for k in range(1, int(row["num_steps"]) + 1):
            end_ps = int(row["start_ps"]) + int(first_steps_ps(row["duration_ps"], row["slope_ps"], k))
            expected[(end_ps - origin_ps) // 10**12] += int(row["num_decodes"])
    tokens = output_tokens_per_second(record)
    np.testing.assert_array_equal(tokens, expected[: len(tokens)])
    assert expected[len(tokens) :].sum() == 0


steps = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=15)


@given(steps, st.lists(st.integers(0, 60), min_size=2, max_size=6, unique=True), st.data())
def test_a_function_in_pieces_has_the_means_and_peaks_of_the_whole(function, edges, data):
    times = np.cumsum([pause for pause, _ in function])
    values = np.array([value for _, value in function])
    edges = np.array(sorted(edges))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(times)), max_size=3)))
    parts = list(zip(np.split(times, cuts), np.split(values, cuts), strict=True))
    held = np.zeros(101, dtype=np.int64)
    for time, value in zip(times, values, strict=True):
        held[time:] = value
    expected_peaks = [max([held[low], *values[(times >= low) & (times < high)]]) for low, high in pairwise(edges)]
    expected_means = [held[low:high].mean() for low, high in pairwise(edges)]
    for whole in (Curve(times, values), Pieces(lambda: (Curve(*part) for part in parts))):
        means, peaks = whole.per_bin(edges)
        np.testing.assert_allclose(means, expected_means, atol=1e-12)
        assert peaks.tolist() == expected_peaks
        assert whole.max == values.max()


SCENARIO = serving(INLINE, 6, 5, prompt_len=fixed(8), output_len=fixed(4))


def test_every_figure_is_in_the_summary_of_a_run_that_has_it() -> None:
    summary = simulate(SCENARIO.override({"slo": {"ttft_ms": 9, "tpot_ms": 9, "e2el_ms": 99}})).summary
    sessions = {key for key in REGISTRY if key.startswith(registry.SESSIONS)}  # `test_cluster_results.py` has some
    without = {key for key, metric in REGISTRY.items() if metric.of(summary) is None} - sessions
    tenants = {"simbatch.fairness.tenants", "simbatch.fairness.least_fair_share_ratio"}  # there are none
    assert without == {*tenants, "simbatch.cluster.imbalance.share_of_load"}  # nor other replicas
    for key in summary.keys() - {"simbatch"}:
        assert key in REGISTRY


def test_labels_tell_figures_apart() -> None:
    labels = [f"{metric.label} {metric.kind}" for metric in (*REGISTRY.values(), *steady_metrics())]
    assert len(set(labels)) == len(labels)


def test_a_new_figure_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "simbatch.queue.num_untouched"
    metric = Metric(
        key,
        "Requests that waited for nobody",
        LOWER,
        "count",
        lambda run: int((run.record.requests.scheduled_ps == run.record.requests.arrival_ps).sum()),
        is_compared=True,
        is_reported=True,
    )
    monkeypatch.setitem(registry.REGISTRY, key, metric)  # type: ignore[arg-type]
    result = simulate(SCENARIO)
    expected = int((result.requests["scheduled_s"] == result.requests["arrival_s"]).sum())
    assert 0 < expected <= 6
    assert result.summary["simbatch"]["queue"]["num_untouched"] == expected
    assert f"Requests that waited for nobody:         {expected}" in result.text()
    assert any(row.metric.key == key for row in Comparison({"a": result, "b": result}).rows)
    assert key in {each.key for each in metrics_of([result.summary])}
    (row,) = sweep(SCENARIO, {"engine.max_num_seqs": [4]}, jobs=1).rows
    assert row["queue.num_untouched"] == expected
    assert key in registry.searchable()
    assert Limit(metric, expected - 1).excess(expected) > 0
