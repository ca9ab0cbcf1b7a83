"""The shipped RTX 4090 profile against a real vLLM run on that GPU, on which nothing was fitted (docs/accuracy.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Result, Scenario, simulate

SHARED = Path(__file__).parents[2] / "shared"
RUN = SHARED / "gpu" / "llmservingsim" / "rtx4090-llama-3.1-8b" / "run"
TRACE = SHARED / "traces" / "sharegpt-llama-3.1-8b-300-sps10.timed_trace.jsonl"

pytestmark = pytest.mark.skipif(
    not (RUN.is_dir() and TRACE.is_file()), reason="../shared (the recorded run and its trace) is not here"
)


@pytest.fixture(scope="module")
def simulated() -> Result:
    meta = json.loads((RUN / "meta.json").read_text())
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
                "workload": {"trace": {"path": str(TRACE), "format": "timed_trace"}},
            }
        )
    )


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The run's metrics, as `vllm bench serve` defines them; a request is sent when the engine takes it in."""
    rows = [json.loads(line) for line in (RUN / "requests.jsonl").read_text().splitlines()]
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
    rows = [json.loads(line) for line in (RUN / "requests.jsonl").read_text().splitlines()]
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
