"""`simbatch validate --recorded`: what is read, what is refused, and that a simulation has no error against itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.cli import main
from simbatch.cli._errors import BROKEN_PIPE

ROOT = Path(__file__).parents[1]
RUN = ROOT.parent / "shared" / "gpu" / "llmservingsim" / "rtx4090-llama-3.1-8b" / "run" / "requests.jsonl"
SCENARIO = {
    "profile": {"num_gpu_blocks": 600, "client_overhead_s": 0.005, "step_time": {"base_s": 0.01}},
    "engine": {"max_num_seqs": 8},
    "workload": {"trace": {"path": "trace.jsonl"}},
}
BENCH = ("start_times", "ttfts", "itls", "latencies", "input_lens", "output_lens", "errors")


def test_the_rtx_4090_run_by_one_command(tmp_path, capsys):
    if not RUN.is_file():
        pytest.skip("../shared (the recorded run and its trace) is not here")
    bounds = "mean=4,mean_ttft=6,p99=8,throughput=4"
    scenario = ROOT / "tests" / "validate" / "rtx4090.yaml"
    content, output = validated(tmp_path, capsys, RUN, "--bounds", bounds, scenario=scenario)
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


def test_a_closed_loop_says_that_its_throughput_says_nothing(tmp_path, capsys):
    file = recorded(tmp_path, lambda bench: bench.update(max_concurrency=4))
    content, output = validated(tmp_path, capsys, file)
    assert output.code == 0, output.err
    said = "max_concurrency 4, a closed loop: how fast the server was decided when requests were sent"
    assert [said in note for note in content["notes"]].count(True) == 1
    assert "throughput and duration of this run say nothing" in " ".join(content["notes"])
    assert "closed loop" not in " ".join(validated(tmp_path, capsys, recorded(tmp_path))[0]["notes"])


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
    done = run(capsys, arguments(tmp_path, file))
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
    refused = run(capsys, arguments(tmp_path, file, "--requests", "scenario"))
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
        (lambda bench: bench.update(output_lens=[0] * 30), (), "all of its requests failed"),
        (None, ("--repeat", "3"), "--repeat: goes with --engine or --server"),
        (None, ("--engine", "x"), "either a model with --engine, a server with --server, or a file with --recorded"),
        (None, ("--bounds", "mean"), "write for example --bounds"),
        (None, ("--bounds", "mean=-1"), "must be a number of percent above 0"),
        (None, ("--bounds", "p42=5"), "must name mean, median, p90, p99"),
        (None, ("--bounds", "p90=5,p90=6"), "given twice"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, capsys, change, flags, said):
    done = run(capsys, arguments(tmp_path, recorded(tmp_path, change), *flags))
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "recorded:1:1: not JSON"),
        ("[1]", "is neither a result of `vllm bench serve` nor"),
        (None, "cannot be read"),
        ('{"request_id": "a", "queued_ts": 1}', "recorded:1 input_toks: required key is missing"),
        (
            '{"request_id": "a", "input_toks": 1, "output_toks": 1, "arrival_time": 0, "queued_ts": 2, '
            '"scheduled_ts": 1, "first_token_ts": 3, "last_token_ts": 4}',
            "recorded:1: its times must not fall",
        ),
    ],
)
def test_a_file_that_is_no_recorded_run(tmp_path, capsys, text, said):
    file = tmp_path / "recorded"
    if text is not None:
        file.write_text(text)
    done = run(capsys, arguments(tmp_path, file, scenario=write(tmp_path, trace=True)))
    assert done.code == 2
    assert said in done.err


def recorded(tmp_path, change=None):
    """The scenario's own simulation, as `vllm bench serve --save-detailed` would write it down."""
    result = simulate(Scenario.load(write(tmp_path, trace=True)), steps=True)
    requests = result.requests
    ends = [[] for _ in range(len(requests))]
    for step in result.record.steps:
        for index, tokens, before in step.scheduled:
            if before + tokens >= requests["num_prompt_tokens"][index]:
                ends[index].append(step.end_ps / 1e12)
    bench = {
        "start_times": (requests["arrival_s"] + 17).tolist(),
        "ttfts": requests["ttft_s"].tolist(),
        "itls": [np.diff(times).tolist() for times in ends],
        "latencies": requests["e2el_s"].tolist(),
        "input_lens": requests["num_prompt_tokens"].tolist(),
        "output_lens": requests["num_output_tokens"].tolist(),
        "errors": [""] * len(requests),
    }
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


def arguments(tmp_path, file, *flags, scenario=None):
    return [
        "validate",
        str(scenario or tmp_path / "x.yaml"),
        "--recorded",
        str(file),
        "-o",
        str(tmp_path / "out"),
        *flags,
    ]


def run(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return SimpleNamespace(code=ended.value.code, **capsys.readouterr()._asdict())


def validated(tmp_path, capsys, file, *flags, scenario=None):
    done = run(capsys, arguments(tmp_path, file, *flags, "--json", scenario=scenario))
    return json.loads(done.out) if done.out else None, done


def by_key(content, clock="client"):
    return {figure["key"]: figure for figure in content["figures"] if figure["clock"] == clock}
