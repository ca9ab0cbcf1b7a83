"""`simbatch validate --recorded` with several runs: files, folders, runs in one file; the worst run and why."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from simbatch.cli import main
from tests import bench_files as files

USERS = (1, 4, 16)
RESULTS = {users: files.ran(files.closed_loop(users, num_prompts=60, prompt=400)) for users in USERS}


def run(capsys: Any, *arguments: object) -> SimpleNamespace:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return SimpleNamespace(code=ended.value.code, **capsys.readouterr()._asdict())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's results, of which the one with 16 users was half as fast again; and what lies beside them."""
    for users, result in RESULTS.items():
        bench = files.vllm(result, max_concurrency=users)
        if users == 16:
            bench["itls"] = [(1.5 * np.array(gaps)).tolist() for gaps in bench["itls"]]
            bench["start_times"] = None
            bench["duration"] = None
        bench = {key: value for key, value in bench.items() if value is not None}
        files.save(tmp_path / "results" / f"server_in400_c{users}.json", bench)
    files.save(tmp_path / "results" / "settings.json", {"port": 8000})
    (tmp_path / "results" / "log.txt").write_text("not looked at")
    scenario = files.scenario(files.OPEN)
    files.save(tmp_path / "x.yaml", scenario)
    return tmp_path


def validated(folder: Path, capsys: Any, *flags: object) -> tuple[dict[str, Any], SimpleNamespace]:
    done = run(capsys, "validate", folder / "x.yaml", "-o", folder / "out", "--json", *flags)
    return (json.loads(done.out) if done.out else {}), done


def test_a_folder_is_one_table_with_the_worst_run_and_why(folder: Path, capsys: Any) -> None:
    content, done = validated(folder, capsys, "--recorded", folder / "results")
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == ["server_in400_c1", "server_in400_c16", "server_in400_c4"]
    assert content["not_compared"][0]["name"] == "settings.json"
    assert "it has the keys port" in content["not_compared"][0]["reason"]
    errors = [abs(_error(each, "mean_e2el_ms")) for each in content["runs"]]
    assert content["median_abs_error"]["mean_e2el_ms"] == pytest.approx(np.median(errors))
    assert content["median_abs_error"]["mean_tpot_ms"] == pytest.approx(0, abs=1e-6)  # two of three are right
    worst = content["worst"]
    assert worst["name"] == "server_in400_c16"
    assert worst["errors"]["mean_e2el_ms"] == pytest.approx(_error(content["runs"][1], "mean_e2el_ms"))
    assert worst["off"] >= abs(worst["errors"]["mean_e2el_ms"])
    assert any("are the time between tokens" in reason for reason in worst["why"])
    assert any("the most requests in flight of all: 1" in reason for reason in worst["why"])
    assert {path.name for path in (folder / "out").iterdir()} == {"validation.json", "errors.png", "run.json"}
    assert (folder / "out" / "errors.png").read_bytes().startswith(b"\x89PNG")


def _error(each: dict[str, Any], key: str) -> float:
    return float(next(f["error"] for f in each["figures"] if f["key"] == key))


def test_the_table_names_each_run_once_and_its_end(folder: Path, capsys: Any) -> None:
    done = run(capsys, "validate", folder / "x.yaml", "--recorded", folder / "results", "-o", folder / "out")
    lines = done.out.splitlines()
    row = next(line for line in lines if "server_in400_c4" in line)
    assert "4 in flight" in row
    assert "60" in row
    assert row.split()[-1] == "+0.0%"
    assert any(line.strip().startswith("median |error|") for line in lines)
    assert any(line.startswith("worst: server_in400_c16 (TTFT ") for line in lines)
    assert any("not compared: settings.json" in line for line in lines)
    assert done.out.count("which prompts share a prefix is not known of them") == 1


def test_an_e2el_that_is_right_by_chance_does_not_hide_its_parts(folder: Path, capsys: Any) -> None:
    """As where a server runs fewer at once: what its requests wait longer, they decode faster."""
    bench = files.vllm(RESULTS[4], max_concurrency=4)
    decoding = [sum(gaps) for gaps in bench["itls"]]
    bench["ttfts"] = [ttft + 0.5 * took for ttft, took in zip(bench["ttfts"], decoding, strict=True)]
    bench["itls"] = [[0.5 * gap for gap in gaps] for gaps in bench["itls"]]
    files.save(folder / "results" / "server_in400_c5.json", bench)
    (folder / "results" / "server_in400_c16.json").unlink()
    worst = validated(folder, capsys, "--recorded", folder / "results")[0]["worst"]
    assert worst["name"] == "server_in400_c5"
    assert worst["errors"]["mean_e2el_ms"] == pytest.approx(0, abs=1e-6)
    assert worst["off"] == pytest.approx(0.5 * np.sum(decoding) / np.sum(RESULTS[4].requests["e2el_s"]), rel=1e-3)
    assert any("its E2EL is right by chance" in reason for reason in worst["why"])


