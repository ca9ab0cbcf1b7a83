"""Profile, fit and validate on vLLM's CPU build, end to end, nothing mocked; the loop of accuracy.py, shorter.

Bounds are wide; where the real runs differ by more among themselves, twice that holds, as `--bounds` says. On a noisy
machine a round may not be enough: what is outside then is measured for up to two rounds more.
"""

import json
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from tests.vllm.accuracy import EAGER_SCENARIO, MODEL, Loop, scenario_of

BOUNDS = "mean=10,mean_ttft=20,p90=20"
NUM_PROMPTS, RUNS, MAX_ROUNDS = 40, 2, 3
# few sizes of steps, so that the warm-up is short
ENGINE = ("--max-num-seqs", "8", "--max-num-batched-tokens", "128", "--max-model-len", "1024")
SMALL = {"engine.max_num_seqs": 8, "engine.max_num_batched_tokens": 128}
WAIT_S = 120


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The loop, how many real runs it took, and how it ended."""
    settings = {**SMALL, "workload.num_prompts": NUM_PROMPTS}
    loop = Loop(tmp_path_factory.mktemp("loop"), ("heavy",), 0.15, ENGINE, settings, RUNS)
    for number in range(1, MAX_ROUNDS + 1):
        loop.round(number)
        if (code := loop.finish(number, BOUNDS)) == 0:
            break
    return loop, number * RUNS, code


def test_the_simulation_is_close_to_the_real_engine(validated):
    loop, num_runs, code = validated
    content = json.loads((loop.folder / "heavy" / "validation.json").read_text())
    assert code == 0, [figure for figure in content["figures"] if figure["is_within"] is False]
    assert content["real"]["runs"] == num_runs
    figures = {figure["key"]: figure for figure in content["figures"] if figure["clock"] == "client"}
    assert figures["duration"]["simulated"] > 1
    # what does not depend on the machine's speed is the same
    cached = figures["simbatch.cached_tokens_share"]
    assert cached["median"] == pytest.approx(cached["simulated"], abs=0.05)
    assert cached["median"] > 0.1
    assert {row["regime"] for row in content["steps"]} == {"decode-only", "with prefills", "between two steps"}
    assert content["admission_ms"]["real"] > 0


def test_every_run_is_kept_with_its_requests_and_steps(validated):
    loop, num_runs, _ = validated
    for number in range(1, num_runs + 1):
        folder = loop.folder / "heavy" / f"run-{number}"
        requests = pq.read_table(folder / "requests.parquet").to_pylist()
        assert len(requests) == NUM_PROMPTS
        for row in requests:
            assert row["status"] == "finished"
            assert row["arrival_s"] <= row["taken_in_s"] < row["first_token_s"] <= row["finish_s"]
            assert len(row["itl_s"]) == row["num_output_tokens"] - 1
        steps = pq.read_table(folder / "steps.parquet").to_pylist()
        tokens = sum(entry["num_tokens"] for step in steps for entry in step["scheduled"])
        computed = sum(r["num_prompt_tokens"] - r["num_cached_tokens"] + r["num_output_tokens"] - 1 for r in requests)
        assert tokens == computed


def test_an_interrupted_replay_is_gone_on_with(validated, tmp_path):
    loop, *_ = validated
    given = {"profile": loop.target, **SMALL, "workload.num_prompts": 20, "workload.request_rate": 6}
    settings = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    program = [sys.executable, "-m", "simbatch", "validate", str(scenario_of("light")), "--engine", str(MODEL)]
    program += [*EAGER_SCENARIO, *settings, "-o", str(tmp_path / "out")]
    started = subprocess.Popen([*program, "--repeat", "50"], stderr=subprocess.PIPE, text=True)
    for _ in range(10 * WAIT_S):
        if (tmp_path / "out" / "run-1" / "requests.parquet").exists():
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=WAIT_S)
    assert started.returncode == 130, said
    assert "--resume" in said
    assert "136 of 136 sizes" in said  # 128 of tokens, 8 of decodes: each first visit is slow
    assert "Traceback" not in said
    before = (tmp_path / "out" / "run-1" / "requests.parquet").read_bytes()
    resumed = subprocess.run([*program, "--repeat", "2", "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "median of 2" in resumed.stdout
    assert (tmp_path / "out" / "run-1" / "requests.parquet").read_bytes() == before
