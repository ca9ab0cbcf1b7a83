"""Files as people have them (../shared/cases/public): each answered as its README asks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simbatch.cli import main
from tests.bench_files import shared


def run(capsys: Any, *arguments: object) -> SimpleNamespace:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return SimpleNamespace(code=ended.value.code, **capsys.readouterr()._asdict())


def validated(case: Path, capsys: Any, out: Path, *flags: str) -> tuple[SimpleNamespace, dict[str, Any]]:
    command = ("validate", case / "scenario.yaml", "--recorded", case / "result.json", "-o", out, "--json", *flags)
    done = run(capsys, *command)
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
    text = run(capsys, "trace", "describe", case / "result.json").out
    assert "does not say when requests were sent" in text
    assert "prompt          250" in text


def test_09_infinity_in_a_key_that_nobody_reads(capsys: Any) -> None:
    done = run(capsys, "trace", "describe", shared("cases/public/09-*") / "result.jsonl")
    assert done.code == 0
    assert "Requests:                       4" in done.out


def test_10_a_guidellm_report_is_read(tmp_path: Path, capsys: Any) -> None:
    file = shared("cases/public/10-*") / "guidellm.json"
    done = run(capsys, "trace", "describe", file)
    assert done.code == 0
    assert "Format:                         guidellm" in done.out
    llmperf = {f"results_ttft_s_{i}": 0.1 for i in range(300)} | {"mean_input_tokens": 5}
    (tmp_path / "llmperf.json").write_text(json.dumps(llmperf, indent=1))
    refused = run(capsys, "trace", "describe", tmp_path / "llmperf.json")
    assert refused.code == 2
    assert refused.err.count("error:") == 1
    assert len(refused.err) < 500 + len(str(tmp_path))
    assert "Rename it" not in refused.err


def test_16_a_host_that_is_assumed_is_said(tmp_path: Path, capsys: Any) -> None:
    done = run(capsys, "run", shared("cases/public/16-*") / "scenario.yaml", "-o", tmp_path, "--json")
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
    done = run(capsys, "trace", "describe", file, "--json", *flags)
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
        done = run(capsys, "run", tmp_path / "s.yaml", "-o", tmp_path / "out", "--json")
        assert json.loads(done.out)["duration"] > 2.3, case


def test_08_lengths_alone_run(tmp_path: Path, capsys: Any) -> None:
    done = run(capsys, "run", shared("cases/public/08-*") / "scenario.yaml", "-o", tmp_path, "--json")
    assert "num_decode_tokens" in " ".join(json.loads(done.out)["simbatch"]["warnings"])