def test_files_by_a_shell_s_pattern_and_runs_in_one_file(folder: Path, capsys: Any) -> None:
    paths = sorted((folder / "results").glob("server*.json"))
    content, done = validated(folder, capsys, "--recorded", *paths)
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == [path.stem for path in paths]
    report = {"benchmarks": [files.guidellm(RESULTS[n], {"type_": "concurrent", "streams": n}) for n in (1, 4)]}
    content, done = validated(folder, capsys, "--recorded", files.save(folder / "benchmarks.json", report))
    assert [each["name"] for each in content["runs"]] == ["run 1", "run 2"]
    assert content["median_abs_error"]["mean_ttft_ms"] == pytest.approx(0, abs=1e-6)


def test_bounds_hold_for_every_run(folder: Path, capsys: Any) -> None:
    flags = ("--recorded", folder / "results", "--bounds", "mean_e2el=10")
    content, done = validated(folder, capsys, *flags)
    assert (done.code, content["is_within_bounds"]) == (1, False)
    shown = run(capsys, "validate", folder / "x.yaml", "-o", folder / "out", *flags)
    assert "OUTSIDE the bounds: 1 of 3 runs: server_in400_c16 (mean_e2el_ms)" in shown.out
    assert validated(folder, capsys, "--recorded", folder / "results", "--bounds", "mean_e2el=60")[1].code == 0


def test_a_run_that_cannot_be_simulated_is_named_and_the_others_go_on(folder: Path, capsys: Any) -> None:
    odd = files.sglang(RESULTS[4], request_rate=3.0)
    files.save(folder / "results" / "odd.jsonl", odd)
    content, done = validated(folder, capsys, "--recorded", folder / "results")
    assert done.code == 0
    assert len(content["runs"]) == 3
    assert any(each["name"] == "odd" and "cannot be drawn again" in each["reason"] for each in content["not_compared"])
    files.save(folder / "odd" / "a.jsonl", [odd, odd], lines=True)
    done = run(capsys, "validate", folder / "x.yaml", "--recorded", folder / "odd")
    assert done.code == 2
    assert "cannot be drawn again" in done.err


def test_a_file_that_says_less_than_the_one_beside_it_is_passed_over(folder: Path, capsys: Any) -> None:
    reports = folder / "reports"
    files.save(reports / "summary_lifecycle_metrics.json", files.stage(RESULTS[4]))
    files.save(reports / "stage_0_lifecycle_metrics.json", files.stage(RESULTS[4], concurrency=4))
    lengths = {"prompt_len": files.lengths(400, 0.5), "output_len": files.lengths(40, 0.5)}
    files.save(folder / "x.yaml", files.scenario(files.OPEN | lengths))
    content, done = validated(folder, capsys, "--recorded", reports)
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == ["stage_0_lifecycle_metrics"]
    assert _error(content["runs"][0], "mean_e2el_ms") == pytest.approx(0, abs=1e-6)
    files.save(reports / "per_request_lifecycle_metrics.json", files.inference_perf(RESULTS[4]))
    content, done = validated(folder, capsys, "--recorded", reports)
    assert [each["name"] for each in content["runs"]] == ["per_request_lifecycle_metrics"]


def test_mistakes(folder: Path, capsys: Any) -> None:
    empty = folder / "empty"
    empty.mkdir()
    for arguments, said in (
        (("--recorded", empty), "no .json or .jsonl in it"),
        (("--recorded", folder / "results" / "settings.json"), "is no benchmark's result that is known"),
        (("--recorded", folder / "absent"), "there is no such file"),
        (("--engine", "x", folder / "results"), "is a folder, not a file"),
        (("--server", "http://127.0.0.1:1", folder / "results"), "unexpected extra arguments"),
    ):
        done = run(capsys, "validate", folder / "x.yaml", *arguments)
        assert done.code == 2
        assert said in done.err


def test_what_the_real_streams_say_stands_among_the_reasons(folder: Path, capsys: Any) -> None:
    """Two engines behind one port: no single simulation is such a server."""
    halves = [files.vllm(files.ran(files.closed_loop(users, num_prompts=60, output=80))) for users in (4, 10)]
    halves[1]["start_times"] = [time + 0.0041 for time in halves[1]["start_times"]]
    both = {key: value + halves[1][key] if isinstance(value, list) else value for key, value in halves[0].items()}
    files.save(folder / "results" / "server_in400_c14.json", both | {"max_concurrency": 14})
    content, _done = validated(folder, capsys, "--recorded", folder / "results")
    notes = next(each["notes"] for each in content["runs"] if each["name"] == "server_in400_c14")
    assert any(note.startswith("real: its steps cannot be told") and "several engines" in note for note in notes)
