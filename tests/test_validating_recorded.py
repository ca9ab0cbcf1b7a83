"""`simbatch validate --recorded`: what is read, what is refused, and that a simulation has no error against itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Result, Scenario, simulate
from simbatch.cli import BROKEN_PIPE
from tests import bench_files as files
from tests import run_command
from tests.bench_files import arguments, by_key, validated

ROOT = Path(__file__).parents[1]
RUN = "gpu/llmservingsim/rtx4090-llama-3.1-8b/run"
TRACE = "traces/sharegpt-llama-3.1-8b-300-sps10.timed_trace.jsonl"
SCENARIO = {
    "profile": {"num_gpu_blocks": 600, "client_overhead_s": 0.005, "step_time": {"base_s": 0.01}},
    "engine": {"max_num_seqs": 8},
    "workload": {"trace": {"path": "trace.jsonl"}},
}
BENCH = ("start_times", "ttfts", "itls", "latencies", "input_lens", "output_lens", "errors")


def test_the_rtx_4090_run_by_one_command(tmp_path, capsys):
    recording = files.shared(RUN) / "requests.jsonl"
    bounds = "mean=4,mean_ttft=6,p99=8,throughput=4"
    scenario = ROOT / "tests" / "validate" / "rtx4090.yaml"
    content, output = validated(tmp_path, capsys, recording, "--bounds", bounds, scenario=scenario)
    assert output.code == 0, output.err
    assert content["is_within_bounds"] is True
    figures = by_key(content, "engine")
    assert figures["mean_e2el_ms"]["median"] == pytest.approx(86_578, abs=1)  # as LLMServingSim's authors give it
    assert figures["mean_ttft_ms"]["median"] == pytest.approx(65_456, abs=1)
    assert by_key(content)["mean_ttft_ms"]["median"] > figures["mean_ttft_ms"]["median"]  # the send comes first
    assert by_key(content)["mean_tpot_ms"]["median"] == pytest.approx(32.4, abs=0.05)
    assert any("took requests in 30 ms after their send" in note for note in content["notes"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "validation.json",
        "latency.png",
        "timeline.png",
        "run.json",
    }


def test_a_simulation_recorded_as_vllm_bench_has_no_error(tmp_path, capsys):
    content, output = validated(tmp_path, capsys, recorded(tmp_path))
    assert output.code == 0, output.err
    figures = by_key(content)
    assert {"mean_itl_ms", "p99_itl_ms", "simbatch.mean_concurrent_requests"} <= figures.keys()
    assert not {"simbatch.queue.mean_waiting", "simbatch.batch_size.mean"} & figures.keys()  # nobody wrote them down
    for key, figure in figures.items():
        assert figure["error"] == pytest.approx(0, abs=1e-6), key
    assert not by_key(content, "engine")
    assert any("client's clock alone" in note for note in content["notes"])


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    """As `simbatch validate ... | head`: the table is rich's, which ends the program itself when nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "simbatch", *map(str, arguments(tmp_path, recorded(tmp_path)))]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")
    assert (tmp_path / "out" / "validation.json").is_file()


def test_the_policy_of_the_command_line_is_simulated(tmp_path, capsys):
    content, output = validated(tmp_path, capsys, recorded(tmp_path), "--policy", "static")
    assert output.code == 0, output.err
    assert by_key(content)["mean_ttft_ms"]["error"] > 0.1  # the recorded run was under vllm


def test_the_table_says_both_sides_and_the_error(tmp_path, capsys):
    file = recorded(tmp_path, lambda bench: bench.update(ttfts=[1.25 * ttft for ttft in bench["ttfts"]]))
    done = run_command(capsys, *arguments(tmp_path, file))
    row = re.search(r"Mean TTFT \(ms\) +([\d.]+) +([\d.]+) +(\S+)", done.out)
    assert row[3] == "-20.0%"
    assert float(row[2]) == pytest.approx(0.8 * float(row[1]), rel=0.01)


