"""`--perfetto`: the trace-event format's rules, and the run's own figures in it."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from simbatch import Result, Scenario, UserError, simulate
from simbatch.cli import main
from simbatch.sim.report.perfetto import rows_of

NUM_REQUESTS = 60
SCENARIO: dict[str, Any] = {
    "profile": "h100-llama-3.1-8b-bf16-measured",
    "engine": {"num_gpu_blocks_override": 600, "max_model_len": 4096, "max_num_seqs": 32},
    "workload": {
        "num_prompts": NUM_REQUESTS,
        "request_rate": 40,
        "prompt_len": {"distribution": "uniform", "min": 20, "max": 900},
        "output_len": {"distribution": "uniform", "min": 1, "max": 120},
    },
    "cluster": {"replicas": 2, "router": {"name": "least_requests"}},
}


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(Scenario.from_dict(SCENARIO), steps=True)


@pytest.fixture(scope="module")
def events(result: Result, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    path = result.write_perfetto(tmp_path_factory.mktemp("trace") / "run.json.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


def test_every_event_is_one_of_the_format(events: list[dict[str, Any]]) -> None:
    """Complete events, counters and metadata, each with the keys that the format asks for."""
    for event in events:
        assert event["ph"] in {"X", "C", "M"}
        assert event["pid"] > 0
        if event["ph"] == "M":
            assert event["name"] in {"process_name", "thread_name"}
            assert event["args"]["name"]
        else:
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] > 0
            assert event["tid"] > 0
        if event["ph"] == "C":
            assert isinstance(event["args"]["value"], (int, float))


def test_slices_of_a_thread_lie_beside_or_within_one_another(events: list[dict[str, Any]]) -> None:
    """The format's rule for complete events of one thread: a viewer draws nothing sensible where they cross."""
    threads = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            begin_ns = round(1000 * event["ts"])
            threads[event["pid"], event["tid"]].append((begin_ns, -round(1000 * (event["ts"] + event["dur"]))))
    for slices in threads.values():
        around: list[int] = []
        for begin, negative_end in sorted(slices):
            while around and around[-1] <= begin + 1:
                around.pop()
            assert not around or -negative_end <= around[-1] + 1
            around.append(-negative_end)


def test_it_says_what_the_run_says(result: Result, events: list[dict[str, Any]]) -> None:
    steps = [event for event in events if event.get("tid") == 2 and "step" in event.get("args", {})]
    assert len(steps) == result.record.num_steps
    assert {event["name"] for event in steps} == {"prefill", "mixed", "decode"}
    requests = [event for event in events if "num_prompt_tokens" in event.get("args", {})]
    assert len(requests) == NUM_REQUESTS
    tokens = sum(event["args"]["num_output_tokens"] for event in requests)
    assert tokens == result.summary["total_output_tokens"]
    first, *_ = sorted(requests, key=lambda event: event["ts"])
    assert first["ts"] == pytest.approx(1e6 * min(result.requests["arrival_s"]))
    assert {event["args"]["name"] for event in events if event["name"] == "process_name"} == {
        *("replica 0", "replica 1"),
        *("requests of replica 0", "requests of replica 1"),
    }
    used = [event["args"]["value"] for event in events if event["name"].startswith("KV")]
    assert min(used) == 0 < max(used) <= 100


def test_there_are_as_few_rows_as_intervals_that_meet() -> None:
    assert list(rows_of([(0, 5), (1, 3), (3, 4), (4, 9), (5, 6)])) == [1, 2, 2, 2, 1]


def test_the_command_writes_it(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    scenario = tmp_path / "small.yaml"
    scenario.write_text(json.dumps({**SCENARIO, "cluster": {"replicas": 1}}), encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        main(["run", str(scenario), "-o", str(tmp_path / "out"), "--perfetto", str(target), "--quiet"])
    assert json.loads(target.read_text(encoding="utf-8"))["displayTimeUnit"] == "ms"
    assert (tmp_path / "out" / "steps.parquet").exists()


def test_a_file_that_cannot_be_there_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        result.write_perfetto(tmp_path / "missing" / "trace.json")
