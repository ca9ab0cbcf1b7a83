"""Candidates that never differed are named; one candidate over loads is a load curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from simbatch import Scenario, simulate
from simbatch.cli import main

ROOT = Path(__file__).parents[1]
SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 60, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "engine": {"max_model_len": 900},
    "workload": {
        "num_prompts": 80,
        "request_rate": 12,
        "prompt_len": {"distribution": "fixed", "mean": 20},
        "output_len": {"distribution": "lognormal", "mean": 20, "cv": 0.5, "max": 100},
    },
    "seed": 3,
}
THREE = ("--policy", "vllm", "--policy", "static", "--policy", "priority", "--policy", "memory_aware")
SAME = "NOTE: priority is the same as vllm in every run here: every request fared alike."


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SCENARIO))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "small.yaml", "--jobs", "1", *arguments])
    assert not ended.value.code
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
    assert "0 comparisons" in alone


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
