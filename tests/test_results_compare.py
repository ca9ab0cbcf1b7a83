"""Side by side: one table, one picture, one file of numbers."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from simbatch.sim.errors import UserError
from simbatch.sim.metrics.facts import SloLimits
from simbatch.sim.report.compare import Comparison
from simbatch.sim.report.result import Result
from simbatch.sim.results.differences import MetricRow
from tests.results_records import MS, Toy, back_to_back, build, facts


def candidate(policy, step_ms, arrivals=(0, 5, 10), **changes):
    toys = [Toy(ms * MS, [i, i + 1, i + 2], priority=i % 2) for i, ms in enumerate(arrivals)]
    record = build(toys, back_to_back([step_ms * MS] * 5, start_ps=10 * MS))
    known = {"policy": policy, "slo": SloLimits(ttft_ms=50), "scenario_name": "bursty", "seed": 3}
    return Result(record, facts(**{**known, **changes}))


@pytest.fixture
def comparison():
    return Comparison({"fixed": candidate("fixed", 20), "adaptive": candidate("adaptive", 10)})


def row(comparison, key):
    return next(row for row in comparison.rows if row.key == key)


def test_values_and_the_best(comparison):
    assert row(comparison, "mean_itl_ms").values == {"fixed": 20, "adaptive": 10}
    assert row(comparison, "mean_itl_ms").best == ["adaptive"]
    assert row(comparison, "simbatch.slo_share.all").values == {"fixed": 2 / 3, "adaptive": 1}
    assert row(comparison, "simbatch.slo_share.all").best == ["adaptive"]
    assert row(comparison, "completed").best == []  # all the same
    assert row(comparison, "simbatch.batch_size.max").best == []  # neither end is better
    assert row(comparison, "simbatch.classes.high.p99_ttft_ms").better == "lower"


def test_values_that_look_equal_are_equally_good():
    values = {"a": 2.2004, "b": 2.2001, "c": None}
    assert MetricRow("request_throughput", "", values, "higher").best == []
    assert MetricRow("request_throughput", "", {**values, "c": 1.0}, "higher").best == ["a", "b"]
    assert MetricRow("request_throughput", "", {**values, "c": 1.0}, "lower").best == ["c"]


def test_the_table(comparison):
    lines = comparison.text().splitlines()
    assert lines[0] == "bursty, seed 3: 2 candidates, * marks the best"
    assert lines[2].split() == ["fixed", "adaptive"]
    [shares] = [line for line in lines if line.startswith("Requests within SLO")]
    assert shares.split() == ["Requests", "within", "SLO", "66.67", "%", "100.00", "%", "*"]
    [itl] = [line for line in lines if line.startswith("Mean ITL (ms)")]
    assert itl.split() == ["Mean", "ITL", "(ms)", "20.0", "10.0", "*"]
    assert len({len(line.rstrip(" *")) for line in lines[4:6]}) == 1


def test_other_arrivals_are_pointed_out(comparison):
    assert comparison.same_arrivals
    other = Comparison({"a": candidate("fixed", 20), "b": candidate("fixed", 20, arrivals=(0, 1, 2))})
    assert not other.same_arrivals
    assert "NOTE: the candidates did not get the same requests" in other.text()


def test_warnings_name_their_candidate():
    text = Comparison({"a": candidate("fixed", 20), "b": candidate("fixed", 20, share_in_range=0.5)}).text()
    assert "WARNING: b: 50.0 % of the steps are outside what the profile measured" in text.splitlines()[-1]
    assert "WARNING: a" not in text


def test_without_slo_and_tokens_after_the_first_such_rows_are_left_out():
    single = Result(build([Toy(0, [0])], back_to_back([MS])), facts())
    keys = {row.key for row in Comparison({"a": single, "b": single}).rows}
    assert "request_goodput" not in keys
    assert "mean_tpot_ms" not in keys
    assert "mean_ttft_ms" in keys


def test_files_read_back(comparison, tmp_path):
    written = comparison.save(tmp_path / "compare")
    assert [path.name for path in written] == ["compare.json", "compare.csv", "compare.png", "run.json"]
    content = json.loads(written[0].read_text())
    assert content["candidates"]["fixed"] == {
        "policy": {"name": "fixed"}, "profile": "inline", "vllm_version": None,
    }  # fmt: skip
    assert content["same_arrivals"] is True
    [itl] = [metric for metric in content["metrics"] if metric["key"] == "mean_itl_ms"]
    assert (itl["values"], itl["best"]) == ({"fixed": 20.0, "adaptive": 10.0}, ["adaptive"])
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(next(row for row in rows if row["metric"] == "mean_itl_ms")["adaptive"]) == 10
    with Image.open(written[2]) as image:
        image.load()
        assert image.width == 1320


def test_a_picture_of_many_candidates_of_which_some_served_nobody(tmp_path):
    results = {f"candidate {i}": candidate("fixed", 10 + i) for i in range(9)}
    results["nobody"] = Result(build([], []), facts(slo=SloLimits(ttft_ms=50)))
    written = Comparison(results).save(tmp_path)
    with Image.open(written[2]) as image:
        image.load()
        assert image.height > 1000


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UserError, match="at least one result"):
        Comparison({})
