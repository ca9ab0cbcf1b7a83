"""Profile, fit and validate on vLLM's CPU build, end to end, nothing mocked; the loop of accuracy.py, shorter.

Bounds are wide, and what falls outside is tried again: profile and replay must meet the same machine. A second profile
after such a replay says whether they did; where the machine's own speed kept moving there is nothing to compare, and
the test says so instead of failing.
"""

import json
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from tests.vllm import accuracy

BOUNDS = "mean=10,mean_ttft=20,p90=20"
BUDGET_MINUTES, REPEATS, NUM_PROMPTS, TRIES = 0.2, 3, 60, 3
# few sizes of steps, so that the warm-up is short
ENGINE = ("--max-num-seqs", "8", "--max-num-batched-tokens", "128", "--max-model-len", "1024")
SMALL = {"engine__max_num_seqs": 8, "engine__max_num_batched_tokens": 128}
WAIT_S = 120


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """The folder of a validation that kept to its bounds, its profile, and how it ended."""
    num_still = 0
    for _ in range(TRIES):
        folder = tmp_path_factory.mktemp("validate")
        profile, after = folder / "tiny.json", folder / "after.json"
        accuracy.profile(profile, BUDGET_MINUTES, ENGINE)
        settings = {**SMALL, "workload__num_prompts": NUM_PROMPTS}
        done = accuracy.validate("heavy", profile, folder / "heavy", REPEATS, BOUNDS, **settings)
        if done.returncode != 1:
            break
        accuracy.profile(after, BUDGET_MINUTES, ENGINE)
        num_still += accuracy.moved(profile, after) <= accuracy.MOVED
    return folder / "heavy", profile, done.returncode, num_still


def test_the_simulation_is_close_to_the_real_engine(validated):
    folder, _, code, num_still = validated
    if code == 1 and num_still < 2:
        pytest.skip(f"in {TRIES} tries the machine's own speed moved by more than {accuracy.MOVED:.0%} meanwhile")
    content = json.loads((folder / "validation.json").read_text())
    assert code == 0, [figure for figure in content["figures"] if figure["is_within"] is False]
    assert content["real"]["runs"] == REPEATS
    figures = {figure["key"]: figure for figure in content["figures"] if figure["clock"] == "client"}
    assert figures["duration"]["simulated"] > 1
    # what does not depend on the machine's speed is the same
    cached = figures["simbatch.cached_tokens_share"]
    assert cached["median"] == pytest.approx(cached["simulated"], abs=0.05)
    assert cached["median"] > 0.1
    assert {row["regime"] for row in content["steps"]} == {"decode-only", "with prefills", "between two steps"}
    assert content["admission_ms"]["real"] > 0


def test_every_run_is_kept_with_its_requests_and_steps(validated):
    folder, *_ = validated
    for number in range(1, REPEATS + 1):
        requests = pq.read_table(folder / f"run-{number}" / "requests.parquet").to_pylist()
        assert len(requests) == NUM_PROMPTS
        for row in requests:
            assert row["status"] == "finished"
            assert row["arrival_s"] <= row["taken_in_s"] < row["first_token_s"] <= row["finish_s"]
            assert len(row["itl_s"]) == row["num_output_tokens"] - 1
        steps = pq.read_table(folder / f"run-{number}" / "steps.parquet").to_pylist()
        tokens = sum(entry["num_tokens"] for step in steps for entry in step["scheduled"])
        computed = sum(r["num_prompt_tokens"] - r["num_cached_tokens"] + r["num_output_tokens"] - 1 for r in requests)
        assert tokens == computed


def test_an_interrupted_replay_is_gone_on_with(validated, tmp_path):
    _, profile, *_ = validated
    scenario = accuracy.HERE / "scenarios" / "light.yaml"
    given = {"profile": profile, "workload.num_prompts": 20, "workload.request_rate": 6}
    given |= {key.replace("__", "."): value for key, value in SMALL.items()}
    settings = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    program = [sys.executable, "-m", "simbatch", "validate", str(scenario), "--engine", str(accuracy.MODEL)]
    program += [*accuracy.EAGER, *settings, "-o", str(tmp_path / "out")]
    started = subprocess.Popen([*program, "--repeat", "50"], stderr=subprocess.PIPE, text=True)
    for _ in range(10 * WAIT_S):
        if (tmp_path / "out" / "run-1" / "requests.parquet").exists():
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=WAIT_S)
    assert started.returncode == 130, said
    assert "--resume" in said
    assert "Traceback" not in said
    before = (tmp_path / "out" / "run-1" / "requests.parquet").read_bytes()
    resumed = subprocess.run([*program, "--repeat", "2", "--resume"], capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "median of 2" in resumed.stdout
    assert (tmp_path / "out" / "run-1" / "requests.parquet").read_bytes() == before
