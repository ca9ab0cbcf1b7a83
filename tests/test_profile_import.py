import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simbatch.cli.profiles import profiles
from simbatch.profiler.fitting.design import REGIMES, sample_steps
from simbatch.profiler.fitting.fit import judge, judge_bands
from simbatch.profiler.fitting.steps import Steps
from simbatch.profiler.importers.imported import HELD_OUT_SEED, SHARED_CONTEXT, import_llmservingsim
from simbatch.profiler.importers.llmservingsim import OpTables
from simbatch.profiler.model.config import read_model_config
from simbatch.profiler.write import profile_json, write_profile
from simbatch.sim.cost import load_profile
from simbatch.sim.cost.load import shipped_text
from simbatch.sim.errors import UserError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RTX4090 = Path("../shared/gpu/llmservingsim/rtx4090-llama-3.1-8b")
CONFIG = Path("../shared/models/llama-3.1-8b-instruct/config.json")
NAME = "rtx4090-llama-3.1-8b-bf16"

with_measurements = pytest.mark.skipif(
    not (SHARED / "gpu" / "llmservingsim").is_dir(),
    reason="LLMServingSim's raw measurements are not beside the project",
)


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def step(*, chunk=0, history=0, contexts=()):
    contexts = list(contexts)
    row = (
        int(chunk > 0),
        chunk,
        history + chunk,
        chunk * (2 * history + chunk),
        len(contexts),
        sum(contexts),
        min(contexts, default=0),
        max(contexts, default=0),
    )
    return Steps(*(np.array([value]) for value in row))


@with_measurements
@pytest.mark.usefixtures("in_root")
def test_the_command_in_the_shipped_file_writes_the_same_bytes(tmp_path):
    words = load_profile(NAME, folder=Path()).command.split()
    assert words[:3] == ["simbatch", "profiles", "import"]
    output = tmp_path / words[-1]
    result = CliRunner().invoke(profiles, [*words[2:-1], str(output)])
    assert result.exit_code == 0
    assert output.read_text() == shipped_text(NAME)


@with_measurements
@pytest.mark.usefixtures("in_root")
def test_the_held_out_error_in_the_file_is_the_one_recomputed():
    profile = load_profile(NAME, folder=Path())
    tables = OpTables(RTX4090 / "profile", 32, qk_norm=False)
    limits = tables.attention.limits(2048, 2587 * 16 * SHARED_CONTEXT)
    cost = profile.cost_model()
    for regime in REGIMES:
        stated = getattr(profile.fit_error, regime)
        steps = sample_steps(regime, stated.num_steps, limits, HELD_OUT_SEED)
        assert judge(cost, steps, tables.step_time_s(steps)) == stated
        if regime == "decode":
            assert judge_bands(cost, steps, tables.step_time_s(steps)) == profile.fit_error.decode_bands


