"""The recorder in real vLLM: it changes no decision, and writes every step of a real server, which is then killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.records.lines import RecordedStep, stream
from tests.vllm import engine_inside
from tests.vllm.conftest import serving
from tests.vllm.policy_cases import CaseClock, case_of
from tests.vllm.test_policy_scheduler import policy_of

RECORDER = "simbatch.vllm_recorder.RecordingScheduler"
SEATS = 4


def oracle_of(case, scheduler, config):
    """vLLM's own scheduler and loops on the case's virtual clock."""
    from parity import vllm_oracle

    given = {"scheduler_cls": scheduler, "additional_config": config} if scheduler else {}
    return vllm_oracle.Oracle(case, **given)


def played(case, scheduler, config, policy):
    oracle = oracle_of(case, scheduler, config)
    if policy is not None:
        oracle.sched.guide(policy_of(*policy), CaseClock(oracle))
    (oracle.run_async if case["config"]["async_scheduling"] else oracle.run_sync)()
    return oracle, (oracle.lines, oracle.info, oracle.step_no, oracle.clock)


@pytest.mark.parametrize(
    "policy", [None, ("adaptive", {"target_tpot_ms": 5.0, "adjustment_interval": 3}), ("fair", {})]
)
@pytest.mark.parametrize("seed", range(8))
def test_decisions_are_the_same_with_and_without(tmp_path, seed, policy):
    case, path = case_of(seed), tmp_path / "steps.jsonl"
    scheduler, ours = (None, {}) if policy is None else ("simbatch.vllm_scheduler.PolicyScheduler", {"name": policy[0]})
    config = {} if policy is None else {"policy": {**ours, **policy[1]}}
    _, without = played(case, scheduler, {"simbatch": config}, policy)
    oracle, recorded = played(case, RECORDER, {"simbatch": {**config, "record": str(path)}}, policy)
    assert recorded == without
    oracle.sched.recorder.close()
    steps = read_steps(path)
    assert len(steps.requests) == len(case["requests"])
    assert steps.is_async == case["config"]["async_scheduling"] == steps.facts["async_scheduling"]
    scheduled = [line for line in oracle.lines if line.get("s")]
    assert len(steps) == len(scheduled)
    tokens = [sum(entry[1] for entry in line["s"]) for line in scheduled]
    assert (steps.num_decodes + steps.prefill_tokens).tolist() == tokens
    assert steps.num_preempted.sum() == sum(len(line.get("pre", ())) for line in scheduled)


def test_both_kinds_of_cases_were_played():
    kinds = [case_of(seed)["config"]["async_scheduling"] for seed in range(8)]
    assert {True, False} == set(kinds)


@pytest.fixture
def recorded_core(tmp_path):
    """vLLM's own asynchronous engine loop, recorded, over an executor whose results come late; and the file."""
    from simbatch.serving.recorder import watch

    config = {"simbatch": {"record": str(tmp_path / "steps.jsonl")}}

    class Executor(engine_inside.LateExecutor):
        pass

    watch(Executor)
    core = engine_inside.made_core(Executor, scheduler_cls=RECORDER, additional_config=config)
    return core, tmp_path / "steps.jsonl"


def test_two_launches_stand_before_the_first_update(recorded_core):
    core, path = recorded_core
    for name, num_prompt_tokens, max_tokens in (("a", 100, 6), ("b", 30, 9)):
        engine_inside.add(core, name, num_prompt_tokens, max_tokens)
    while core.scheduler.has_requests() or core.batch_queue:
        core.step_with_batch_queue()
    core.scheduler.recorder.close()
    steps = read_steps(path)
    assert steps.is_async
    assert steps.times["launch_s"].tolist() == sorted(steps.times["launch_s"])
    assert not np.isnan(steps.L).any()
    overlaps = steps.L[1:] < steps.times["update_s"][:-1]  # the next batch is launched before this one is taken in
    assert overlaps.sum() >= len(steps) - 3
    assert (steps.num_decodes + steps.prefill_tokens).sum() == 105 + 38  # all but each request's last token


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    config = {"simbatch": {"policy": {"name": "fixed", "batch_size": SEATS}}}
    flags = ("--scheduler-cls", RECORDER, "--additional-config", json.dumps(config))
    limits = ("--max-num-seqs", "16", "--max-num-batched-tokens", "256", "--max-model-len", "1024")
    with serving(folder, *flags, *limits, SIMBATCH_RECORD=str(folder / "steps.jsonl")) as url:
        yield url, folder


