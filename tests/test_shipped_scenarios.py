"""What must hold in every scenario that ships."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simbatch import Result, Scenario, simulate
from simbatch.sim.cost.load import shipped_text
from simbatch.sim.cost.profile import HOST_KEYS
from simbatch.sim.scenario import resolve

ROOT = Path(__file__).parents[1]
AZURE = ROOT.parent / "shared" / "traces" / "azure" / "AzureLLMInferenceTrace_conv.csv"
SCENARIOS = sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))


def load(name: str) -> Scenario:
    scenario = Scenario.load(ROOT / "scenarios" / f"{name}.yaml")
    if name == "azure_conversation":
        if not AZURE.is_file():
            pytest.skip("../shared/traces/azure (the Azure conversation trace) is not here")
        scenario = scenario.override({"workload.trace.path": str(AZURE)})
    return scenario


@pytest.fixture(scope="module", params=SCENARIOS)
def result(request: pytest.FixtureRequest) -> Result:
    """On the device alone: with host and front end the client has its tokens later than the engine."""
    scenario = load(request.param)
    profile = json.loads(shipped_text(str(scenario.profile)))
    alone = {key: profile[key] for key in profile if key not in HOST_KEYS}
    return simulate(scenario.override({"profile": alone}))


def test_littles_law(result: Result) -> None:
    """Mean number = arrival rate x mean time: of the queue, of the whole system, and of the batches on the device.

    The last is the engine's own count, step by step, against the requests' times: a request is in every step from its
    first to its last token, but for those that it misses by a preemption.
    """
    requests, duration_s = result.requests, result.summary["duration"]
    assert set(requests["status"]) <= {"finished", "rejected"}
    arrival_s, scheduled_s, finish_s = requests["arrival_s"], requests["scheduled_s"], requests["finish_s"]
    rate_per_s, ours = len(arrival_s) / duration_s, result.summary["simbatch"]
    assert ours["queue"]["mean_waiting"] == pytest.approx(rate_per_s * (scheduled_s - arrival_s).mean(), rel=1e-9)
    assert ours["mean_concurrent_requests"] == pytest.approx(rate_per_s * (finish_s - arrival_s).mean(), rel=1e-9)
    if ours["engine"]["batching"] == "static":  # members finish together, after their own last tokens
        return
    spans, columns = result.record.segments, result.record.requests
    steps = spans["num_steps"]
    time_ps = steps * spans["duration_ps"] + spans["slope_ps"] * (steps * (steps - 1) // 2)
    on_device_ps = int(((spans["num_decodes"] + spans["num_prefills"]) * time_ps).sum())
    in_system_ps = int((columns.finish_ps - columns.scheduled_ps).sum())
    if ours["num_preemptions"]:
        assert 0.97 * in_system_ps < on_device_ps < in_system_ps
    else:
        assert on_device_ps == in_system_ps


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "azure_conversation"])
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    for run in ("first", "again"):
        simulate(load(name)).save(tmp_path / run)
    first, again = ((tmp_path / run / "summary.json").read_bytes() for run in ("first", "again"))
    assert first == again
    assert b"Infinity" not in first
    assert b"NaN" not in first
    other = simulate(load(name).override({"seed": 12345})).summary
    assert other["mean_ttft_ms"] != simulate(load(name)).summary["mean_ttft_ms"]


def test_the_azure_trace_keeps_its_lengths() -> None:
    """All 19,366 rows, none left out, prompt and output lengths as in the file."""
    result = simulate(load("azure_conversation"))
    rows = np.loadtxt(AZURE, delimiter=",", skiprows=1, usecols=(1, 2), dtype=int)
    assert len(rows) == 19_366
    assert np.array_equal(result.requests["num_prompt_tokens"], rows[:, 0])
    assert np.array_equal(result.requests["num_output_tokens"], rows[:, 1])
    assert result.summary["completed"] == 19_366


def test_an_output_that_is_cut_is_counted_and_said() -> None:
    """Prompts of 900 and outputs of 200 where prompt and output may have 1,000 tokens: 100 are produced, as in vLLM."""
    result = simulate(
        Scenario.from_dict(
            {
                "profile": {
                    "num_gpu_blocks": 1000,
                    "step_time": {
                        "base_s": 0.01,
                        "per_prefill_token_s": 0,
                        "per_decode_seq_s": 0,
                        "per_context_token_s": 0,
                    },
                },
                "engine": {"max_model_len": 1000},
                "workload": {
                    "num_prompts": 20,
                    "request_rate": 1,
                    "prompt_len": {"distribution": "fixed", "mean": 900},
                    "output_len": {"distribution": "fixed", "mean": 200},
                },
            }
        )
    )
    assert (result.requests["num_output_tokens"] == 100).all()
    assert result.summary["simbatch"]["num_truncated"] == 20
    assert "20 of 20 requests had their output cut" in result.text()


def test_the_demo_shows_a_difference() -> None:
    """In a burst, `priority` keeps the high class out of the queue, and the three differ in goodput."""

    bursty = Scenario.load(ROOT / "scenarios" / "bursty.yaml")
    summaries = {name: simulate(bursty, name).summary for name in ("fixed", "adaptive", "priority")}
    goodput = [summary["request_goodput"] for summary in summaries.values()]
    assert max(goodput) > 1.1 * sorted(goodput)[1] > 1.2 * min(goodput)
    high = {name: summary["simbatch"]["classes"]["high"]["p99_ttft_ms"] for name, summary in summaries.items()}
    assert high["priority"] < 0.2 * high["fixed"]


@pytest.mark.parametrize("name", ["steady", "priority_mix", "memory_pressure", "long_prompts", "static_batches"])
def test_scenarios_show_what_they_are_for(name: str) -> None:

    resolved = resolve(Scenario.load(ROOT / "scenarios" / f"{name}.yaml"))
    result = simulate(resolved.scenario)
    ours = result.summary["simbatch"]
    assert result.summary["completed"] == resolved.scenario.workload.num_prompts
    assert (ours["num_preemptions"] > 1) == (name == "memory_pressure")
    if name == "long_prompts":
        assert result.requests["num_prompt_tokens"].max() > resolved.engine.max_num_batched_tokens
    if name == "priority_mix":
        classes = ours["classes"]
        assert classes["high"]["p99_ttft_ms"] < classes["normal"]["p99_ttft_ms"] < classes["low"]["p99_ttft_ms"]
    if name != "static_batches":  # below capacity: the queue does not grow
        assert result.summary["request_throughput"] > 0.9 * (resolved.scenario.workload.request_rate or 0)