def test_figures_outside_their_bounds_end_with_1(tmp_path, capsys):
    file = recorded(tmp_path, lambda bench: bench.update(ttfts=[1.25 * ttft for ttft in bench["ttfts"]]))
    content, output = validated(tmp_path, capsys, file, "--bounds", "mean=10")
    assert output.code == 1
    assert [f["key"] for f in content["figures"] if f["is_within"] is False] == ["mean_ttft_ms"]
    assert content["is_within_bounds"] is False
    assert validated(tmp_path, capsys, file, "--bounds", "mean=10,mean_ttft=21")[1].code == 0


def test_a_synthetic_workload_gives_way_to_the_recorded_one(tmp_path, capsys):
    file = recorded(tmp_path)
    lengths = {"distribution": "fixed", "mean": 9}
    workload = {"num_prompts": 3, "request_rate": 1, "prompt_len": lengths, "output_len": lengths}
    content, output = validated(tmp_path, capsys, file, scenario=write(tmp_path, workload=workload))
    assert output.code == 0, output.err
    assert content["num_requests"] == 30
    assert by_key(content)["mean_e2el_ms"]["error"] == pytest.approx(0, abs=1e-6)
    assert any("arrivals and lengths are the recorded run's own" in note for note in content["notes"])
    refused = run_command(capsys, *arguments(tmp_path, file, "--requests", "scenario"))
    assert refused.code == 2
    assert "it has 30 of them, the scenario 3" in refused.err


def test_recorded_requests_take_the_scenario_s_prefixes_when_they_are_the_same(tmp_path, capsys):
    content, output = validated(tmp_path, capsys, recorded(tmp_path), "--requests", "recorded")
    assert output.code == 0, output.err
    assert any("shared prefixes are the scenario's" in note for note in content["notes"])


def test_failed_requests_are_left_out_on_both_sides_and_counted(tmp_path, capsys):
    def fail(bench):
        bench["output_lens"][4], bench["errors"][4] = 0, "Connection reset"

    content, output = validated(tmp_path, capsys, recorded(tmp_path, fail))
    assert output.code == 0, output.err
    assert content["num_requests"] == 29
    assert any("1 of 30 requests failed" in note and "Connection reset" in note for note in content["notes"])


def other_lengths(bench):
    bench["output_lens"][7] += 1


def totals_only(bench):
    for key in BENCH:
        del bench[key]
    bench["request_throughput"] = 1.0


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (other_lengths, (), "request 7 (in order of sending) has"),
        (lambda bench: bench["start_times"].pop(), (), "must be of one length"),
        (lambda bench: bench.update(ttfts=["soon"] * 30), (), "ttfts[0]: must be a number"),
        (totals_only, (), "--save-detailed"),
        (lambda bench: bench["latencies"].__setitem__(4, 0.0), (), "ends before it begins"),
        (lambda bench: bench["latencies"].__setitem__(4, 9.2e6), (), "or after more than 106 days"),
        (lambda bench: bench.update(output_lens=[0] * 30), (), "all of its requests failed"),
        (None, ("--requests", "nobody"), "is not one of"),
        (None, ("--repeat", "3"), "--repeat: goes with --engine or --server"),
        (None, ("--engine", "x"), "either a model with --engine, a server with --server, or a file with --recorded"),
        (None, ("--bounds", "mean"), "write for example --bounds"),
        (None, ("--bounds", "mean=-1"), "must be a number of percent above 0"),
        (None, ("--bounds", "p42=5"), "must name mean, median, p90, p99"),
        (None, ("--bounds", "p90=5,p90=6"), "given twice"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, capsys, change, flags, said):
    done = run_command(capsys, *arguments(tmp_path, recorded(tmp_path, change), *flags))
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "recorded:1:1: not valid JSON"),
        ("[1]", "is no benchmark's result that is known"),
        (None, "cannot be read"),
        ('{"request_id": "a", "queued_ts": 1}', "recorded input_toks: required key is missing"),
        (
            '{"request_id": "a", "input_toks": 1, "output_toks": 1, "arrival_time": 0, "queued_ts": 2, '
            '"scheduled_ts": 1, "first_token_ts": 3, "last_token_ts": 4}',
            "recorded: its times must not fall",
        ),
    ],
)
def test_a_file_that_is_no_recorded_run(tmp_path, capsys, text, said):
    file = tmp_path / "recorded"
    if text is not None:
        file.write_text(text)
    done = run_command(capsys, *arguments(tmp_path, file, scenario=write(tmp_path, trace=True)))
    assert done.code == 2
    assert said in done.err


