"""Steps rebuilt from streams, and what a run's streams say of the server behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simbatch.cli.trace import trace
from simbatch.sim.errors import UserError
from simbatch.sim.report.result import Result
from simbatch.sim.streams import Streams, rebuild_steps
from simbatch.sim.streams.described import Described
from simbatch.sim.streams.judge import judge, without_standstills
from tests import bench_files as files
from tests.bench_files import read


def of(*requests: tuple[float, list[float]], prompt: int = 100) -> Streams:
    """Requests by the time of their sending and the times of their chunks."""
    times = [chunks for _, chunks in requests]
    return Streams.of(
        [sent for sent, _ in requests],
        [chunks[0] - sent for sent, chunks in requests],
        [np.diff(chunks) for chunks in times],
        [prompt] * len(requests),
        [len(chunks) for chunks in times],
    )


def rhythm(begin: float, number: int, late: float = 0.0) -> list[float]:
    """Chunks every 10 ms."""
    return [begin + 0.01 * k + late for k in range(number)]


def test_a_request_joins_the_steps_of_the_others() -> None:
    steps = rebuild_steps(of((0.0, rhythm(0.02, 6)), (0.03, rhythm(0.04, 3, late=0.0002))))
    assert len(steps) == 6
    assert steps.first.tolist() == [0, 2]
    assert steps.num_first.tolist() == [1, 0, 1, 0, 0, 0]
    assert steps.num_decodes.tolist() == [0, 1, 1, 2, 2, 1]
    assert steps.decode_context.tolist() == [0, 100, 101, 102 + 100, 103 + 101, 104]
    assert steps.begin_s == pytest.approx(rhythm(0.02, 6))
    assert steps.end_s[2] == pytest.approx(0.0402)


def test_a_client_that_lags_by_most_of_a_step_does_not_blur_them() -> None:
    """Chunks of one step come up to 8 of 10 ms late, each request by its own lag."""
    requests = [(0.0, rhythm(0.02, 30, late=0.0016 * k)) for k in range(6)]
    steps = rebuild_steps(of(*requests))
    assert steps.first.tolist() == [0] * 6
    assert steps.is_regular.all()
    assert len(steps) == 30


def test_steps_after_a_pause_are_new_ones() -> None:
    steps = rebuild_steps(of((0.0, rhythm(0.02, 3)), (0.1, rhythm(0.12, 2))))
    assert steps.first.tolist() == [0, 3]
    assert steps.num_decodes.tolist() == [0, 1, 1, 0, 1]


def test_the_empty_chunk_that_chat_begins_with_is_no_token() -> None:
    streams = Streams.of([0.0, 0.0], [0.02, 0.02], [[0.0, 0.01, 0.01], [0.0, 0.01, 0.01]], [10, 10], [3, 3])
    assert streams.number.tolist() == [3, 3]
    assert streams.time_s[:3] == pytest.approx([0.02, 0.03, 0.04])


def test_standstills_are_taken_out_of_the_clock() -> None:
    """A second in which nobody got a token, though steps with as many prompt tokens take 10 ms, is no other run's."""
    requests = [(0.1 * i + 0.01, rhythm(0.1 * i + 0.02, 40)) for i in range(20)]
    steady = of(*requests)
    stood = steady.at(lambda time_s: time_s + (time_s > 0.995))
    streams, said = without_standstills(rebuild_steps(stood))
    assert said == "standstills of 1.0 s or more: 1 of them, 1.0 of its 3 s, are taken out of its clock"
    assert streams.time_s == pytest.approx(steady.time_s)
    assert streams.sent_s == pytest.approx(steady.sent_s)
    assert without_standstills(rebuild_steps(steady)) == (steady, None)


def test_engines_behind_one_port_are_told() -> None:
    one = [(0.0, rhythm(0.020, 60)) for _ in range(10)]
    other = [(0.0, [0.0233 + 0.0171 * k for k in range(60)]) for _ in range(10)]
    found = judge(rebuild_steps(of(*one, *other)))
    assert found.num_engines == 2
    assert "several engines behind one port" in found.refusals[0]


def test_speculation_and_failures_are_told() -> None:
    requests = [(0.0, rhythm(0.02, 10)) for _ in range(10)]
    several = of(*requests)
    speculating = Streams(
        several.sent_s, several.num_prompt_tokens, 2 * several.num_output_tokens, several.time_s, several.first
    )
    assert "2.00 tokens" in judge(rebuild_steps(speculating)).refusals[0]
    assert judge(rebuild_steps(several)).refusals == ()
    assert "of 15 requests failed" in judge(rebuild_steps(several), num_failed=5).refusals[0]
    assert "too few" in judge(rebuild_steps(of(*requests[:3]))).refusals[0]


RESULT = files.ran(files.closed_loop(12, num_prompts=240, prompt=500, output=60))


def described(bench: dict[str, Any]) -> Described:
    return Described.of(
        Streams.of(*(bench[key] for key in ("start_times", "ttfts", "itls", "input_lens", "output_lens")))
    )


def summary(bench: dict[str, Any]) -> dict[str, Any]:
    return described(bench).summary()


