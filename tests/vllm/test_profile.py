"""`simbatch profile` and `validate --engine` on vLLM's CPU build, each with real servers of its own; nothing is mocked.

One measurement and one validation, both interrupted and gone on with. Budgets are short and other programs may run, so
errors are bounded widely; tests/vllm/accuracy.py is the long loop.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.profile.predicted import planned_memory
from simbatch.profiler.records.samples import read_samples
from tests.vllm.accuracy import EAGER, EAGER_SCENARIO, MODEL, STEADY, scenario_of

MODELS = MODEL.parent
ENGINE = ("--max-num-seqs", "8", "--max-num-batched-tokens", "128", "--max-model-len", "1024")
SMALL = {"engine.max_num_seqs": 8, "engine.max_num_batched_tokens": 128}
WAIT_S = 300
RATES, NUM_PROMPTS, RUNS = {"light": 3.0, "heavy": 5.0}, 40, 2


def command(name, *arguments):
    return [sys.executable, "-m", "simbatch", name, *map(str, arguments)]


def profile(model, target, *more, minutes=0.2):
    return command("profile", MODELS / model, "--budget-minutes", minutes, *ENGINE, *EAGER, *more, "-o", target)


def run(program):
    return subprocess.run(
        program, capture_output=True, text=True, check=False, timeout=2 * WAIT_S, env={**STEADY, **os.environ}
    )


def interrupted(program, is_time):
    """Its last words, when Ctrl-C comes at that time."""
    started = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env={**STEADY, **os.environ})
    for _ in range(10 * WAIT_S):
        if is_time() or started.poll() is not None:
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=WAIT_S)
    assert started.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    return said


def no_server_is_left(folder):
    import psutil

    return not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(MODEL) in (process.info["cmdline"] or ())
        and str(folder) in str(process.environ().get("SIMBATCH_RECORD"))
    ]


@pytest.fixture(scope="module", autouse=True)
def too_little_memory(tmp_path_factory):
    """A start that fails, beside the other tests: it takes as long as any."""
    failing = profile("tiny-llama", tmp_path_factory.mktemp("none") / "p.json", "--gpu-memory-utilization", "0.001")
    started = subprocess.Popen(failing, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    yield started
    started.kill()
    started.wait()


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
    """A measurement that was interrupted after its first steps, and gone on with."""
    target = tmp_path_factory.mktemp("bf16") / "mine.json"
    samples = target.with_suffix(".samples.jsonl")
    interrupted(
        profile("tiny-llama", target, minutes=5),
        lambda: samples.exists() and samples.read_text().count('"is_canary": false') > 20,
    )
    assert no_server_is_left(target.parent)
    assert not target.exists()
    before = read_samples(samples)
    refused = run(profile("tiny-llama", target))
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    done = run(profile("tiny-llama", target, "--resume", minutes=0.5))
    assert done.returncode == 0, done.stderr
    return before, done, json.loads(target.read_text()), read_samples(samples), target


def test_what_was_measured_before_an_interruption_is_kept(bf16):
    before, _, _, samples, target = bf16
    assert samples.steps[: len(before.steps)] == before.steps
    assert len(samples.steps) > len(before.steps)
    waves = [step.episode for step in samples.fitted()]
    assert waves == sorted(waves)  # the series goes on
    assert len({row["batch_size"] for row in samples.batches}) == len(samples.batches) == 4
    starts = [read_steps(target.with_suffix(ending)) for ending in (".steps.jsonl", ".steps-2.jsonl")]
    assert all(steps.facts["max_num_seqs"] == 8 for steps in starts)
    assert sum(map(len, starts)) > len(samples.steps)


def test_a_profile_is_fitted_with_its_error(bf16):
    _, done, profile, samples, target = bf16
    assert (profile["gpu"], profile["quantisation"]) == ("cpu", "bf16")
    assert profile["name"] == "cpu-tiny-llama-bf16-measured"
    assert profile["memory"]["num_gpu_blocks_from"] == "vllm"
    for regime in ("decode", "prefill", "mixed"):
        assert 0 < profile["error"][regime]["mape"] < 3  # other programs may take most of the machine
        assert profile["error"][regime]["num_steps"] >= 4
    assert 0 < profile["front_end"]["network_s"] < 0.5
    assert 0 < profile["host"]["admit"]["base_s"] < 0.1
    assert str(target.parent) not in target.read_text()  # no path of this machine
    assert "output tok/s" in done.stdout
    assert "knee" in done.stdout
    assert "plan" in done.stderr
    assert {path.suffix for path in target.parent.iterdir()} >= {".png", ".json", ".jsonl"}
    spanned = profile["range"]
    assert spanned["decode"]["num_decodes"][0] == 1
    assert spanned["decode"]["num_decodes"][1] >= 4
    assert 64 <= spanned["mixed"]["num_tokens"][1] <= 128
    assert max(len(step.entries) for step in samples.steps) <= 8


def test_a_larger_batch_gives_more_tokens_and_takes_more_memory(bf16):
    rows = bf16[3].batches
    assert [row["batch_size"] for row in rows] == [1, 2, 4, 8]
    assert rows[-1]["output_throughput"] > rows[0]["output_throughput"]
    # 256 + 32 tokens are 3 blocks of 128; the last request may begin when the first has ended
    assert [row["kv_blocks"] for row in rows[:2]] == [3, 6]
    assert rows[-1]["kv_blocks"] > 12
    for row in rows:
        assert row["e2el_ms"] == pytest.approx(row["ttft_ms"] + row["tpot_ms"] * (row["output_len"] - 1), rel=1e-6)


def test_quantised_weights_and_kv_change_the_memory(bf16, tmp_path):
    plain, target = bf16[3].engine, tmp_path / "awq.json"
    done = run(profile("tiny-llama-awq", target, "--kv-cache-dtype", "fp8", minutes=0.3))
    assert done.returncode == 0, done.stderr
    content, engine = json.loads(target.read_text()), read_samples(target.with_suffix(".samples.jsonl")).engine
    assert content["name"] == "cpu-tiny-llama-awq-kvfp8-measured"
    assert engine.kv_bytes_per_token * 2 == plain.kv_bytes_per_token  # the page halves
    assert engine.num_gpu_blocks == 2 * plain.num_gpu_blocks  # the blocks double
    for facts in (plain, engine):
        planned, _ = planned_memory(facts)
        assert (planned["num_gpu_blocks"], planned["kv_bytes_per_token"]) == (
            facts.num_gpu_blocks,
            facts.kv_bytes_per_token,
        )


@pytest.fixture(scope="module")
def validated(bf16, tmp_path_factory):
    """Two workloads on one start of a server, interrupted after the first run and gone on with."""
    folder, files = tmp_path_factory.mktemp("loop"), []
    for name, rate in RATES.items():
        content = scenario_of(name).read_text().replace("profile:", "# profile:")
        files.append(folder / f"{name}.yaml")
        lines = [line for line in content.splitlines() if not line.strip().startswith(("request_rate", "num_prompts"))]
        text = "\n".join([f"profile: {bf16[-1]}", *lines])
        files[-1].write_text(
            text.replace("workload:", f"workload:\n  num_prompts: {NUM_PROMPTS}\n  request_rate: {rate}")
        )
    given = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    common = [*files, "--engine", MODEL, *EAGER_SCENARIO, *given, "-o", folder / "out"]
    first = folder / "out" / "light" / "run-1" / "result.json"
    said = interrupted(command("validate", *common, "--repeat", 50), first.exists)
    assert "warming up" in said
    before = first.read_bytes()
    done = run(command("validate", *common, "--repeat", RUNS, "--resume"))
    assert first.read_bytes() == before
    return folder / "out", done


def test_what_no_machine_s_speed_changes_is_as_on_the_real_server(validated):
    """Latencies are `make validate`'s, which measures and replays in turn: other programs may run beside a test."""
    out, done = validated
    assert done.returncode == 0, done.stderr
    contents = {name: json.loads((out / name / "validation.json").read_text()) for name in RATES}
    for name, content in contents.items():
        assert content["real"]["runs"] == RUNS
        figures = {figure["key"]: figure for figure in content["figures"] if figure["clock"] == "client"}
        if name == "light":  # the arrivals set the rate; under heavy load the machine's speed of that minute does
            assert figures["request_throughput"]["error"] == pytest.approx(0, abs=0.3)
        # what does not depend on the machine's speed is the same
        cached = figures["simbatch.cached_tokens_share"]
        assert cached["median"] == pytest.approx(cached["simulated"], abs=0.05)
        assert cached["median"] > 0.1
        assert {row["regime"] for row in content["steps"]} == {"decode-only", "with prefills"}
        assert content["admission_ms"]["real"] > 0


def test_every_run_is_kept_with_its_requests_and_steps(validated):
    out, _ = validated
    for name in RATES:
        for number in range(1, RUNS + 1):
            result = json.loads((out / name / f"run-{number}" / "result.json").read_text())
            steps = read_steps(out / name / f"run-{number}" / "steps.jsonl")
            assert result["completed"] == len(steps.requests) == NUM_PROMPTS
            cached = sum(result["simbatch"]["cached_tokens"])
            computed = sum(result["input_lens"]) - cached + sum(result["output_lens"]) - NUM_PROMPTS
            assert (steps.num_decodes + steps.prefill_tokens).sum() == computed


def test_memory_that_does_not_suffice_is_said_at_the_start(too_little_memory):
    _, said = too_little_memory.communicate(timeout=WAIT_S)
    assert too_little_memory.returncode == 2
    assert "raise --gpu-memory-utilization" in said
    assert "Traceback" not in said