def recorded(tmp_path, change=None):
    """The scenario's own simulation, as `vllm bench serve --save-detailed` would write it down."""
    result = simulate(Scenario.load(write(tmp_path, trace=True)), steps=True)
    requests = result.requests
    felt = {"ttfts": requests["ttft_s"].tolist(), "latencies": requests["e2el_s"].tolist()}
    bench = {key: value for key, value in files.vllm(result, **felt).items() if key in BENCH}
    if change is not None:
        change(bench)
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(bench))
    return file


def write(tmp_path, *, trace=False, workload=None):
    """A scenario's file, and its trace."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 5, 30)).tolist()
    columns = zip(times, rng.integers(5, 200, 30).tolist(), rng.integers(2, 40, 30).tolist(), strict=True)
    rows = [{"arrival_s": t, "num_prompt_tokens": p, "num_output_tokens": n} for t, p, n in columns]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert trace or workload
    path = tmp_path / "x.yaml"
    path.write_text(json.dumps(SCENARIO if trace else {**SCENARIO, "workload": workload}))
    return path


@pytest.fixture(scope="module")
def simulated() -> Result:
    meta = json.loads((files.shared(RUN) / "meta.json").read_text())
    settings = {key: meta["engine_kwargs"][key] for key in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
    settings |= {"block_size": meta["kv_cache"]["block_size"]}
    settings |= {"enable_prefix_caching": meta["kv_cache"]["enable_prefix_caching"]}
    settings |= {"async_scheduling": meta["resolved_config"]["scheduler_config"]["async_scheduling"]}
    settings |= {"num_gpu_blocks_override": meta["kv_cache"]["num_gpu_blocks"]}
    return simulate(
        Scenario.from_dict(
            {
                "profile": "rtx4090-llama-3.1-8b-bf16",
                "engine": settings,
                "workload": {"trace": {"path": str(files.shared(TRACE)), "format": "timed_trace"}},
            }
        )
    )


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The run's metrics, as `vllm bench serve` defines them; a request is sent when the engine takes it in."""
    rows = [json.loads(line) for line in (files.shared(RUN) / "requests.jsonl").read_text().splitlines()]
    sent, first, last = (
        np.array([row[key] for row in rows]) for key in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    num_output = np.array([row["output_toks"] for row in rows])
    return {
        "ttft_s": first - sent,
        "tpot_s": (last - first) / (num_output - 1),
        "e2el_s": last - sent,
        "output_throughput": num_output.sum() / (last.max() - sent.min()),
    }


def test_the_workload_is_the_recorded_one(simulated: Result) -> None:
    rows = [json.loads(line) for line in (files.shared(RUN) / "requests.jsonl").read_text().splitlines()]
    assert simulated.requests["num_prompt_tokens"].tolist() == [row["input_toks"] for row in rows]
    assert simulated.requests["num_output_tokens"].tolist() == [row["output_toks"] for row in rows]


@pytest.mark.parametrize("name", ["ttft_s", "tpot_s", "e2el_s"])
@pytest.mark.parametrize("statistic", [np.mean, lambda x: np.percentile(x, 99)], ids=["mean", "p99"])
def test_latencies_are_within_4_percent(simulated: Result, real: dict[str, Any], name: str, statistic: Any) -> None:
    assert statistic(simulated.requests[name]) == pytest.approx(statistic(real[name]), rel=0.04)


def test_throughput_is_within_4_percent(simulated: Result, real: dict[str, Any]) -> None:
    first_s = simulated.requests["arrival_s"].min()  # the real run's clock starts with its first request
    tokens = simulated.summary["total_output_tokens"]
    assert tokens / (simulated.summary["duration"] - first_s) == pytest.approx(real["output_throughput"], rel=0.04)