def told_steps(result: Result) -> list[Any]:
    """The steps that gave somebody a token."""
    prompts = result.requests["num_prompt_tokens"]
    return [s for s in result.record.steps or [] if any(h + q >= prompts[i] for i, q, h in s.scheduled)]


def test_steps_and_batch_over_time() -> None:
    said, steps = summary(files.vllm(RESULT)), told_steps(RESULT)
    assert said["refusals"] == []
    assert said["num_steps"] == len(steps)
    lasted = np.array([step.end_ps - step.start_ps for step in steps], dtype=float)
    batch = np.array([len(step.scheduled) for step in steps])
    assert said["batch"]["mean"] == pytest.approx(np.average(batch, weights=lasted), rel=0.01)
    assert said["batch"]["max"] == batch.max()
    assert said["batch"]["p50"] == 12


def test_time_in_prefills_and_gaps() -> None:
    prompts = RESULT.requests["num_prompt_tokens"]
    said, steps = summary(files.vllm(RESULT)), RESULT.record.steps or []
    with_prefills = [any(h < prompts[i] for i, _, h in step.scheduled) for step in steps]
    lasted = np.array([step.end_ps - step.start_ps for step in steps]) / 1e12
    share = lasted[with_prefills].sum() / float(RESULT.summary["duration"])
    assert said["share_of_time"]["with_prefills"] == pytest.approx(share, rel=0.03)
    assert sum(said["share_of_time"].values()) == pytest.approx(1, abs=0.01)
    alone = 1000 * np.median(lasted[~np.array(with_prefills)])
    assert said["gap_ms"]["decodes_only"]["p50"] == pytest.approx(alone, rel=0.02)
    assert said["gap_ms"]["with_prefills"]["p50"] > 1.3 * alone


def test_idle_time_is_no_step_s() -> None:
    """One request every two seconds, each done long before the next."""
    arrivals = {"num_prompts": 20, "arrival": {"process": "constant", "request_rate": 0.5}}
    said = summary(
        files.vllm(files.ran(arrivals | {"prompt_len": files.lengths(500), "output_len": files.lengths(40)}))
    )
    busy = 20 * (0.01 + 500 * 2e-5 + 39 * (0.01 + 1e-4)) / 38
    assert said["share_of_time"]["idle"] == pytest.approx(1 - busy, abs=0.03)
    assert said["batch"] == {"mean": 1.0, "p5": 1.0, "p50": 1.0, "p95": 1.0, "max": 1.0}


def test_a_client_that_falls_behind() -> None:
    assert summary(files.vllm(RESULT))["client"]["kept_up"]
    bench = files.vllm(RESULT)
    rng = np.random.default_rng(0)
    late = [
        np.cumsum([t, *itl]) + 0.008 * rng.random(len(itl) + 1)
        for t, itl in zip(bench["ttfts"], bench["itls"], strict=True)
    ]
    bench["ttfts"], bench["itls"] = [t[0] for t in late], [np.diff(t).tolist() for t in late]
    said = summary(bench)
    assert not said["client"]["kept_up"]
    assert any("the streams, not the engine, may set the pace" in text for text in said["warnings"])


def test_prefix_hits_show_as_prefills_that_take_no_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    hits = rng.random(300) < 0.4
    rows = [
        {"arrival_s": 0.12 * i, "num_prompt_tokens": 800, "num_output_tokens": 50, "hash_ids": [1 if hit else 100 + i]}
        for i, hit in enumerate(hits.tolist())
    ]
    path = files.save(tmp_path / "trace.jsonl", rows, lines=True)
    workload = {"trace": {"path": str(path), "hash_block_tokens": 800}}
    cached = summary(files.vllm(files.ran(workload, enable_prefix_caching=True)))["prefix_hits"]
    assert cached["share"] == pytest.approx(hits[1:].mean(), abs=0.05)
    assert cached["prefill_us_per_token"] == pytest.approx(20, rel=0.1)
    assert summary(files.vllm(files.ran(workload)))["prefix_hits"]["share"] < 0.02


def test_a_queue_that_grows_is_not_stationary() -> None:
    said = summary(files.vllm(RESULT))["stationarity"]
    assert (said["verdict"], said["drifts"]) == ("steady", False)
    arrivals = {"num_prompts": 300, "arrival": {"process": "constant", "request_rate": 30.0}}
    lengths = {"prompt_len": files.lengths(600), "output_len": files.lengths(150)}
    said = summary(files.vllm(files.ran(arrivals | lengths, max_num_seqs=500)))["stationarity"]
    assert said["verdict"] == "grows"
    assert said["batch"] == sorted(said["batch"])


def test_steps_that_become_slower_drift() -> None:
    bench = files.vllm(RESULT)
    times = [
        np.cumsum([s + t, *itl]) for s, t, itl in zip(bench["start_times"], bench["ttfts"], bench["itls"], strict=True)
    ]
    begin = min(bench["start_times"])
    slowed = [(t - begin) * (1 + 0.002 * (t - begin)) + begin for t in times]  # the clocks go down
    sent = [(s - begin) * (1 + 0.002 * (s - begin)) + begin for s in bench["start_times"]]
    bench |= {
        "start_times": sent,
        "ttfts": [t[0] - s for t, s in zip(slowed, sent, strict=True)],
        "itls": [np.diff(t).tolist() for t in slowed],
    }
    found = summary(bench)["stationarity"]
    assert found["drifts"]
    assert found["drift"] > 0.03


