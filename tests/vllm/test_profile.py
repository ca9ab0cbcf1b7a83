"""`simbatch profile` on vLLM's CPU build, from the command to a profile that `simbatch run` takes; nothing is mocked.

Everything runs in processes of its own, as users do it; budgets are short, so errors are not asserted tightly.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simbatch.profiler.fitting.samples import read_samples
from simbatch.profiler.measuring.planned import planned_memory

MODELS = Path(__file__).parent / "models"
ENGINE = ("--max-num-seqs", "8", "--max-num-batched-tokens", "128", "--max-model-len", "1024")
EAGER = ("--engine-arg", "enforce_eager=true")  # compiling would take longer than measuring
WAIT_S = 120


def command(model, target, *more, minutes=0.1):
    program = [sys.executable, "-m", "simbatch", "profile", str(MODELS / model), "--budget-minutes", str(minutes)]
    return [*program, *ENGINE, *EAGER, *more, "-o", str(target)]


def profiled(model, target, *more, minutes=0.1):
    done = subprocess.run(
        command(model, target, *more, minutes=minutes), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads(target.read_text()), read_samples(target.with_suffix(".samples.jsonl"))


@pytest.fixture(scope="module", autouse=True)
def too_little_memory(tmp_path_factory):
    """A start that fails, beside the other tests: it takes as long as any."""
    failing = command("tiny-llama", tmp_path_factory.mktemp("none") / "p.json", "--gpu-memory-utilization", "0.001")
    started = subprocess.Popen(failing, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    yield started
    started.kill()
    started.wait()


@pytest.fixture(scope="module")
def bf16(tmp_path_factory):
    """A measurement that was interrupted after its first steps, and gone on with."""
    target = tmp_path_factory.mktemp("bf16") / "mine.json"
    samples = target.with_suffix(".samples.jsonl")
    started = subprocess.Popen(command("tiny-llama", target, minutes=5), stderr=subprocess.PIPE, text=True)
    for _ in range(10 * WAIT_S):
        if samples.exists() and samples.read_text().count('"is_canary": false') > 20:
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, interrupted = started.communicate(timeout=WAIT_S)
    assert started.returncode == 130, interrupted
    assert "--resume" in interrupted
    assert not target.exists()
    before = read_samples(samples)
    refused = subprocess.run(command("tiny-llama", target), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    return before, *profiled("tiny-llama", target, "--resume", minutes=0.25), target


def test_what_was_measured_before_an_interruption_is_kept(bf16):
    before, _, _, samples, _ = bf16
    assert samples.steps[: len(before.steps)] == before.steps
    assert len(samples.steps) > len(before.steps)
    episodes = [step.episode for step in samples.fitted()]
    assert episodes == sorted(episodes)  # the series goes on
    assert len({row["batch_size"] for row in samples.batches}) == len(samples.batches) == 4


def test_a_profile_is_fitted_with_its_error(bf16):
    _, done, profile, samples, target = bf16
    assert profile["gpu"] == "cpu"
    assert profile["quantisation"] == "bf16"
    assert profile["memory"]["num_gpu_blocks_from"] == "vllm"
    for regime in ("decode", "prefill", "mixed"):
        assert 0 < profile["error"][regime]["mape"] < 1
        assert profile["error"][regime]["num_steps"] >= 4
    assert str(target.parent) not in target.read_text()  # no path of this machine
    assert "output tok/s" in done.stdout
    assert "knee" in done.stdout
    assert {path.suffix for path in target.parent.iterdir()} >= {".png", ".json", ".jsonl"}
    spanned = profile["range"]
    assert spanned["decode"]["num_decodes"] == [1, 8]
    assert spanned["mixed"]["num_tokens"][1] == 128
    # the steps are what was asked for: never more than the budget, nor more requests than seats
    assert max(sum(entry.num_tokens for entry in step.entries) for step in samples.steps) == 128
    assert max(len(step.entries) for step in samples.steps) <= 8


def test_a_larger_batch_gives_more_tokens_and_takes_more_memory(bf16):
    rows = bf16[3].batches
    assert [row["batch_size"] for row in rows] == [1, 2, 4, 8]
    assert rows[-1]["output_throughput"] > rows[0]["output_throughput"]
    # 256 + 32 tokens are 3 blocks of 128
    assert [row["kv_blocks"] for row in rows] == [3, 6, 12, 24]
    assert len({row["kv_bytes_per_seq"] for row in rows}) == 1
    for row in rows:
        assert row["e2el_ms"] == pytest.approx(row["ttft_ms"] + row["tpot_ms"] * (row["output_len"] - 1), rel=1e-6)


def test_simbatch_run_takes_the_profile(bf16, tmp_path):
    scenario = tmp_path / "x.yaml"
    scenario.write_text(
        f"profile: {bf16[-1]}\nengine: {{max_num_seqs: 8, max_num_batched_tokens: 128}}\n"
        "workload: {num_prompts: 50, request_rate: 5, prompt_len: {distribution: fixed, mean: 100}, "
        "output_len: {distribution: fixed, mean: 20}}\n"
    )
    program = [sys.executable, "-m", "simbatch", "run", str(scenario), "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["completed"] == 50


def test_quantised_weights_and_kv_change_memory_and_step_time(bf16, tmp_path):
    plain = bf16[3].engine
    table = [("bf16", bf16[2], bf16[3])]
    for name, model, flags in (
        ("awq", "tiny-llama-awq", ()),
        ("int8", "tiny-llama-w8a8", ()),
        ("awq, fp8 KV", "tiny-llama-awq", ("--kv-cache-dtype", "fp8")),
    ):
        target = tmp_path / f"{model}{len(flags)}.json"
        _, profile, samples = profiled(model, target, *flags)
        assert profile["quantisation"] == name.split(",")[0]
        factor = 2 if flags else 1
        assert samples.engine.kv_bytes_per_token * factor == plain.kv_bytes_per_token  # the page halves
        assert samples.engine.num_gpu_blocks == factor * plain.num_gpu_blocks  # the blocks double
        assert ("kvfp8" in profile["name"]) == bool(flags)
        table.append((name, profile, samples))
    for name, profile, samples in table:
        planned, _ = planned_memory(samples.engine)
        assert planned["num_gpu_blocks"] == samples.engine.num_gpu_blocks
        assert planned["kv_bytes_per_token"] == samples.engine.kv_bytes_per_token
        steps = {row["batch_size"]: round(row["step_ms"], 2) for row in samples.batches}
        print(name, profile["memory"]["num_gpu_blocks"], profile["memory"]["kv_bytes_per_token"], steps)
        assert all(steps.values())


def test_memory_that_does_not_suffice_is_said_at_the_start(too_little_memory):
    _, said = too_little_memory.communicate(timeout=WAIT_S)
    assert too_little_memory.returncode == 2
    assert "raise --gpu-memory-utilization" in said
    assert "Traceback" not in said