@with_measurements
@pytest.mark.usefixtures("in_root")
def test_tables_compose_at_measured_points_to_what_the_csv_files_say():
    tables = OpTables(RTX4090 / "profile", 32, qk_norm=False)
    dense = read_csv("dense.csv", "layer", "tokens")
    sequence = read_csv("per_sequence.csv", "layer", "sequences")
    attention = read_csv("attention.csv", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode")

    def by_hand(tokens, sequences, point):
        layer = ("layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
        once = sum(dense[op, tokens] for op in ("embedding", "final_layernorm"))
        once += sum(sequence[op, sequences] for op in ("lm_head", "sampler"))
        return 1e-6 * (once + 32 * (sum(dense[op, tokens] for op in layer) + attention[point]))

    decode = tables.step_time_s(step(contexts=[512] * 64))[0]
    assert decode == pytest.approx(by_hand("64", "64", ("0", "0", "64", "512")), rel=1e-12)
    prefill = tables.step_time_s(step(chunk=512, history=1024))[0]
    assert prefill == pytest.approx(by_hand("512", "1", ("512", "1024", "0", "0")), rel=1e-12)
    mixed = tables.step_time_s(step(chunk=2048 - 16, contexts=[256] * 16))[0]
    low, high = (by_hand("2048", "16", (chunk, "0", "16", "256")) for chunk in ("1024", "2048"))
    assert low < mixed < high * 1.001


@with_measurements
@pytest.mark.usefixtures("in_root")
def test_uneven_contexts_lie_between_the_mean_and_the_longest_by_alpha():
    tables = OpTables(RTX4090 / "profile", 32, qk_norm=False)
    uneven = [256] * 60 + [1024] * 4
    mean = sum(uneven) / 64
    attention = tables.attention
    rate_label = "sr<=15%"  # (304 - 256) / (1024 - 256) = 6.25 %
    alpha = read_csv("skew_fit.csv", "pc", "n_label", "skew_rate_label", "kv_big_label", "kp_label", value="alpha")
    key = ("0", "n<=64", rate_label, "kvB<=1k", "kp=0")
    grid = read_csv("attention.csv", "prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    at_256, at_512, at_1024 = (grid["0", "0", "64", k] for k in ("256", "512", "1024"))
    at_mean = at_256 + (at_512 - at_256) * (mean - 256) / 256
    expected = at_mean + alpha[key] * (at_1024 - at_mean)
    assert attention.time_us(step(contexts=uneven))[0] == pytest.approx(expected, rel=1e-12)


@with_measurements
@pytest.mark.parametrize(
    ("folder", "model"), [("rtxpro6000-llama-3.1-8b", None), ("rtxpro6000-qwen3-32b", "qwen3-32b")]
)
def test_the_other_dense_models_compose_too(folder, model):
    config = read_model_config(SHARED / "models" / (model or "llama-3.1-8b-instruct") / "config.json")
    assert config.qk_norm == (model is not None)
    tables = OpTables(
        SHARED / "gpu" / "llmservingsim" / folder / "profile", config.num_hidden_layers, qk_norm=config.qk_norm
    )
    assert tables.attention.alpha_default_is_stated
    limits = tables.attention.limits(2048, 90_000)
    for regime in REGIMES:
        times = tables.step_time_s(sample_steps(regime, 200, limits, seed=1))
        assert times.min() > 0.008
        assert times.max() < 2


@with_measurements
@pytest.mark.parametrize(
    ("model", "parameters", "kv_bytes"),
    [
        ("llama-3.1-8b-instruct", 8_030_261_248, 131_072),
        ("llama-3.1-70b-instruct", 70_553_706_496, 327_680),
        ("qwen3-32b", 32_762_123_264, 262_144),
        ("llama-2-7b-hf", 6_738_415_616, 524_288),
    ],
)
def test_weights_and_kv_bytes_follow_from_the_config(model, parameters, kv_bytes):
    config = read_model_config(SHARED / "models" / model / "config.json")
    assert config.num_parameters == parameters
    assert config.kv_bytes_per_token == kv_bytes


def test_what_is_written_is_read_back(tmp_path):
    profile = load_profile(NAME, folder=Path())
    path = tmp_path / "deep" / "copy.json"
    write_profile(profile, path)
    write_profile(profile, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["copy.json"]
    assert load_profile(str(path), folder=Path()) == profile
    assert path.read_text() == profile_json(profile) == shipped_text(NAME)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("profile/meta.yaml", "gpu: [", r"meta.yaml: cannot be read"),
        ("profile/meta.yaml", "gpu: x", r"meta.yaml: keys missing: model, variant"),
        ("profile/tp1/dense.csv", "layer,tokens\nx,1\n", r"dense.csv: columns missing: time_us"),
        ("profile/tp1/dense.csv", "layer,tokens,time_us\n", r"dense.csv: no rows"),
        ("profile/tp1/dense.csv", "layer,tokens,time_us\nlayernorm,1,fast\n", r"dense.csv:2 time_us: must be a finite"),
        ("profile/tp1/dense.csv", "layer,tokens,time_us\nlayernorm,1,2\n", r"dense.csv: ops missing: qkv_proj"),
        ("config.json", '{"architectures": ["MixtralForCausalLM"]}', r"config.json architectures: only dense"),
        ("config.json", '{"architectures"', r"config.json:1:17: not JSON"),
        ("meta.json", "[]", r"meta.json: must be an object"),
        ("meta.json", '{"engine_kwargs": {}}', r"meta.json kv_cache: must be an object"),
    ],
)
def test_wrong_measurements_are_named(tmp_path, file, text, expected):
    config = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config |= {"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "max_position_embeddings": 4096}
    cache = {"num_gpu_blocks": 100, "block_size": 16, "gpu_memory_utilization": 0.9}
    meta = {
        "engine_kwargs": {"max_model_len": 1024, "max_num_batched_tokens": 2048},
        "kv_cache": cache,
        "hardware": {"device_total_memory_bytes": 10**9},
    }
    (tmp_path / "profile" / "tp1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    keys = {"gpu": "x", "model": "a/b", "variant": "bf16", "vllm_version": "0.19.0"}
    (tmp_path / "profile" / "meta.yaml").write_text(json.dumps(keys))
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        import_llmservingsim(tmp_path / "profile", tmp_path / "config.json", tmp_path / "meta.json", "x.json")


def test_without_a_run_the_blocks_are_not_guessed(tmp_path):
    with pytest.raises(UserError, match=r"--run-meta: the number of KV blocks is not in the op tables"):
        import_llmservingsim(tmp_path, tmp_path / "config.json", None, "x.json")
    with pytest.raises(UserError, match=r"--tensor-parallel-size: only 1 can be imported so far"):
        import_llmservingsim(tmp_path, tmp_path / "config.json", None, "x.json", 2)


def test_list_and_show_print_what_tells_profiles_apart():
    listed = CliRunner().invoke(profiles, ["list"])
    assert listed.exit_code == 0
    assert NAME in listed.output
    facts = json.loads(CliRunner().invoke(profiles, ["list", "--json"]).output)
    assert NAME in [entry["name"] for entry in facts]
    shown = CliRunner().invoke(profiles, ["show", NAME])
    assert "2588 (vllm)" in shown.output
    assert "MIT" in shown.output
    assert CliRunner().invoke(profiles, ["show", NAME, "--json"]).output == shipped_text(NAME)


def read_csv(name, *keys, value="time_us"):
    import csv

    folder = SHARED / "gpu" / "llmservingsim" / "rtx4090-llama-3.1-8b" / "profile" / "tp1"
    with (folder / name).open(newline="") as file:
        return {tuple(row[key] for key in keys): float(row[value]) for row in csv.DictReader(file)}
