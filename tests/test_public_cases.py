"""Files as people have them (../shared/cases/public): each answered as its README asks.

What of a trace was not simulated is said by every command that reads one, in the same sentences.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from simbatch import simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
from tests import Done, run_command
from tests.bench_files import shared
from tests.test_cli import run


def validated(case: Path, capsys: Any, out: Path, *flags: str) -> tuple[Done, dict[str, Any]]:
    command = ("validate", case / "scenario.yaml", "--recorded", case / "result.json", "-o", out, "--json", *flags)
    done = run_command(capsys, *command)
    return done, json.loads(done.out)


def test_07_a_result_without_start_times_takes_its_load_for_the_arrivals(tmp_path: Path, capsys: Any) -> None:
    case = shared("cases/public/07-*")
    done, content = validated(case, capsys, tmp_path)
    assert done.code == 0
    assert content["num_requests"] == 4
    notes = " ".join(content["notes"])
    assert "does not say when requests were sent: by its load (2 in flight)" in notes
    keys = {figure["key"] for figure in content["figures"]}
    assert {"mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"} <= keys
    assert "request_throughput" not in keys  # its duration of 4 s is not that of its latencies
    text = run_command(capsys, "trace", "describe", case / "result.json").out
    assert "does not say when requests were sent" in text
    assert re.search(r"^prompt +250 ", text, re.MULTILINE)


def test_09_infinity_in_a_key_that_nobody_reads(capsys: Any) -> None:
    done = run_command(capsys, "trace", "describe", shared("cases/public/09-*") / "result.jsonl")
    assert done.code == 0
    assert "Requests:                       4" in done.out


def test_10_a_guidellm_report_is_read(tmp_path: Path, capsys: Any) -> None:
    file = shared("cases/public/10-*") / "guidellm.json"
    done = run_command(capsys, "trace", "describe", file)
    assert done.code == 0
    assert "Format:                         guidellm" in done.out
    llmperf = {f"results_ttft_s_{i}": 0.1 for i in range(300)} | {"mean_input_tokens": 5}
    (tmp_path / "llmperf.json").write_text(json.dumps(llmperf, indent=1))
    refused = run_command(capsys, "trace", "describe", tmp_path / "llmperf.json")
    assert refused.code == 2
    assert refused.err.count("error:") == 1
    assert len(refused.err) < 500 + len(str(tmp_path))
    assert "Rename it" not in refused.err


def test_16_a_host_that_is_assumed_is_said(tmp_path: Path, capsys: Any) -> None:
    done = run_command(capsys, "run", shared("cases/public/16-*") / "scenario.yaml", "-o", tmp_path, "--json")
    warnings = " ".join(json.loads(done.out)["simbatch"]["warnings"])
    assert "Host and front end are assumed, not measured on this server" in warnings


def test_18_a_closed_loop_on_a_slower_profile_is_slower(tmp_path: Path, capsys: Any) -> None:
    done, content = validated(shared("cases/public/18-*"), capsys, tmp_path, "--bounds", "throughput=7")
    assert done.code == 1
    throughput = next(figure for figure in content["figures"] if figure["key"] == "request_throughput")
    assert (throughput["median"], throughput["simulated"]) == (
        pytest.approx(2.459, abs=0.001),
        pytest.approx(1.58, abs=0.01),
    )
    assert throughput["error"] == pytest.approx(-0.357, abs=0.005)


def described(capsys: Any, case: str, *flags: str) -> dict[str, Any]:
    file = next(path for path in shared(f"cases/public/{case}-*").iterdir() if path.suffix in (".csv", ".jsonl"))
    done = run_command(capsys, "trace", "describe", file, "--json", *flags)
    assert done.code == 0, done.err
    facts: dict[str, Any] = json.loads(done.out)
    return facts


def test_01_02_a_slice_and_a_late_clock_count_from_the_first_request(capsys: Any) -> None:
    assert described(capsys, "01")["duration_s"] == 6.109
    burst = described(capsys, "02")
    assert (burst["num_requests"], burst["duration_s"]) == (3, 82)


def test_05_13_usual_names_are_read_and_no_total_is_an_output(capsys: Any) -> None:
    usage = described(capsys, "05")
    assert usage["num_output_tokens"]["total"] == 12
    assert "total_tokens" in usage["ignored_columns"]
    assert described(capsys, "13")["num_output_tokens"]["total"] == 161 + 41 + 94


def test_14_rows_not_in_order_are_sorted_when_asked_for(capsys: Any) -> None:
    assert described(capsys, "14", "--sort")["duration_s"] == 70


def test_03_04_turns_wait_for_the_ones_before_them(tmp_path: Path, capsys: Any) -> None:
    for case in ("03", "04"):
        found = described(capsys, case)["sessions"]
        assert (found["num_sessions"], found["delay_s"]["max"]) == (2, 2)
        trace = next(shared(f"cases/public/{case}-*").glob("*.jsonl"))
        (tmp_path / "s.yaml").write_text(f"{{profile: h100-llama-3.1-8b-bf16, workload: {{trace: {{path: {trace}}}}}}}")
        done = run_command(capsys, "run", tmp_path / "s.yaml", "-o", tmp_path / "out", "--json")
        assert json.loads(done.out)["duration"] > 2.3, case


def test_08_lengths_alone_run(tmp_path: Path, capsys: Any) -> None:
    done = run_command(capsys, "run", shared("cases/public/08-*") / "scenario.yaml", "-o", tmp_path, "--json")
    assert "num_decode_tokens" in " ".join(json.loads(done.out)["simbatch"]["warnings"])


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
    "log.csv: 1 row without output tokens was left out (on_empty: skip)",
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
        assert shown.count(f"NOTE: {sentence}") == 1
    if command[0] == "run":
        ours: dict[str, Any] = json.loads(Path("out/summary.json").read_text())["simbatch"]
        assert ours["unread"] == [*SAID]
        assert set(SAID) <= set(ours["warnings"])


def test_init_writes_how_the_trace_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vllm serve meta-llama/Llama-3.1-8B-Instruct"
    assert run("init", line, "--gpu", "h100", "--trace", "log.csv", *FLAGS, "-o", "made.yaml") == 0
    capsys.readouterr()
    assert run("run", "made.yaml", "-o", "out") == 0
    assert f"NOTE: {LEFT_OUT}" in one_line(capsys.readouterr().out)


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
