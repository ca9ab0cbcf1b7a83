"""What is read of each benchmark client's result: the requests as they were, and what the file does not tell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch.sim.errors import UserError
from simbatch.sim.workload.bench import BenchRun, BenchTotals, read_results
from tests import bench_files as files

RESULT = files.ran(files.closed_loop(4, num_prompts=30))


def read(path: Path) -> BenchRun:
    (run,) = read_results(path)
    assert isinstance(run, BenchRun)
    return run


def refused(path: Path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_results(path)
    return str(caught.value)


def check(run: BenchRun, *, has_gaps: bool = True, has_times: bool = True) -> None:
    """The requests are the simulation's, to a microsecond."""
    requests = RESULT.requests
    assert run.num_prompt_tokens.tolist() == requests["num_prompt_tokens"].tolist()
    assert run.num_output_tokens.tolist() == requests["num_output_tokens"].tolist()
    assert run.ttft_s == pytest.approx(requests["ttft_s"], abs=1e-6)
    assert run.e2el_s == pytest.approx(requests["e2el_s"], abs=1e-6)
    if has_times:
        assert run.sent_s - run.sent_s.min() == pytest.approx(requests["arrival_s"], abs=1e-6)
    if has_gaps:
        assert "itl" not in run.untold
        assert [len(gaps) + 1 for gaps in run.gaps_s] == requests["num_output_tokens"].tolist()


def test_vllm(tmp_path: Path) -> None:
    run = read(files.save(tmp_path / "r.json", files.vllm(RESULT, max_concurrency=4)))
    check(run)
    assert (run.tool, run.model, str(run.load)) == ("vllm bench serve", "m", "4 in flight")
    assert run.totals["mean_ttft_ms"] == RESULT.summary["mean_ttft_ms"]


def test_sglang_which_writes_infinity_and_no_times_of_sending(tmp_path: Path) -> None:
    run = read(files.save(tmp_path / "r.jsonl", files.sglang(RESULT, max_concurrency=4)))
    check(run, has_times=False)
    assert (run.tool, run.sent_s, run.load.request_rate) == ("SGLang's bench_serving", None, np.inf)


@pytest.mark.parametrize("is_old", [False, True])
def test_guidellm(tmp_path: Path, is_old: bool) -> None:
    strategy = {"type_": "concurrent", "streams": 4, "max_concurrency": 4}
    report = {"benchmarks": [files.guidellm(RESULT, strategy, is_old=is_old)]}
    run = read(files.save(tmp_path / "benchmarks.json", report))
    check(run, has_gaps=False)
    assert (run.load.max_concurrency, run.load.request_rate) == (4, np.inf)
    assert "not those between" in run.untold["itl"]
    assert any("cut off when the run's time was up" in note for note in run.notes)


@pytest.mark.parametrize(
    ("strategy", "load"),
    [
        ({"type_": "synchronous"}, "1 in flight"),
        ({"type_": "constant", "rate": 3.5}, "3.5 req/s"),
        ({"type_": "poisson", "rate": 2.0, "max_concurrency": 512}, "2 req/s, at most 512 in flight"),
        ({"type_": "throughput", "max_concurrency": 64}, "64 in flight"),
        ({"type_": "trace"}, "as recorded"),
    ],
)
def test_how_guidellm_sent(tmp_path: Path, strategy: dict[str, Any], load: str) -> None:
    report = {"benchmarks": [files.guidellm(RESULT, strategy)]}
    assert str(read(files.save(tmp_path / "b.json", report)).load) == load


def test_a_sample_of_guidellm_s_requests_is_refused(tmp_path: Path) -> None:
    run = files.guidellm(RESULT, {"type_": "synchronous"})
    run["metrics"]["request_totals"]["successful"] = 900
    said = refused(tmp_path / "b.json", json.dumps({"benchmarks": [run]}))
    assert "lists 30 of the 900 requests that ended" in said


@pytest.mark.parametrize("is_old", [False, True])
def test_aiperf_without_its_warm_up(tmp_path: Path, is_old: bool) -> None:
    path = files.save(tmp_path / "profile_export.jsonl", files.aiperf(RESULT, is_old=is_old), lines=True)
    run = read(path)
    check(run)
    assert str(run.load) == "as recorded"
    assert any("1 of 31 requests failed" in note for note in run.notes)
    summary = {"request_latency": {"unit": "ms", "avg": 1}, "input_config": {"loadgen": {"concurrency": 4}}}
    files.save(tmp_path / "profile_export_aiperf.json", summary)
    assert str(read(path).load) == "4 in flight"


def test_aiperf_s_summary_alone(tmp_path: Path) -> None:
    metrics = {
        "request_throughput": {"unit": "requests/sec", "avg": 2.5},
        "request_latency": {"unit": "ms", "avg": 900.0, "p50": 880.0, "p99": 1200.0},
        "time_to_first_token": {"unit": "ms", "avg": 80.0, "p99": 200.0},
        "inter_token_latency": {"unit": "ms", "avg": 9.5},
        "request_count": {"unit": "requests", "avg": 40.0},
        "input_sequence_length": {"unit": "tokens", "avg": 300.0},
        "output_sequence_length": {"unit": "tokens", "avg": 64.0},
        "input_config": {"loadgen": {"request_rate": 2.5}},
    }
    (totals,) = read_results(files.save(tmp_path / "profile_export_aiperf.json", metrics))
    assert isinstance(totals, BenchTotals)
    assert (totals.num_requests, totals.num_prompt_tokens, str(totals.load)) == (40, 300, "2.5 req/s")
    assert totals.totals["mean_tpot_ms"] == 9.5
    assert totals.totals["median_e2el_ms"] == 880
    assert "p90_ttft_ms" not in totals.totals