@pytest.fixture(scope="module")
def scenario(server):
    _, folder = server
    lengths = {
        "prompt_len": {"distribution": "lognormal", "mean": 150, "cv": 0.6, "max": 500},
        "output_len": {"distribution": "lognormal", "mean": 12, "cv": 0.5, "max": 40},
    }
    content = {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
        "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 256},
        "policy": {"name": "fixed", "batch_size": SEATS},
        "workload": {
            "num_prompts": 40,
            "request_rate": 25,
            "prefix": {"num_prefixes": 2, "prefix_len": 256},
            **lengths,
        },
    }
    (folder / "load.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "load.yaml")


def validate(*arguments):
    command = [sys.executable, "-m", "simbatch", "validate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_real_server_validated_and_recorded(server, scenario, tmp_path):
    url, folder = server
    done = validate(scenario, "--server", url, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "requests failed" not in done.stdout
    result = json.loads((tmp_path / "out" / "run-1" / "result.json").read_text())
    assert result["completed"] == 40
    engine = json.loads((tmp_path / "out" / "validation.json").read_text())["simulated"]["engine"]
    assert (engine["block_size"], engine["max_model_len"]) == (128, 1024)
    time.sleep(0.5)
    steps = read_steps(folder / "steps.jsonl")
    assert (steps.facts["max_num_seqs"], steps.facts["max_num_batched_tokens"]) == (16, 256)
    assert len(steps.requests) == 1 + 40  # the client asks first whether the server serves
    assert sorted(r.num_prompt_tokens for r in steps.requests)[1:] == sorted(result["input_lens"])
    assert steps.num_running.max() == SEATS  # the policy's, with requests waiting behind it
    assert steps.num_waiting.max() > 0
    # every token but each request's last is computed, save those from the prefix cache
    computed = (steps.num_decodes + steps.prefill_tokens).sum() - (4 + 3)
    cached = sum(result["input_lens"]) + sum(result["output_lens"]) - 40 - computed
    assert cached > 0
    assert cached % 128 == 0
    assert (steps.U >= steps.L).all()
    assert (steps.L > steps.S).all()


def num_steps(path):
    """Also of a server that nobody has asked yet."""
    return sum(isinstance(item, RecordedStep) for item in stream(path))


def test_a_killed_engine_leaves_its_last_second_and_a_sentence(server, scenario, tmp_path):
    url, folder = server
    path, out = folder / "steps.jsonl", tmp_path / "out"
    engine = int(json.loads(path.open().readline())["pid"])
    before = num_steps(path)
    arguments = (scenario, "--server", url, "--set", "workload.num_prompts=2000", "-o", str(out))
    client = subprocess.Popen(
        [sys.executable, "-m", "simbatch", "validate", *arguments], stderr=subprocess.PIPE, text=True
    )
    while num_steps(path) < before + 100:
        time.sleep(0.2)
    os.kill(engine, signal.SIGKILL)
    killed_s = time.monotonic()
    _, said = client.communicate(timeout=120)
    assert client.returncode == 2
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "run 1 was cut off after" in error
    assert "Traceback" not in said
    assert json.loads((out / "run-1" / "cut-off.json").read_text())["completed"] > 0
    steps = read_steps(path)
    assert killed_s - steps.U[-1] < 2.0
