"""Candidates side by side: the table, its rows, who is the same as whom; differences over seeds and their verdicts."""

import csv
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from simbatch import Scenario, simulate
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.metrics.registry import HIGHER, LOWER, Metric
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.report import style
from simbatch.sim.report.compare import Comparison, ReplicatedComparison
from simbatch.sim.report.result import Result
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Difference, MetricRow
from tests import drawn, exit_code, lengths, traffic
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
    return next(row for row in comparison.rows if row.metric.key == key)


def test_values_and_the_best(comparison):
    assert row(comparison, "mean_itl_ms").values == {"fixed": 20, "adaptive": 10}
    assert row(comparison, "mean_itl_ms").best == ["adaptive"]
    assert row(comparison, "simbatch.slo_share.all").values == {"fixed": 2 / 3, "adaptive": 1}
    assert row(comparison, "simbatch.slo_share.all").best == ["adaptive"]
    assert row(comparison, "completed").best == []  # all the same
    assert row(comparison, "simbatch.batch_size.max").best == []  # neither end is better
    assert row(comparison, "simbatch.classes.high.p99_ttft_ms").metric.better == "lower"


def test_values_that_look_equal_are_equally_good():
    values = {"a": 2.2004, "b": 2.2001, "c": None}
    assert MetricRow(Metric("request_throughput", "", "higher"), values).best == []
    assert MetricRow(Metric("request_throughput", "", "higher"), {**values, "c": 1.0}).best == ["a", "b"]
    assert MetricRow(Metric("request_throughput", "", "lower"), {**values, "c": 1.0}).best == ["c"]


def test_the_table(comparison):
    assert comparison.text().splitlines()[-1].endswith("more rows with --all, and in compare.csv.")
    assert "adaptive is best in " in comparison.text()
    lines = comparison.text(all_rows=True).splitlines()
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
    keys = {row.metric.key for row in Comparison({"a": single, "b": single}).rows}
    assert "request_goodput" not in keys
    assert "mean_tpot_ms" not in keys
    assert "mean_ttft_ms" in keys


def test_files_read_back(comparison, tmp_path):
    written = comparison.save(tmp_path / "compare")
    assert [path.name for path in written] == ["compare.json", "compare.csv", "compare.png", "run.json"]
    content = json.loads(written[0].read_text())
    assert content["candidates"]["fixed"] == {
        "policy": {"name": "fixed"}, "profile": "inline", "vllm_version": "0.33.0",
    }  # fmt: skip
    assert content["same_arrivals"] is True
    [itl] = [metric for metric in content["metrics"] if metric["key"] == "mean_itl_ms"]
    assert (itl["values"], itl["best"]) == ({"fixed": 20.0, "adaptive": 10.0}, ["adaptive"])
    with written[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(next(row for row in rows if row["metric"] == "mean_itl_ms")["adaptive"]) == 10
    assert drawn(written[2]).width == 1320


def test_a_picture_of_many_candidates_of_which_some_served_nobody(tmp_path):
    results = {f"candidate {i}": candidate("fixed", 10 + i) for i in range(9)}
    results["nobody"] = Result(build([], []), facts(slo=SloLimits(ttft_ms=50)))
    written = Comparison(results).save(tmp_path)
    assert drawn(written[2]).height > 1000


def test_nothing_to_compare_is_an_error():
    with pytest.raises(UserError, match="at least one result"):
        Comparison({})


def replicated(steps_ms: dict[str, Sequence[int]], **settings: Any) -> ReplicatedComparison:
    first = Comparison({name: candidate(name, steps[0]) for name, steps in steps_ms.items()})
    experiment: Experiment[str] = Experiment()
    for name, steps in steps_ms.items():
        for seed, step in enumerate(steps):
            experiment.add(name, seed, candidate(name, step).summary)
    return ReplicatedComparison(experiment, **settings, first=first)


STEPS_MS: dict[str, Sequence[int]] = {"a": (20, 24, 28), "b": (10, 13, 15), "c": (20, 25, 27)}


def test_bonferroni_widens_so_that_all_hold_together() -> None:
    each, together = replicated(STEPS_MS), replicated(STEPS_MS, bonferroni=True)
    [alone] = [row for row in each.differences if row[0].metric.key == "mean_itl_ms"]
    [joint] = [row for row in together.differences if row[0].metric.key == "mean_itl_ms"]
    assert [difference.verdict for difference in alone] == ["better", "no difference shown"]
    for one, wide in zip(alone, joint, strict=True):
        ratio = wide.interval.half_width / one.interval.half_width
        assert ratio == pytest.approx(stats.t.ppf(1 - 0.025 / 2, 2) / stats.t.ppf(0.975, 2))
    assert "The 2 intervals of a metric hold together at 95 % (Bonferroni)" in together.text().replace("\n  ", " ")
    assert "see --bonferroni" in each.text().replace("\n  ", " ")


def test_a_picture_of_three_and_one_without_anything_to_draw(tmp_path: Path) -> None:
    one_run: dict[str, Sequence[int]] = {"a": (20,) * 3, "b": (30,) * 3}
    for name, steps in {"three": STEPS_MS, "one run": one_run}.items():
        written = replicated(steps).save(tmp_path / name)
        [picture] = [path for path in written if path.name == "differences.png"]
        assert drawn(picture).width == 990


@pytest.mark.parametrize(
    ("better", "other", "verdict"),
    [
        (LOWER, [2.0, 3.1, 4.0], "worse"),
        (HIGHER, [2.0, 3.1, 4.0], "better"),
        (None, [2.0, 3.1, 4.0], "higher"),
        (LOWER, [0.0, 1.1, 1.9], "better"),
        (None, [0.0, 1.1, 1.9], "lower"),
        (LOWER, [1.0, 2.0, 3.0], "no difference shown"),
        (LOWER, [0.0, 2.0, 4.0], "no difference shown"),
        (LOWER, [None, None, 4.0], "not measured"),
        (LOWER, [2.0, 3.1, None], "worse"),
    ],
)
def test_verdicts(better: str | None, other: list[float | None], verdict: str) -> None:
    difference = Difference.of(Metric("m", "M", better), ("a", [1.0, 2.0, 3.0]), ("b", other), 0.8, None)
    assert difference.verdict == verdict
    assert difference.as_dict()["num_pairs"] == (0 if verdict == "not measured" else 3 - other.count(None))


def test_a_mistake_that_another_process_finds_reads_the_same() -> None:
    error = UserError(Problem("a.yaml:1:1 x", "is wrong", mend="mend it"), Problem("b", "is wrong", 3))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


ROOT = Path(__file__).parents[1]
SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 60, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "engine": {"max_model_len": 900},
    "workload": traffic(80, 20, 20, request_rate=12) | {"output_len": lengths(20, 0.5) | {"max": 100}},
    "seed": 3,
}
THREE = ("--policy", "vllm", "--policy", "static", "--policy", "priority", "--policy", "memory_aware")
SAME = "NOTE: priority is the same as vllm in every run here: every request fared alike."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SCENARIO))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert not exit_code("compare", "small.yaml", "--jobs", "1", *arguments)
    return capsys.readouterr().out


