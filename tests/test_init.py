"""`simbatch init`: a `vllm serve` command becomes a scenario that runs, or one clear sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from simbatch import Scenario, simulate
from simbatch.profiler.model.published import published_models
from simbatch.sim.plan.demand import own_requests_per_s
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import parse, spellings, table
from simbatch.sim.scenario.presets import PRESETS, Preset, SessionPreset
from tests.test_cli import run

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LINES = yaml.safe_load((Path(__file__).parent / "serve_lines.yaml").read_text(encoding="utf-8"))
STATUSES = ("used", "no_effect", "not_simulated")
FLAGS_OF = {"0.25": 271, "0.29": 293, "0.33": 321}  # of vLLM's parser, as parity.serve_flags counts them


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run("init", *words, "--json", "-o", "made.yaml") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["name"])
def test_a_line_is_a_scenario_that_runs_or_one_sentence(
    line: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = () if line["gpu"] is None else ("--gpu", line["gpu"])
    if "refused" in line:
        assert run("init", line["line"], *gpu, "-o", "made.yaml") == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert line["refused"] in said
        assert len(said) < 500
        assert not Path("made.yaml").exists()
        return
    found = init(capsys, line["line"], *gpu)
    scenario = Scenario.load("made.yaml")
    assert (found["profile"], scenario.profile) == (line["profile"], line["profile"])
    assert resolve(scenario).engine.num_gpu_blocks > 1
    for key, value in line.get("engine", {}).items():
        assert getattr(scenario.engine, key) == value
    assert set(line.get("not_simulated", ())) <= {
        flag["flag"] for flag in found["flags"] if flag["status"] == "not_simulated"
    }
    text = Path("made.yaml").read_text()
    assert all(flag["flag"] in text for flag in found["flags"])
    assert "hf_secret" not in text


def test_there_are_at_least_forty_lines() -> None:
    assert len({line["line"] for line in LINES}) >= 40


def test_what_is_written_runs_at_once_and_says_what_is_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", f"vllm serve {LLAMA} --max-num-seqs 64 --api-key sk-1", "--gpu", "h100", "-o", "made.yaml") == 0
    said = capsys.readouterr().out
    assert "Its traffic is an EXAMPLE" in said
    assert "run it: simbatch run made.yaml" in said
    text = Path("made.yaml").read_text()
    assert "# --max-num-seqs 64" in text
    assert "AN EXAMPLE, since no traffic was given" in text
    assert "sk-1" not in text + said
    few = Scenario.load("made.yaml").override({"workload.num_prompts": 20})
    assert few.model == LLAMA
    assert simulate(few).summary["completed"] == 20


def test_the_table_covers_every_flag_of_the_parsers() -> None:
    """As many in each version as `parity.serve_flags` found there; tests/vllm asks the parser that is installed."""
    for version, count in FLAGS_OF.items():
        number = int(version.partition(".")[2])
        there = [row for row in table() if row.versions != "old" and _is_in(row.versions, number)]
        assert len(there) == count, version


def _is_in(versions: str, number: int) -> bool:
    since, _, until = versions.partition("-")
    low = int(since.partition(".")[2] or 0)
    return low <= number <= int(until.partition(".")[2] or 99)


def test_the_table_says_of_every_flag_what_it_is() -> None:
    for row in table():
        assert row.status in STATUSES
        assert row.takes in ("value", "list", "optional", "flag", "true")
        assert (row.status == "used") == bool(row.key) or row.flag == "config"
        assert row.reason or row.status == "used"
        if row.key.startswith("engine."):
            assert row.key.removeprefix("engine.") in EngineSettings.model_fields
    assert len(table()) == len({row.flag for row in table()})
    used = {row.key for row in table()}
    ours = {"batching", "step_noise", "front_end", "host_noise", "vllm_version"}
    assert {f"engine.{name}" for name in EngineSettings.model_fields if name not in ours} <= used


def test_no_flag_is_dropped() -> None:
    words = [option for option, (row, _) in spellings().items() if row.takes in ("flag", "true")]
    given, alone = parse(words)
    assert [one.flag for one in given] == words
    assert alone == []


RAMP = {"process": "ramp", "ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 5}
REPEATED = "--dataset-name prefix_repetition --prefix-repetition-prefix-len 512 --request-rate 2"
SPREAD = {"distribution": "uniform", "min": 512, "max": 1536}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--request-rate inf --max-concurrency 16", {"request_rate": "inf", "max_concurrency": 16}),
        ("--request-rate=2 --burstiness 0.5", {"request_rate": 2, "burstiness": 0.5}),
        ("--random-range-ratio 0.5 --request-rate 2", {"prompt_len": SPREAD}),
        ("--random-prefix-len 100 --request-rate 2", {"prefix": {"prefix_len": 100, "num_prefixes": 1}}),
        (REPEATED, {"prefix": {"prefix_len": 512, "num_prefixes": 10}}),
        ("--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 5", {"arrival": RAMP}),
    ],
)
def test_a_benchmark_says_what_is_sent(
    words: str, expected: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    init(capsys, f"vllm bench serve --model {LLAMA} {words}", "--gpu", "h100")
    data = yaml.safe_load(Path("made.yaml").read_text())
    assert expected.items() <= data["workload"].items()
    resolve(Scenario.load("made.yaml"))


MANIFEST = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: chat}}
spec:
  replicas: 3
  template:
    spec:
      nodeSelector: {{nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}}
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.30.0
        args: ["--model", "{LLAMA}", "--max-num-seqs", "40"]
        env: [{{name: HF_TOKEN, value: hf_secret}}]
"""
COMPOSE = f"""\
services:
  chat:
    image: vllm/vllm-openai:v0.30.0
    command: --model {LLAMA} --max-num-seqs 40
    environment: [HF_TOKEN=hf_secret]
  redis: {{image: redis, command: redis-server}}
"""
CONFIG = (
    f"model: {LLAMA}\nmax-num-seqs: 40\nenable-prefix-caching: false\ncompilation-config: {{cudagraph_mode: NONE}}\n"
)


