"""One entry of the registry is a figure everywhere: summary, console, comparison, sweep, search."""

from __future__ import annotations

import pytest

from simbatch import Scenario, simulate
from simbatch.sim.metrics import registry
from simbatch.sim.metrics.registry import LOWER, REGISTRY, Metric, metrics_of, steady_metrics
from simbatch.sim.report.compare import Comparison
from simbatch.sim.search.sweep import sweep
from simbatch.sim.tuning.goal import Limit

SCENARIO = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
    "workload": {
        "num_prompts": 6,
        "request_rate": 5,
        "prompt_len": {"distribution": "fixed", "mean": 8},
        "output_len": {"distribution": "fixed", "mean": 4},
    },
}


def test_every_figure_is_in_the_summary_of_a_run_that_has_it() -> None:
    summary = simulate(Scenario.from_dict(SCENARIO | {"slo": {"ttft_ms": 9, "tpot_ms": 9, "e2el_ms": 99}})).summary
    without = {key for key, metric in REGISTRY.items() if metric.of(summary) is None}
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
    result = simulate(Scenario.from_dict(SCENARIO))
    expected = int((result.requests["scheduled_s"] == result.requests["arrival_s"]).sum())
    assert 0 < expected <= 6
    assert result.summary["simbatch"]["queue"]["num_untouched"] == expected
    assert f"Requests that waited for nobody:         {expected}" in result.text()
    assert any(row.key == key for row in Comparison({"a": result, "b": result}).rows)
    assert key in {each.key for each in metrics_of([result.summary])}
    (row,) = sweep(Scenario.from_dict(SCENARIO), {"engine.max_num_seqs": [4]}, jobs=1).rows
    assert row["queue.num_untouched"] == expected
    assert key in registry.searchable()
    assert Limit(metric, expected - 1).excess(expected) > 0
