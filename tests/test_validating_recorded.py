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
from simbatch.cli import BROKEN_PIPE, main
from tests import bench_files as files

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


def test_a_closed_loop_is_simulated_as_one(tmp_path, capsys):
    """So that a server half as fast has half the throughput, and not the recorded one at the recorded times."""
    bench = files.vllm(files.ran(files.closed_loop(4)), max_concurrency=4)
    file = files.save(tmp_path / "bench.json", bench)
    scenario = write_inline(tmp_path)
    content, output = validated(tmp_path, capsys, file, scenario=scenario)
    assert output.code == 0, output.err
    assert content["real"]["load"] == "4 in flight"
    for key, figure in by_key(content).items():
        assert figure["error"] == pytest.approx(0, abs=1e-6), key
    slower = [f"--set=profile.step_time.{key}={2 * value}" for key, value in files.STEP_TIME.items()]
    content, output = validated(tmp_path, capsys, file, *slower, "--bounds", "throughput=7", scenario=scenario)
    assert output.code == 1
    figures = by_key(content)
    assert figures["request_throughput"]["error"] == pytest.approx(-0.5, abs=1e-3)
    assert figures["mean_e2el_ms"]["error"] == pytest.approx(1.0, abs=1e-3)
    assert figures["simbatch.mean_concurrent_requests"]["error"] == pytest.approx(0, abs=0.01)


def test_a_closed_loop_sends_the_file_s_lengths_in_its_order(tmp_path, capsys):
    """One after the other: the order of sending decides when each is sent, and a shuffled file is put in order."""
    bench = files.vllm(files.ran(files.closed_loop(1, num_prompts=12, cv=1.0)), max_concurrency=1)
    order = np.random.default_rng(0).permutation(12)
    shuffled = {
        key: [column[i] for i in order] if isinstance(column, list) else column for key, column in bench.items()
    }
    file = files.save(tmp_path / "bench.json", shuffled)
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path))
    assert output.code == 0, output.err
    assert all(figure["error"] == pytest.approx(0, abs=1e-6) for figure in by_key(content).values())


def test_without_times_of_sending_the_load_says_how_they_were_sent(tmp_path, capsys):
    bench = files.vllm(files.ran(files.closed_loop(4)), max_concurrency=4, start_times=None)
    file = files.save(tmp_path / "bench.json", bench)
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path))
    assert output.code == 0, output.err
    assert all(figure["error"] == pytest.approx(0, abs=1e-6) for figure in by_key(content).values())
    assert any("does not say when requests were sent" in note for note in content["notes"])
    files.save(
        file, files.vllm(files.ran(files.closed_loop(4)), start_times=None, request_rate=2.0, model_id=None, tag="")
    )
    refused = run(capsys, arguments(tmp_path, file, scenario=write_inline(tmp_path)))
    assert refused.code == 2
    assert "cannot be drawn again" in refused.err


def test_what_a_client_does_not_tell_is_left_out_with_a_sentence(tmp_path, capsys):
    run_of = files.guidellm(files.ran(files.closed_loop(4)), {"type_": "concurrent", "streams": 4})
    for row in run_of["requests"]["successful"]:
        del row["time_to_first_token_ms"]
    file = files.save(tmp_path / "benchmarks.json", {"benchmarks": [run_of]})
    flags = ("--bounds", "mean_e2el=1,mean_tpot=1")
    content, output = validated(tmp_path, capsys, file, *flags, scenario=write_inline(tmp_path))
    assert not [key for key in by_key(content) if "ttft" in key or "tpot" in key or "itl" in key]
    assert by_key(content)["mean_e2el_ms"]["error"] == pytest.approx(0, abs=1e-6)
    notes = " ".join(content["notes"])
    assert "TTFT, TPOT left out: the report has no time of the first token" in notes
    assert output.code == 1  # a bound on what the file does not tell is not kept
    shown = run(capsys, arguments(tmp_path, file, *flags, scenario=write_inline(tmp_path)))
    assert "OUTSIDE the bounds: mean_tpot (the real run does not tell it)" in shown.out


