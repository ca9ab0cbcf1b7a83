"""`simbatch serve`: its flags, and how long host and device take, by hand and by the simulated engine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from simbatch.serving.processes import RotatingFile, reserved
from simbatch.serving.recording import LineWriter
from simbatch.serving.simulated import command, device
from simbatch.serving.simulated.command import ServeOptions, engine_flags, in_the_profile, prepare, read_flags
from simbatch.serving.simulated.device import ServeSpec, VirtualGpu
from simbatch.serving.simulated.model import AnswerLengths, MadeUpAnswer, Tokens, allowed_token, made_up_logprobs
from simbatch.sim.cost.by_name import load_profile, shipped_text
from simbatch.sim.cost.model import Features, sums_of
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import resolve
from tests.made_scenarios import fixed, serving

PROFILE = "h100-llama-3.1-8b-bf16"


@pytest.fixture(autouse=True)
def vllm_is_here(monkeypatch):
    monkeypatch.setattr(command, "require_vllm", lambda what: None)


def problems(options):
    with pytest.raises(UserError) as raised:
        prepare(options)
    return str(raised.value)


def test_flags_are_sorted():
    line = "--max-num-seqs 64 --max_num_batched_tokens=8K --max-model-len 25.6k --no-enable-prefix-caching"
    line += " --enforce-eager --cudagraph-capture-sizes 1 2 4 --api-key secret -q bf16 --disable-log-stats"
    flags = read_flags(f"{line} --scheduling-policy priority --watermark=0.01".split())
    assert flags.engine == {
        **{"max_num_seqs": 64, "max_num_batched_tokens": 8192, "max_model_len": 25600, "enable_prefix_caching": False},
        **{"enforce_eager": True, "cudagraph_capture_sizes": [1, 2, 4]},
        **{"scheduling_policy": "priority", "watermark": 0.01},
    }
    assert [one.words for one in flags.others] == [("--api-key", "secret"), ("-q", "bf16"), ("--disable-log-stats",)]
    assert flags.named == {"api_key": "secret", "quantization": "bf16", "disable_log_stats": ""}


def test_what_the_profile_says_is_not_said_again():
    profile = load_profile("h100-llama-3.1-70b-bf16-tp4", folder=Path())
    flags = read_flags(["--tensor-parallel-size", "4", "--quantization=bf16", "--api-key", "k"])
    assert in_the_profile(flags, profile) == ["--api-key", "k"]
    with pytest.raises(UserError, match=r"--tensor-parallel-size: the profile .* was measured with 4 .got '2'."):
        in_the_profile(read_flags(["-tp", "2"]), profile)


def test_vllm_is_told_what_a_simulation_would_run_with():
    options = ServeOptions(PROFILE, flags=("--max-num-seqs", "64", "--no-enable-prefix-caching", "--enforce-eager"))
    engine = {"max_num_seqs": 64, "enable_prefix_caching": False, "enforce_eager": True}
    prepared = prepare(options)
    simulated = resolve(serving(PROFILE, 1, 1, engine=engine, prompt_len=fixed(1), output_len=fixed(1)))
    assert prepared.resolved.engine == simulated.engine
    num_blocks = str(simulated.engine.num_gpu_blocks)
    flags = "--max-num-seqs 64 --max-num-batched-tokens 8192 --max-model-len 131072 --block-size 16 "
    flags += f"--no-enable-prefix-caching --async-scheduling --num-gpu-blocks-override {num_blocks}"
    assert " ".join(engine_flags(prepared.resolved)) == flags
    assert prepared.flags[-2:] == ["--served-model-name", PROFILE]
    spec = prepared.spec(Tokens([5, 6], [7]))
    assert (spec.words, spec.closers, spec.is_watched) == ([5, 6], [7], False)


def test_the_processes_read_the_same_scenario(tmp_path, monkeypatch):
    prepared = prepare(ServeOptions(PROFILE, policy={"name": "adaptive", "target_tpot_ms": 40}, output_len=30, seed=3))
    prepared.spec(Tokens([1], [2])).write(tmp_path / "spec.json")
    monkeypatch.setenv("SIMBATCH_SERVE", str(tmp_path / "spec.json"))
    spec = ServeSpec.of_environment()
    assert spec.scheduler_cls == "simbatch.vllm_scheduler.PolicyScheduler"
    assert spec.resolved.engine == prepared.resolved.engine
    assert spec.resolved.scenario.seed == 3
    assert spec.resolved.policy_parameters() == prepared.resolved.policy_parameters()
    assert spec.resolved.scenario.workload.output_len.mean == 30


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flags": ("--max-num-seqs", "x")}, "--max-num-seqs engine.max_num_seqs: must be a whole number (got 'x')"),
        ({"flags": ("--max-num-seqs",)}, "--max-num-seqs: a value must follow"),
        ({"flags": ("--num-gpu-blocks-override", "9")}, "8 usable blocks of 16 hold 128 tokens (got 131072)"),
        ({"flags": ("--speculative-config", "{}")}, "--speculative-config: does not go with a simulated server"),
        (
            {"flags": ("--load-format=auto",)},
            "--load-format: does not go with a simulated server; there are no weights",
        ),
        ({"policy": "static"}, "--policy: runs in simulation alone"),
        ({"policy": "fair", "flags": ("--scheduler-cls", "a.B")}, "--scheduler-cls: is how vLLM is told of the policy"),
        ({"output_len": "long"}, "--output-len workload.output_len: must be a mapping"),
        ({"steps": Path("/nowhere/steps.jsonl")}, "there is no such folder"),
    ],
)
def test_what_does_not_fit_is_said_before_vllm_starts(given, said):
    assert said in problems(ServeOptions(PROFILE, **given))


def test_a_profile_without_a_host_cannot_lend_it(tmp_path):
    content = json.loads(shipped_text(PROFILE))
    del content["host"]
    (tmp_path / "bare.json").write_text(json.dumps({**content, "name": "bare"}))
    found = problems(ServeOptions(str(tmp_path / "bare.json"), host="profile"))
    assert "--host: the profile bare has no host section" in found


def test_the_plugin_is_installed_and_sleeps(monkeypatch):
    [plugin] = [entry for entry in entry_points(group="vllm.platform_plugins") if entry.name == "simbatch"]
    register = plugin.load()
    monkeypatch.delenv("SIMBATCH_SERVE", raising=False)
    assert register() is None
    monkeypatch.setenv("SIMBATCH_SERVE", "spec.json")
    assert register() == "simbatch.serving.simulated.platform.SimulatedPlatform"


STEP_TIME = {"base_s": 0.010, "per_prefill_token_s": 1e-5, "per_decode_seq_s": 1e-4}
PIECEWISE = {"base_s": 0.015, "per_seq_s": 0.001}
HOST = {
    "launch": {"graph": {"base_s": 0.004}, "piecewise": PIECEWISE, "none": {"base_s": 0.030}},
    "update": {"base_s": 0.001, "per_seq_s": 0.0001},
    "admit": {"base_s": 0.002},
    "lag_s": 0.003,
    "tail_s": 0.0005,
}
DECODES = Features(*sums_of([], 10, 0))
SMALL, LARGE = (Features(*sums_of([(num_tokens, 0, False)])) for num_tokens in (100, 1000))


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
    lengths = {"prompt_len": fixed(1), "output_len": output_len or fixed(5)}
    inline = {"num_gpu_blocks": 1000, "step_time": STEP_TIME, **profile}
    return resolve(serving(inline, 1, 1, engine={"async_scheduling": True}, **lengths))


def test_own_host_times_leave_the_device_alone(clock):
    gpu = VirtualGpu(resolved(host=HOST), "own")
    assert gpu.launch(DECODES) == pytest.approx((100.0, 100.0, 100.011))
    clock.now_s += 0.002
    assert gpu.launch(SMALL) == pytest.approx((100.002, 100.011, 100.022))  # behind the first
    gpu.wait_for_update(100.011, 10)
    gpu.wait_for_admission(clock.now_s, 10, is_busy=False)
    assert clock.now_s == pytest.approx(100.002)


def test_the_profiles_host_holds_up_what_is_too_quick_and_what_lies_between_is_inside(clock):
    gpu = VirtualGpu(resolved(host=HOST), "profile")

    def launched(features, own_s=0.0):
        clock.now_s += own_s
        launch = gpu.launch(features)
        gpu.wait_for_launch(launch)
        return launch

    gpu.wait_for_admission(100.0, 10, is_busy=False)  # to 100.002
    assert launched(DECODES, 0.001) == pytest.approx((100.006, 100.005, 100.016), abs=1e-5)  # S + launch, S + lag
    assert launched(SMALL) == pytest.approx((100.022, 100.016, 100.027), abs=1e-5)
    gpu.wait_for_update(100.016, 10)  # which the thread could begin at 100.022
    assert clock.now_s == pytest.approx(100.024, abs=1e-5)
    gpu.wait_for_admission(clock.now_s + 0.001, 10, is_busy=True)  # the thread was free at 100.024
    assert launched(LARGE) == pytest.approx((100.056, 100.029, 100.0565), abs=2e-5)  # L + tail
    gpu.wait_for_update(100.2, 10)  # the device's end
    assert clock.now_s == pytest.approx(100.202, abs=1e-5)
    clock.now_s = 100.3  # vLLM itself took longer than the profile's host would have
    assert launched(DECODES) == pytest.approx((100.3, 100.205, 100.3005), abs=1e-5)


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
    log = LineWriter(RotatingFile(tmp_path / "steps.jsonl", {}), print)
    for i in range(5):
        log.note({"s0": i + 1 / 3, "pre": [[0, i]]})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert lines[1:] == [{"s0": i + 0.333333, "pre": [[0, i]]} for i in range(5)]


def test_asking_the_plugin_imports_nothing_else():
    """Every start of vLLM beside simbatch asks it."""
    program = (
        "import sys; before = set(sys.modules); import simbatch.serving.simulated.plugin as p; p.register(); "
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in ('pydantic', 'numpy', 'vllm', 'scipy')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