def stored(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("results", name, "compare.json").read_text())
    return content


def test_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *THREE)
    assert "NOTE: priority is the same as vllm in this run: every request fared alike." in out
    assert "static is the same" not in out
    assert stored("small-compare")["same_as"]["priority"] == "vllm"


def test_replications_and_loads(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = THREE[:6]
    out = printed(capsys, *candidates, "--replications", "3")
    assert SAME in out
    assert "static against vllm" in out
    assert "priority against vllm" not in out  # a table of nothing but zeros
    assert stored("small-compare")["same_as"] == {"priority": "vllm"}
    assert SAME in printed(capsys, *candidates, "--rate", "4,12")
    assert stored("small-loads")["same_as"] == {"priority": "vllm"}
    alone = printed(capsys, "--policy", "vllm", "--policy", "priority", "--replications", "2")
    assert SAME in alone
    assert "Nothing to tell apart: every request fared alike under all candidates, in every run." in alone
    assert "comparison" not in alone


def test_who_differs_under_one_seed_alone_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.py").write_text(
        "from simbatch import Policy\n\n\nclass Odd(Policy):\n"
        "    def order(self, request):\n"
        "        return -request.arrival_s if request.request_id == '79' else request.arrival_s\n"
    )
    alone = printed(capsys, "--policy", "vllm", "--policy", "odd.py:Odd", "--rate", "1,60")
    assert "is the same as" not in alone
    calm = printed(capsys, "--policy", "vllm", "--policy", "odd.py:Odd", "--rate", "1,2")
    assert "odd.py:Odd is the same as vllm in every run here" in calm


def test_one_candidate_over_loads_is_the_load_curve(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "--rate", "4,12")
    lines = out.splitlines()
    assert lines[:2] == ["small, seed 3: one run at each of 2 loads", ""]
    assert lines[2] == "vllm"
    assert lines[3].split("  ")[0] == "request_rate"
    assert "P99 TTFT (ms)" in lines[3]
    content = stored("small-loads")
    assert (content["base"], content["rates"]) == ("vllm", [4, 12])
    p99 = [
        next(row for row in load["metrics"] if row["key"] == "p99_ttft_ms")["values"]["vllm"]
        for load in content["loads"]
    ]
    alone = simulate(Scenario.load("small.yaml").override({"workload.request_rate": 4})).summary["p99_ttft_ms"]
    assert p99[0] == alone
    assert f"{p99[1]:,.1f}" in lines[5]
    assert {path.name for path in Path("results/small-loads").iterdir()} >= {"loads.png", "loads.pdf"}
    assert "fixed" in printed(capsys, "--policy", "fixed", "--rate", "4,12", "--replications", "2")


def test_the_tenants_example_says_what_is_true() -> None:
    text = (ROOT / "scenarios/tenants.yaml").read_text()
    scenario = Scenario.load(ROOT / "scenarios/tenants.yaml")
    vllm, fair = (simulate(scenario, policy).summary["simbatch"] for policy in ("vllm", "fair"))
    share = {name: f"{100 * ours['slo_share']['all']:.0f} %" for name, ours in (("vllm", vllm), ("fair", fair))}
    assert share == {"vllm": "57 %", "fair": "66 %"}
    assert (round(vllm["fairness"]["tenants"], 2), round(fair["fairness"]["tenants"], 2)) == (0.94, 1.0)
    noisy = [f"{100 * ours['tenants']['noisy']['slo_share']['all']:.0f} %" for ours in (fair, vllm)]
    assert noisy == ["39 %", "40 %"]
    for figure in ("66 %", "57 %", "1.00", "0.94", *noisy, "--policy vllm --policy fair"):
        assert figure in text


def test_as_many_candidates_as_there_are_policies_have_a_colour_each() -> None:
    names = POLICIES.names()
    every = {*style.colours(names).values()}
    assert len(every) == len(names)
    assert style.LIMIT not in every  # the SLO's own