def test_what_cannot_be_believed_has_a_reason_and_no_figures() -> None:
    bench = files.vllm(RESULT)
    bench["itls"] = [gaps[::2] for gaps in bench["itls"]]
    said = summary(bench)
    assert said.keys() == {"refusals", "warnings"}
    assert "speculative decoding" in said["refusals"][0]


def call(*arguments: object) -> str:
    result = CliRunner().invoke(trace, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_trace_describe_says_it(tmp_path: Path) -> None:
    path = files.save(tmp_path / "r.json", files.vllm(RESULT, max_concurrency=12))
    text = call("describe", path, "--picture", tmp_path / "p.png")
    said = json.loads(call("describe", path, "--json"))
    assert f"Steps:                          {said['stream']['num_steps']:,}" in text
    assert f"{said['stream']['share_of_time']['with_prefills']:.1%}, " in text
    for words in ("median 12, ", "kept up: a step's chunks take", "Prefix hits: ", "steady (batch in the thirds"):
        assert words in text
    assert "Recorded by:                    vllm bench serve: 12 in flight" in text
    assert (said["tool"], said["load"]) == ("vllm bench serve", "12 in flight")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.png").stat().st_size > 30_000


def test_trace_describe_of_every_run_in_a_file(tmp_path: Path) -> None:
    report = {"benchmarks": [files.guidellm(RESULT, {"type_": "concurrent", "streams": n}) for n in (12, 24)]}
    path = files.save(tmp_path / "benchmarks.json", report)
    said = json.loads(call("describe", path, "--json"))["runs"]
    assert [(each["run"], each["load"]) for each in said] == [(1, "12 in flight"), (2, "24 in flight")]
    assert call("describe", path).count("Steps cannot be told from the streams: a GuideLLM report") == 2
    with pytest.raises(UserError, match="has 2 runs, and a picture shows one"):
        trace.main(["describe", str(path), "-o", str(tmp_path / "p.png")], standalone_mode=False)


def test_without_times_of_sending_arrivals_are_not_zero_but_left_out(tmp_path: Path) -> None:
    path = files.save(tmp_path / "r.json", files.vllm(RESULT, max_concurrency=12, start_times=None))
    said = json.loads(call("describe", path, "--json"))
    assert (said["duration_s"], said["mean_request_rate"], said["num_requests"]) == (None, None, 240)
    assert "does not say when requests were sent" in said["sending"][0]
    assert said["stream"]["num_steps"] == len(told_steps(RESULT))  # its sends are made again


def test_a_closed_loop_without_times_is_no_trace_to_convert(tmp_path: Path) -> None:
    path = files.save(tmp_path / "r.json", files.vllm(RESULT, max_concurrency=12, start_times=None))
    with pytest.raises(UserError, match=r"is a closed loop \(12 in flight\) without times of sending"):
        trace.main(["convert", str(path), str(tmp_path / "t.csv")], standalone_mode=False)


def test_a_run_whose_trace_is_such_a_result_is_a_closed_loop(tmp_path: Path) -> None:
    path = files.save(tmp_path / "r.json", files.vllm(RESULT, max_concurrency=12, start_times=None))
    again = files.ran({"trace": {"path": str(path)}})
    assert again.summary["mean_e2el_ms"] == pytest.approx(RESULT.summary["mean_e2el_ms"])
    assert again.summary["duration"] == pytest.approx(RESULT.summary["duration"])


@pytest.mark.parametrize("write_file", [files.aiperf, files.inference_perf])
def test_other_clients_results_are_traces(tmp_path: Path, write_file: Any) -> None:
    name = "profile_export.jsonl" if write_file is files.aiperf else "per_request_lifecycle_metrics.json"
    path = files.save(tmp_path / name, write_file(RESULT), lines=write_file is files.aiperf)
    table = read(path)
    requests = RESULT.requests
    assert np.array(table["arrival_ps"]) / 1e12 == pytest.approx(np.sort(requests["arrival_s"]), abs=1e-5)
    assert sum(table["num_prompt_tokens"]) == requests["num_prompt_tokens"].sum()
    assert sum(table["num_output_tokens"]) == requests["num_output_tokens"].sum()


def test_the_real_server_at_16_requests_a_second() -> None:
    import gzip

    path = files.shared("gpu/h100-vllm-0.32/serve/p16.json.gz")
    said = summary(json.loads(gzip.decompress(path.read_bytes())))
    assert said["refusals"] == []
    assert said["client"]["kept_up"]
    assert said["num_steps"] == pytest.approx(2539, abs=10)  # NOTES.md of that folder
    assert said["prefix_hits"]["share"] < 0.05  # it had none
    assert said["stationarity"]["verdict"] == "steady"