@pytest.mark.parametrize(("text", "gpu"), [(MANIFEST, ()), (COMPOSE, ("--gpu", "h100")), (CONFIG, ("--gpu", "h100"))])
def test_a_file_holds_the_command(text: str, gpu: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("server.yaml").write_text(text)
    found = init(capsys, "server.yaml", *gpu)
    scenario = Scenario.load("made.yaml")
    assert found["profile"] == "h100-llama-3.1-8b-bf16-measured"
    assert scenario.engine.max_num_seqs == 40
    assert "hf_secret" not in Path("made.yaml").read_text()
    if text == MANIFEST:
        assert scenario.cluster.replicas == 3
    if text == CONFIG:
        assert scenario.engine.enforce_eager
        assert scenario.engine.enable_prefix_caching  # vLLM passes over `false`


def test_a_command_has_its_config_file_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("vllm.yaml").write_text("max-num-seqs: 40\nport: 80\n")
    init(capsys, f"vllm serve {LLAMA} --config vllm.yaml --max-num-seqs 8", "--gpu", "h100")
    assert Scenario.load("made.yaml").engine.max_num_seqs == 8  # the command line wins


ODD = "LlamaForCausalLM, 20 layers of 4,096, 5.41 B parameters"
FP8 = {"num_bits": 8, "type": "float"}
STORED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": FP8, "input_activations": {**FP8, "dynamic": True}}
    },
    "kv_cache_scheme": FP8,
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "h100-llama-3.1-8b-bf16-measured"),
        ({"vocab_size": 128264, "quantization_config": STORED}, "h100-llama-3.1-8b-fp8-kvfp8"),  # some added tokens
        ({"num_hidden_layers": 20}, f"({ODD}) in bf16 on 1 x h100"),
    ],
)
def test_a_checkpoint_of_ones_own_goes_by_its_config(
    change: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my-checkpoint").mkdir()
    Path("my-checkpoint/config.json").write_text(json.dumps(published_models()[LLAMA] | change))
    if expected.startswith("("):
        assert run("init", "vllm serve ./my-checkpoint", "--gpu", "h100", "-o", "made.yaml") == 2
        said = capsys.readouterr().err
        assert expected in said
        assert "simbatch estimate ./my-checkpoint --gpu h100 -o mine.json" in said
    else:
        assert init(capsys, "vllm serve ./my-checkpoint", "--gpu", "h100")["profile"] == expected


RENAMED = {
    "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic": "h100-llama-3.1-8b-fp8",
    "neuralmagic/Meta-Llama-3.1-70B-Instruct-FP8 -tp 2": "h100-llama-3.1-70b-fp8-tp2",
    "nvidia/Llama-3.1-70B-Instruct-FP8 -tp 2": "h100-llama-3.1-70b-fp8-kvfp8-tp2",  # its config asks for the cache too
    "unsloth/Llama-3.3-70B-Instruct -tp 4": "h100-llama-3.1-70b-bf16-tp4",
    "unsloth/Qwen3-30B-A3B-Instruct-2507": "h100-qwen3-30b-a3b-bf16",
    "Qwen/Qwen3-30B-A3B-Thinking-2507-FP8": "h100-qwen3-30b-a3b-fp8_block",
    "/models/Llama-3.1-8B-Instruct": "h100-llama-3.1-8b-bf16-measured",
}


@pytest.mark.parametrize(("line", "profile"), RENAMED.items(), ids=lambda text: text.split()[0])
def test_a_renamed_checkpoint_is_found(line: str, profile: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(capsys, f"vllm serve {line}", "--gpu", "h100")["profile"] == profile


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if isinstance(preset, Preset)])
def test_presets_are_traffic_at_the_rate_that_is_asked_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, f"vllm serve {LLAMA}", "--gpu", "h100", "--preset", name, "--rate", "2", "--slo", "ttft_ms=700")
    scenario = Scenario.load("made.yaml")
    assert scenario.workload.request_rate == 2
    assert scenario.workload.num_prompts == 600
    assert scenario.slo.ttft_ms == 700
    result = simulate(scenario.override({"workload.num_prompts": 60}))
    assert result.summary["completed"] == 60
    if name == "rag":
        assert result.requests["num_cached_tokens"].sum() > 60 * 256


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if isinstance(preset, SessionPreset)])
def test_presets_of_sessions_begin_so_many_that_their_turns_come_at_the_rate(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"vllm serve {LLAMA} --max-model-len 32768"
    init(capsys, line, "--gpu", "h100", "--preset", name, "--rate", "2")
    scenario = Scenario.load("made.yaml")
    assert own_requests_per_s(scenario) == pytest.approx(2, rel=0.25)  # its few sessions' turns, by chance
    assert "Assumed: " in Path("made.yaml").read_text()
    few = scenario.override({"workload.sessions.num_sessions": 4})
    assert few.workload.sessions.max_context == 32768
    result = simulate(few)
    assert result.summary["failed"] == 0
    assert result.requests["num_cached_tokens"].sum() > 0.3 * result.requests["num_prompt_tokens"].sum()


def test_a_trace_is_brought_to_the_rate_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"r{i},{i / 4},100,20\n" for i in range(41))
    Path("mine.csv").write_text("request_id,arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    init(capsys, f"vllm serve {LLAMA}", "--gpu", "h100", "--trace", "mine.csv", "--rate", "2")
    trace = Scenario.load("made.yaml").workload.trace
    assert (trace.path, trace.rate_scale) == ("mine.csv", 0.5)


@pytest.mark.parametrize("rows", ["", "0,5,many\n"])
def test_a_trace_that_does_not_run_is_said_at_once(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    assert run("init", f"vllm serve {LLAMA}", "--gpu", "h100", "--trace", "empty.csv", "-o", "made.yaml") == 2
    assert "empty.csv" in capsys.readouterr().err
    assert not Path("made.yaml").exists()