@pytest.mark.parametrize("is_old", [False, True])
def test_inference_perf_s_requests(tmp_path: Path, is_old: bool) -> None:
    path = files.save(tmp_path / "per_request_lifecycle_metrics.json", files.inference_perf(RESULT, is_old=is_old))
    check(read(path))


def test_inference_perf_s_stage(tmp_path: Path) -> None:
    load = {"requested_rate": 80.88, "achieved_rate": 39.07, "send_duration": 124.2}  # as in its demos
    (totals,) = read_results(files.save(tmp_path / "stage_3_lifecycle_metrics.json", files.stage(RESULT, **load)))
    assert isinstance(totals, BenchTotals)
    assert totals.load.request_rate == 39.07
    assert any("was to send 80.9 requests a second and sent 39.1" in note for note in totals.notes)
    assert totals.totals["p99_ttft_ms"] == pytest.approx(RESULT.summary["p99_ttft_ms"])
    assert "itl" in totals.untold
    (closed,) = read_results(files.save(tmp_path / "stage_0.json", files.stage(RESULT, concurrency=8)))
    assert str(closed.load) == "8 in flight"


def test_several_runs_in_one_file(tmp_path: Path) -> None:
    runs = [files.vllm(RESULT, max_concurrency=n) for n in (1, 2, 4)]
    for path in (
        files.save(tmp_path / "appended.json", runs, lines=True),  # vllm bench serve --append-result, SGLang
        files.save(tmp_path / "list.json", runs),
    ):
        assert [run.load.max_concurrency for run in read_results(path)] == [1, 2, 4]


def test_chunks_of_several_tokens_are_no_gaps_between_tokens(tmp_path: Path) -> None:
    bench = files.vllm(RESULT)
    bench["itls"] = [gaps[::2] for gaps in bench["itls"]]
    bench["latencies"] = RESULT.requests["e2el_s"].tolist()
    run = read(files.save(tmp_path / "r.json", bench))
    assert "so the gaps are not those between tokens" in run.untold["itl"]
    assert run.e2el_s == pytest.approx(RESULT.requests["e2el_s"])


def test_a_zero_latency_among_totals_is_none(tmp_path: Path) -> None:
    totals = {"request_throughput": 2.0, "completed": 4, "mean_ttft_ms": 0.0, "mean_e2el_ms": 12.0, "duration": 2.0}
    (found,) = read_results(files.save(tmp_path / "r.json", totals))
    assert found.totals == {"request_throughput": 2.0, "mean_e2el_ms": 12.0, "duration": 2.0}


ONE = '"input_lens": [1], "output_lens": [1], "ttfts": [1.0], "itls": [[]]'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"a": 1', "not valid JSON"),
        ('{"architectures": ["x"], "hidden_size": 1}', "has the keys architectures, hidden_size; known are vllm bench"),
        (json.dumps(dict.fromkeys(map(str, range(400)), 1)), "and 392 more"),
        ("[1, 2]", "a single value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"input_lens": [1], "input_lens": [2]}', "stands twice"),
        ('{"input_lens": [1], "output_lens": [1], "ttfts": [NaN], "itls": [[]]}', "ttfts[0]"),
        ('{"input_lens": [1], "output_lens": [2], "ttfts": [1.0], "itls": [[-0.1]]}', "itls[0][0]"),
        ('{"input_lens": [1], "output_lens": [2, 3], "ttfts": [1.0], "itls": [[]]}', "must be of one length"),
        (f'{{{ONE}, "max_concurrency": 0}}', "max_concurrency"),
        (f'{{{ONE}, "burstiness": -1}}', "burstiness"),
        ('{"benchmarks": [{"requests": {"successful": [{"prompt_tokens": "many"}]}}]}', "requests.successful[0]"),
        ('{"benchmarks": [{"requests": {"successful": 5}}]}', "must be a list"),
        ('{"benchmarks": [{"requests": []}]}', "none of its requests"),
        ('{"metadata": {}, "metrics": {"request_latency": {"value": "x"}}}', "metrics"),
        (
            '{"metadata": {"request_start_ns": 1}, "metrics": {"input_sequence_length": {"value": -3}, '
            '"output_sequence_length": {"value": 1}, "request_latency": {"value": 1}}}',
            "must be a whole number of tokens",
        ),
        ('[{"start_time": 1, "end_time": 2, "info": {"input_tokens": -4}}]', "input_tokens"),
        ('{"load_summary": 3, "successes": 4}', "has no latency"),
    ],
)
def test_what_is_no_result_is_said_in_a_line(tmp_path: Path, content: str, said: str) -> None:
    text = refused(tmp_path / "r.json", content)
    assert said in text
    assert len(text) < 500 + len(str(tmp_path))


def test_not_text_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_results(tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "absent.json")
