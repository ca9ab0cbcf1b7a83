"""The virtual GPU of `simbatch serve`: how long it takes, what it answers, whose port it is."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simbatch.serving.processes import reserved
from simbatch.serving.simulated import device
from simbatch.serving.simulated.answers import AnswerLengths, MadeUpAnswer, allowed_token, made_up_logprobs
from simbatch.serving.simulated.device import VirtualGpu
from simbatch.serving.simulated.step_log import StepLog
from simbatch.sim.cost.model import features_of
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario, resolve

STEP_TIME = {"base_s": 0.010, "per_prefill_token_s": 1e-5, "per_decode_seq_s": 1e-4}
HOST = {
    "launch": {
        "graph": {"base_s": 0.004},
        "piecewise": {"base_s": 0.015, "per_seq_s": 0.001},
        "none": {"base_s": 0.030},
    },
    "update": {"base_s": 0.001, "per_seq_s": 0.0001},
    "admit": {"base_s": 0.002},
    "lag_s": 0.003,
    "tail_s": 0.0005,
}
DECODES, SMALL, LARGE = features_of([], 10, 0), features_of([(100, 0, False)]), features_of([(1000, 0, False)])


class Clock:
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        self.now_s = 100.0

    def monotonic(self):
        return self.now_s

    def sleep(self, duration_s):
        self.now_s += duration_s or 1e-6


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(device, "time", clock)
    return clock


def resolved(output_len=None, **profile):
    lengths = {"prompt_len": {"distribution": "fixed", "mean": 1}}
    lengths["output_len"] = output_len or {"distribution": "fixed", "mean": 5}
    workload = {"num_prompts": 1, "request_rate": 1, **lengths}
    inline = {"num_gpu_blocks": 1000, "step_time": STEP_TIME, **profile}
    return resolve(Scenario.from_dict({"profile": inline, "workload": workload, "engine": {"async_scheduling": True}}))


def test_own_host_times_leave_the_device_alone(clock):
    gpu = VirtualGpu(resolved(host=HOST), "own")
    first = gpu.launch(99.0, DECODES)
    assert first == pytest.approx((100.0, 100.0, 100.011))
    clock.now_s += 0.002
    assert gpu.launch(100.001, SMALL) == pytest.approx((100.002, 100.011, 100.022))  # behind the first
    gpu.wait_for_update(clock.now_s, 10)
    gpu.wait_for_admission(clock.now_s, 10)
    assert clock.now_s == pytest.approx(100.002)


def test_the_profiles_host_holds_up_what_is_too_quick(clock):
    gpu = VirtualGpu(resolved(host=HOST), "profile")
    assert gpu.launch(100.0, DECODES) == pytest.approx((100.004, 100.003, 100.014))  # from S + lag
    assert gpu.launch(100.004, SMALL) == pytest.approx((100.020, 100.014, 100.025))
    assert gpu.launch(100.020, LARGE) == pytest.approx((100.050, 100.025, 100.0505))  # L + tail
    clock.now_s = 100.2  # vLLM itself took longer than the profile's host would have
    assert gpu.launch(100.050, DECODES) == pytest.approx((100.2, 100.053, 100.2005))
    gpu.wait_for_update(100.2, 10)
    assert clock.now_s == pytest.approx(100.202, abs=2e-6)
    gpu.wait_for_admission(100.202, 10)
    assert clock.now_s == pytest.approx(100.204, abs=4e-6)


def test_a_wait_in_the_past_is_none(clock):
    device.wait_until(99.0)
    assert clock.now_s == 100.0


def params(end, **more):
    return SimpleNamespace(eos_token_id=end, min_tokens=0, logprobs=None, **more)


def test_an_answer_ends_at_its_drawn_length():
    lengths, words = AnswerLengths(resolved()), list(range(50, 90))
    answer = MadeUpAnswer(30, params(2), lengths)
    tokens = [answer.token(number, words) for number in range(1, 8)]
    assert tokens[4:] == [2, 2, 2]
    assert set(tokens[:4]) <= set(words)
    assert tokens == [answer.token(number, words) for number in range(1, 8)]  # recomputed: the same
    endless = MadeUpAnswer(30, params(None), lengths)
    assert {endless.token(number, words) for number in range(1, 10_000)} <= set(words)
    least = SimpleNamespace(eos_token_id=2, min_tokens=9, logprobs=None)
    assert [MadeUpAnswer(3, least, lengths).token(number, words) == 2 for number in (9, 10)] == [False, True]


def test_lengths_are_drawn_as_a_scenario_would():
    drawn = AnswerLengths(resolved({"distribution": "lognormal", "mean": 200, "cv": 0.8}))
    values = np.array([drawn.next() for _ in range(20_000)])
    assert values.mean() == pytest.approx(200, rel=0.03)
    assert values.std() == pytest.approx(160, rel=0.06)


def test_a_grammar_chooses():
    bits = np.array([0, 1 << 3 | 1 << 30, 1], dtype=np.int32)
    assert allowed_token(bits, [64, 35]) == 64
    assert allowed_token(bits, [35, 64]) == 35
    assert allowed_token(bits, [0, 99 - 4]) == 35  # none of them: the lowest


def test_logprobs_have_the_token_first():
    ids, values, ranks = made_up_logprobs([7, None, 9], 2, [50, 51, 52])
    assert ids.tolist() == [[7, 51, 52], [0, 51, 52], [9, 51, 52]]
    assert values.tolist() == [[-1, -2, -3]] * 3
    assert ranks.tolist() == [1, 1, 1]


def test_a_port_is_kept_from_the_start():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: cannot be served on: .*got {port}"), reserved("", port):
            pass
    with reserved("127.0.0.1", port):
        if sys.platform == "linux":
            with pytest.raises(UserError, match="Address already in use"), reserved("127.0.0.1", port):
                pass
        with socket.socket() as server:  # vLLM's own, as it binds
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))


def test_the_log_keeps_the_order(tmp_path: Path):
    log = StepLog(str(tmp_path / "steps.jsonl"))
    for i in range(5):
        log.note({"s0": i + 1 / 3, "pre": [[0, i]]})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert lines == [{"s0": i + 0.333333, "pre": [[0, i]]} for i in range(5)]


def test_asking_the_plugin_imports_nothing_else():
    """Every start of vLLM beside simbatch asks it."""
    program = (
        "import sys; before = set(sys.modules); import simbatch.serving.simulated.plugin as p; p.register(); "
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in ('pydantic', 'numpy', 'vllm', 'scipy')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
