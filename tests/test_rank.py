"""`simbatch rank`: who is best in which scenario, who is not told apart, and the page that is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from simbatch.sim.plugins.policy import POLICIES as NAMED
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.rank import Judged, overall, plan_ranking, ranks_of
from tests import exit_code
from tests.made_scenarios import fixed

LENGTHS = {"distribution": "lognormal", "mean": 20, "cv": 0.5}
BASE: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "workload": {"num_prompts": 150, "request_rate": 12, "prompt_len": fixed(20), "output_len": LENGTHS},
    "slo": {"ttft_ms": 200},
    "seed": 3,
}
ONE_BY_ONE = (
    "from simbatch import Policy\n\n\nclass OneByOne(Policy):\n    def seats(self, engine):\n        return 1\n"
)
SAME = "\n\nclass Same(Policy):\n    pass\n"
POLICIES = ["--policy", "vllm", "--policy", "mine.py:OneByOne", "--policy", "mine.py:Same"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(ONE_BY_ONE + SAME)
    write("online", BASE)
    return tmp_path


def write(name: str, scenario: dict[str, Any], **workload: Any) -> None:
    Path(f"{name}.yaml").write_text(yaml.safe_dump({**scenario, "workload": {**scenario["workload"], **workload}}))


def run(*arguments: str) -> int:
    return exit_code("rank", *arguments)


def ranked(*arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--jobs", "1", "--quiet", "--replications", "3") == 0
    content: dict[str, Any] = json.loads(Path("results/rank/ranking.json").read_text())
    return content


def names(scenario: dict[str, Any]) -> list[str]:
    return [row["policy"] for row in scenario["policies"]]


@pytest.mark.usefixtures("folder")
def test_the_best_the_equal_and_the_worse_with_intervals_that_hold_together() -> None:
    content = ranked("online.yaml", *POLICIES)
    [scenario] = content["scenarios"]
    assert (scenario["judge"], scenario["seeds"]) == ("simbatch.slo_share.all", [3, 4, 5])
    assert names(scenario) == ["vllm", "mine.py:Same", "mine.py:OneByOne"]
    first, same, alone = scenario["policies"]
    assert [row["rank"] for row in scenario["policies"]] == [1.5, 1.5, 3]
    assert [row["verdict"] for row in scenario["policies"]] == ["best", "equal", "worse"]
    expected = stats.ttest_rel(alone["runs"], first["runs"]).confidence_interval(1 - 0.05 / 2)
    difference = alone["difference"]
    assert (difference["low"], difference["high"]) == pytest.approx(
        (max(expected.low, -1), expected.high)
    )  # of two shares
    assert same["difference"]["high"] == 0
    assert content["overall"] == [
        {"policy": "mine.py:Same", "scenarios": 1, "best": 1, "mean_rank": 1.5},
        {"policy": "vllm", "scenarios": 1, "best": 1, "mean_rank": 1.5},
        {"policy": "mine.py:OneByOne", "scenarios": 1, "best": 0, "mean_rank": 3.0},
    ]


@pytest.mark.usefixtures("folder")
def test_without_an_slo_the_judgement_is_stated() -> None:
    plain = {key: value for key, value in BASE.items() if key != "slo"}
    write("plain", plain)
    at_once = {key: value for key, value in plain["workload"].items() if key != "request_rate"}
    write("offline", {**plain, "workload": at_once}, arrival={"process": "all_at_once"})
    content = ranked("plain.yaml", "offline.yaml", *POLICIES)
    judges = {scenario["scenario"]: scenario["judge"] for scenario in content["scenarios"]}
    assert judges == {"plain": "simbatch.mean_normalised_latency_ms", "offline": "output_throughput"}
    assert all(names(scenario)[-1] == "mine.py:OneByOne" for scenario in content["scenarios"])
    page = Path("results/rank/ranking.md").read_text()
    assert "Judged by the mean latency per output token (no SLO); seeds 3 to 5." in page
    assert "Judged by output tokens per second (no SLO, everything arrives at once); seeds 3 to 5." in page


@pytest.mark.usefixtures("folder")
def test_who_chooses_its_requests_does_not_win_without_an_slo() -> None:
    Path("mine.py").write_text(
        "from simbatch import Policy\n\n\nclass Choosy(Policy):\n    def reject(self, request, engine):\n"
        "        return 'the answer is long' if engine.num_running else None\n" + SAME
    )
    write("plain", {key: value for key, value in BASE.items() if key != "slo"})
    policies = ["--policy", "vllm", "--policy", "mine.py:Choosy", "--policy", "mine.py:Same"]
    plain, online = ranked("plain.yaml", "online.yaml", *policies)["scenarios"]
    assert names(plain) == ["vllm", "mine.py:Same"]
    assert "and without an SLO nothing says that it may" in plain["left_out"]["mine.py:Choosy"]
    assert names(online)[-1] == "mine.py:Choosy"
    assert "`mine.py:Choosy` (rejected" in Path("results/rank/ranking.md").read_text()


@pytest.mark.usefixtures("folder")
def test_all_policies_by_name_take_part_where_they_can(capsys: pytest.CaptureFixture[str]) -> None:
    write("batches", {**BASE, "engine": {"batching": "static"}, "policy": {"name": "fixed", "batch_size": 4}})
    write("traced", {**BASE, "workload": {}}, trace={"path": "nowhere.csv"})
    assert run("online.yaml", "batches.yaml", "traced.yaml", "--jobs", "1", "--replications", "2") == 0
    content = json.loads(Path("results/rank/ranking.json").read_text())
    online, batches = content["scenarios"]
    assert {*names(online), *online["left_out"]} == {*NAMED.names()}
    assert {"vllm", "fixed", "adaptive", "priority"} <= {*names(online)}
    assert batches["left_out"]["vllm"] == "policy vllm does not support static batching, only continuous"
    assert content["left_out"] == {"traced": "there is no file nowhere.csv"}
    said = capsys.readouterr()
    assert "left out: traced (there is no file nowhere.csv)" in said.err
    assert "Left out: traced (there is no file nowhere.csv)." in said.out
    page = Path("results/rank/ranking.md").read_text()
    assert "`fixed`†" in page  # with the scenario's own parameters
    assert "`adaptive`†" not in page
    shown = [line.split()[0] for line in said.out.splitlines()[1 : 1 + len(content["overall"])]]
    assert shown == [row["policy"] for row in content["overall"]]
    scenarios = [row["scenarios"] for row in content["overall"]]
    assert scenarios == sorted(scenarios, reverse=True)


@pytest.mark.usefixtures("folder")
def test_a_trace_is_run_once_and_values_decide() -> None:
    rows = "".join(f"{i / 12},20,{10 + i % 30}\n" for i in range(100))
    Path("t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    write("traced", {**BASE, "workload": {}}, trace={"path": "t.csv", "format": "csv"})
    assert run("traced.yaml", *POLICIES, "--jobs", "1", "--quiet") == 0
    [scenario] = json.loads(Path("results/rank/ranking.json").read_text())["scenarios"]
    assert scenario["seeds"] == [3]
    assert [row["verdict"] for row in scenario["policies"]] == ["best", "equal", "worse"]
    assert "the seed changes nothing here, so one run says it all." in Path("results/rank/ranking.md").read_text()
    [scenario] = ranked("traced.yaml", *POLICIES)["scenarios"]  # with --replications 3
    assert scenario["seeds"] == [3, 4, 5]
    assert len({*scenario["policies"][0]["others"]["p99_tpot_ms"]}) == 3
    page = Path("results/rank/ranking.md").read_text()
    assert "3 resamplings of the trace in 20 blocks of time, seeds 3 to 5" in page


@pytest.mark.usefixtures("folder")
def test_it_goes_on_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    first = ranked("online.yaml", *POLICIES)
    assert run("online.yaml", *POLICIES, "--jobs", "1", "--replications", "4", "--resume") == 0
    assert "9 of 12 cells are there already" in capsys.readouterr().err
    again = json.loads(Path("results/rank/ranking.json").read_text())
    assert again["scenarios"][0]["policies"][2]["runs"][:3] == first["scenarios"][0]["policies"][2]["runs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: rank: needs at least one scenario; for example: simbatch rank steady bursty"),
        (["online.yaml", "--policy", "vllm"], "error: --policy: one policy has nobody to be ranked with (got 'vllm')"),
        (["online.yaml", "--policy", "vllm", "--policy", "vllm"], "error: --policy: is named twice (got 'vllm')"),
        (["online.yaml", "--policy", "vllm", "--policy", "fixt"], "no such policy (got 'fixt'); did you mean fixed?"),
        (["online.yaml", "online.yaml"], "error: rank: two scenarios have the same name (got 'online')"),
        (["traced.yaml"], "no scenario is left to rank policies in (traced: there is no file nowhere.csv)"),
        (["online.yaml", "--jobs", "0"], "error: --jobs: must not be 0"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("traced", {**BASE, "workload": {}}, trace={"path": "nowhere.csv"})
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not Path("results").exists()


def test_equals_share_the_mean_of_their_places() -> None:
    assert ranks_of([1.0, 2.0, 2.0, 5.0]) == [1, 2.5, 2.5, 4]
    assert ranks_of([7.0]) == [1]


@pytest.mark.usefixtures("folder")
def test_who_cannot_be_measured_is_last() -> None:
    plan = plan_ranking([Scenario.load("online.yaml")], ["vllm", "fixed", "priority"], 2)

    def summary(share: float | None) -> dict[str, Any]:
        return {"simbatch": {"slo_share": {"all": share}}}

    runs = {
        "vllm": [summary(None)] * 2,
        "fixed": [summary(0.5), summary(0.6)],
        "priority": [summary(0.7), summary(0.9)],
    }
    cells = plan.entries[0].cells
    found = {cell.key: run for policy in cells for cell, run in zip(cells[policy], runs[policy], strict=True)}
    judged = Judged.of(plan.entries[0], found)
    assert [(standing.policy, standing.rank) for standing in judged.standings] == [
        ("priority", 1),
        ("fixed", 2),
        ("vllm", 3),
    ]
    assert judged.is_told_apart(judged.standings[2])
    assert [row.policy for row in overall([judged])] == ["priority", "fixed", "vllm"]
