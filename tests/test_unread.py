"""What of a trace was not simulated is said by every command that reads one, in the same sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simbatch import simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
from tests.test_cli import run

SCENARIO = """\
profile: h100-llama-3.1-8b-bf16
workload: {trace: {path: log.csv}}
slo: {ttft_ms: 1000}
"""
FLAGS = ("--columns", "arrival=when:ms", "--between", "0,4500", "--on-empty", "skip")
LEFT_OUT = "log.csv: 3 of its 21 rows were left out (between: [0, 4500])"
SAID = (
    "log.csv: columns by their usual names: prompt is prompt_tokens, output is completion_tokens (others: --columns, "
    "columns:)",
    "log.csv: only text is simulated: num_images would add to the prompts",
    LEFT_OUT,
    "log.csv: columns not used: num_images, total_tokens",
    "log.csv: 1 rows without output tokens were left out (on_empty: skip)",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "s.yaml", *FLAGS),
    "compare": ("compare", "s.yaml", "--policy", "vllm", "--policy", "fixed", *FLAGS),
    "compare, seeds": ("compare", "s.yaml", "--policy", "vllm", "--policy", "fixed", "--replications", "2", *FLAGS),
    "compare, rates": ("compare", "s.yaml", "--rate", "1,2", *FLAGS),
    "sweep": ("sweep", "s.yaml", "--over", "engine.max_num_seqs=4,8", *FLAGS),
    "tune": ("tune", "s.yaml", "--trials", "2", "--confirm", "0", *FLAGS),
    "capacity": ("tune", "s.yaml", "--capacity", "--replications", "2", *FLAGS),
    "rank": ("rank", "s.yaml", "--policy", "vllm", "--policy", "fixed", *FLAGS),
    "plan": ("plan", "s.yaml", "--gpus", "h100", "--tp", "1", "--no-bands", *FLAGS),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{250 * i},{100 + i},{0 if i == 3 else 5},2,{105 + i}\n" for i in range(21))
    lines = f"when,prompt_tokens,completion_tokens,num_images,total_tokens\n{rows}"
    Path("log.csv").write_text(lines)
    Path("s.yaml").write_text(SCENARIO)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_same_sentences_everywhere(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    jobs = () if command[0] == "run" else ("--jobs", "1")
    assert run(*command, *jobs, "-o", "out") == 0
    shown = one_line(capsys.readouterr().out)
    for sentence in SAID:
        assert shown.count(f"WARNING: {sentence}") == 1
    if command[0] == "run":
        ours: dict[str, Any] = json.loads(Path("out/summary.json").read_text())["simbatch"]
        assert ours["unread"] == [*SAID]
        assert set(SAID) <= set(ours["warnings"])


def test_init_writes_how_the_trace_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vllm serve meta-llama/Llama-3.1-8B-Instruct"
    assert run("init", line, "--gpu", "h100", "--trace", "log.csv", *FLAGS, "-o", "made.yaml") == 0
    capsys.readouterr()
    assert run("run", "made.yaml", "-o", "out") == 0
    assert f"WARNING: {LEFT_OUT}" in one_line(capsys.readouterr().out)


def test_recommend_takes_the_lengths_of_a_trace() -> None:
    profile = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    assert isinstance(profile, MeasuredProfile)
    columns = {"arrival": {"name": "when", "unit": "ms"}}
    traced = {"path": str(Path("log.csv").absolute()), "columns": columns, "between": [0, 4500], "on_empty": "skip"}
    scenario = scenario_of(USE_CASES["interactive"], profile, profile.name, {"ttft_ms": 1000}, 0, traced=traced)
    assert scenario.engine.max_model_len == 117 + 5  # the longest of each, of the rows that are read
    result = simulate(scenario.override({"workload.num_prompts": 50}))
    assert {100, 110, 117} < set(result.requests["num_prompt_tokens"])
    assert result.summary["simbatch"]["unread"] == [*SAID]


@pytest.mark.parametrize("command", ["init", "recommend"])
def test_how_a_trace_is_read_needs_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("vllm serve meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h100", "-o", "made.yaml")
    words = line if command == "init" else ("--use-case", "batch", "--profile", "h100-llama-3.1-8b-bf16")
    assert run(command, *words, "--between", "0,1") == 2
    assert "--between: there is no trace to read; add --trace FILE" in capsys.readouterr().err