@pytest.mark.parametrize("write_file", [files.aiperf, files.inference_perf])
def test_other_clients_records_have_no_error_against_their_own_simulation(tmp_path, capsys, write_file):
    content = write_file(files.ran(files.closed_loop(4)))
    name = "profile_export.jsonl" if write_file is files.aiperf else "per_request_lifecycle_metrics.json"
    file = files.save(tmp_path / name, content, lines=write_file is files.aiperf)
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path))
    assert output.code == 0, output.err
    assert any("every send followed an end, 4 in flight" in note for note in content["notes"])
    assert all(figure["error"] == pytest.approx(0, abs=1e-5) for figure in by_key(content).values())


def test_totals_alone_against_the_workload_of_the_scenario(tmp_path, capsys):
    workload = {
        "num_prompts": 50,
        "request_rate": 4.0,
        "prompt_len": files.lengths(300, 0.5),
        "output_len": files.lengths(40),
    }
    summary = files.ran(workload).summary
    totals = {key: value for key, value in summary.items() if key != "simbatch"} | {"request_rate": 4.0}
    file = files.save(tmp_path / "totals.json", totals)
    stated = workload | {"num_prompts": 7, "request_rate": 1.0}
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path, stated))
    assert output.code == 0, output.err
    assert content["num_requests"] == 50  # number and rate are the file's
    figures = by_key(content)
    assert {"mean_ttft_ms", "p99_e2el_ms", "mean_itl_ms", "request_throughput", "duration"} <= figures.keys()
    assert all(figure["error"] == pytest.approx(0, abs=1e-6) for figure in figures.values())
    assert not (tmp_path / "out" / "latency.png").exists()  # nothing is known of single requests
    other = run(
        capsys, arguments(tmp_path, file, scenario=write_inline(tmp_path, stated | {"prompt_len": files.lengths(600)}))
    )
    assert other.code == 2
    assert "and the scenario's have 600.0; state the workload that was run" in other.err


@pytest.mark.parametrize(
    ("load", "arrival"),
    [
        ({"request_rate": "inf", "max_concurrency": 4}, {"process": "all_at_once"}),
        ({"request_rate": "inf"}, {"process": "all_at_once"}),
        ({"request_rate": "inf", "max_concurrency": 4}, {"process": "closed_loop", "max_concurrency": 9}),
    ],
)
def test_the_load_of_totals_is_the_file_s(tmp_path, capsys, load, arrival):
    workload = files.closed_loop(4, num_prompts=30)
    arrived = {"process": "closed_loop", "max_concurrency": load.get("max_concurrency", 30)}
    totals = {k: v for k, v in files.ran(workload | {"arrival": arrived}).summary.items() if k != "simbatch"} | load
    file = files.save(tmp_path / "totals.json", totals)
    stated = workload | {"arrival": arrival}
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path, stated))
    assert output.code == 0, output.err
    assert all(figure["error"] == pytest.approx(0, abs=1e-6) for figure in by_key(content).values())


def test_the_scenario_may_say_the_limit_that_the_file_does_not(tmp_path, capsys):
    result = files.ran(files.closed_loop(4))
    workload = files.closed_loop(4)
    file = files.save(tmp_path / "bench.json", files.vllm(result, request_rate=None))
    content, output = validated(tmp_path, capsys, file, scenario=write_inline(tmp_path, workload))
    assert output.code == 0, output.err
    assert content["real"]["load"] == "4 in flight"
    files.save(file, files.vllm(result, max_concurrency=5))
    refused = run(capsys, arguments(tmp_path, file, scenario=write_inline(tmp_path, workload)))
    assert refused.code == 2
    assert "workload.arrival: the recorded run had another number of requests in flight (got 4)" in refused.err


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
    done = run(capsys, arguments(tmp_path, recorded(tmp_path, change), *flags))
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


def write_inline(tmp_path, workload=None):
    """A scenario on the step times of `bench_files`."""
    path = tmp_path / "inline.yaml"
    path.write_text(json.dumps(files.scenario(workload or files.OPEN)))
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
