"""What `simbatch serve` makes of its command line, before vLLM is started."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from simbatch.serving.simulated import command
from simbatch.serving.simulated.command import ServeOptions, prepare
from simbatch.serving.simulated.flags import engine_flags, in_the_profile, read_flags
from simbatch.serving.simulated.model import Tokens
from simbatch.serving.simulated.spec import ServeSpec
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.load import shipped_text
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario, resolve

PROFILE = "h100-llama-3.1-8b-bf16"
HOSTED = Path(__file__).parents[1] / "benchmarks" / "h100-host.json"


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
    assert flags.others == ["--api-key", "secret", "-q", "bf16", "--disable-log-stats"]
    assert flags.named == {"api_key": "secret", "quantization": "bf16", "disable_log_stats": ""}


def test_what_the_profile_says_is_not_said_again():
    profile = load_profile("h100-llama-3.1-70b-bf16-tp4", folder=Path())
    flags = read_flags(["--tensor-parallel-size", "4", "--quantization=bf16", "--api-key", "k"])
    assert in_the_profile(flags, profile) == ["--api-key", "k"]
    with pytest.raises(UserError, match=r"--tensor-parallel-size: the profile .* was measured with 4 .got '2'."):
        in_the_profile(read_flags(["-tp", "2"]), profile)


def test_vllm_is_told_what_a_simulation_would_run_with():
    options = ServeOptions(PROFILE, flags=("--max-num-seqs", "64", "--no-enable-prefix-caching", "--enforce-eager"))
    scenario = {
        "profile": PROFILE,
        "engine": {"max_num_seqs": 64, "enable_prefix_caching": False, "enforce_eager": True},
    }
    lengths = {f"{name}_len": {"distribution": "fixed", "mean": 1} for name in ("prompt", "output")}
    workload = {"num_prompts": 1, "request_rate": 1, **lengths}
    prepared = prepare(options)
    simulated = resolve(Scenario.from_dict({**scenario, "workload": workload}))
    assert prepared.resolved.engine == simulated.engine
    assert list(engine_flags(prepared.resolved)) == [
        *(
            "--max-num-seqs",
            "64",
            "--max-num-batched-tokens",
            "8192",
            "--max-model-len",
            "131072",
            "--block-size",
            "16",
        ),
        *("--no-enable-prefix-caching", "--async-scheduling", "--num-gpu-blocks-override", "29075"),
    ]
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
        ({"flags": ("--max-num-seqs",)}, "--max-num-seqs: needs a value"),
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
