import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from simbatch.cli.profiles import profiles
from simbatch.profiler.fit.choose import REGIMES, judge, judge_bands
from simbatch.profiler.importers import context_tokens, import_profile
from simbatch.profiler.importers.llmservingsim import OpTables
from simbatch.profiler.importers.source import HELD_OUT_SEED, ImportRequest, LinkAllReduce, sample_steps
from simbatch.profiler.model.config import read_model_config
from simbatch.profiler.records import Steps
from simbatch.sim.cost import load_profile
from simbatch.sim.cost.by_name import profile_json, shipped_text, write_profile
from simbatch.sim.cost.provenance import Link
from simbatch.sim.errors import UserError

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RTX4090 = Path("../shared/gpu/llmservingsim/rtx4090-llama-3.1-8b")
CONFIG = Path("../shared/models/llama-3.1-8b-instruct/config.json")
MIXTRAL = Path("../shared/models/mixtral-8x7b-v0.1/config.json")
NAME = "rtx4090-llama-3.1-8b-bf16"
LINK = Link(latency_s=40e-6, bandwidth_bytes_per_s=16e9)

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
def test_the_held_out_error_in_the_file_is_the_one_recomputed():
    profile = load_profile(NAME, folder=Path())
    tables = OpTables(RTX4090 / "profile", read_model_config(CONFIG), 1, None)
    limits = tables.limits(context_tokens(2587 * 16))
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
    tables = OpTables(RTX4090 / "profile", read_model_config(CONFIG), 1, None)
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
    tables = OpTables(RTX4090 / "profile", read_model_config(CONFIG), 1, None)
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
@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(("folder", "model"), [("llama-3.1-8b", "llama-3.1-8b-instruct"), ("qwen3-32b", "qwen3-32b")])
def test_two_gpus_take_half_the_work_and_two_all_reduces_a_layer(folder, model):
    profile = Path(f"../shared/gpu/llmservingsim/rtxpro6000-{folder}/profile")
    config = read_model_config(Path(f"../shared/models/{model}/config.json"))
    all_reduce = LinkAllReduce(LINK, 2)
    one, two_silent = (OpTables(profile, config, degree, None) for degree in (1, 2))
    two = OpTables(profile, config, 2, all_reduce)
    assert one.attention.alpha_default_is_stated
    assert two.attention.alpha_default != one.attention.alpha_default
    for steps in (step(contexts=[1024] * 64), step(chunk=2048)):
        talk = two.step_time_s(steps) - two_silent.step_time_s(steps)
        calls = 2 * config.num_hidden_layers
        assert talk[0] == pytest.approx(calls * all_reduce.time_s(steps.num_tokens, config.hidden_size)[0])
        assert 0.4 < two_silent.step_time_s(steps)[0] / one.step_time_s(steps)[0] < 0.62


def test_all_reduce_over_a_link_is_latency_and_the_ring_s_bytes():
    tokens = np.array([1, 2048])
    assert LinkAllReduce(LINK, 2).time_s(tokens, 4096) == pytest.approx(40e-6 + tokens * 8192 / 16e9)
    assert LinkAllReduce(LINK, 4).time_s(tokens, 4096) == pytest.approx(40e-6 + 1.5 * tokens * 8192 / 16e9)


@with_measurements
@pytest.mark.usefixtures("in_root")
def test_norms_and_sampler_are_read_from_one_gpu_s_tables(tmp_path):
    source = Path("../shared/gpu/llmservingsim/rtxpro6000-llama-3.1-8b/profile")
    copy = tmp_path / "profile"
    shutil.copytree(source, copy)
    for file, ops in (("dense.csv", ("layernorm", "final_layernorm")), ("per_sequence.csv", ("sampler",))):
        lines = (copy / "tp2" / file).read_text().splitlines(keepends=True)
        (copy / "tp2" / file).write_text("".join(line for line in lines if line.split(",")[0] not in ops))
    config = read_model_config(CONFIG)
    steps = step(chunk=100, contexts=[300] * 20)
    assert OpTables(copy, config, 2, None).step_time_s(steps) == OpTables(source, config, 2, None).step_time_s(steps)


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
        ("config.json", '{"architectures": ["GPT2LMHeadModel"]}', r"config.json architectures: is not among"),
        ("config.json", '{"architectures"', r"config.json:1:17: not valid JSON"),
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
    keys = {"gpu": "NVIDIA GeForce RTX 4090", "model": "a/b", "variant": "bf16", "vllm_version": "0.19.0"}
    (tmp_path / "profile" / "meta.yaml").write_text(json.dumps(keys))
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=expected):
        import_profile(
            ImportRequest(
                "llmservingsim",
                tmp_path / "profile",
                "x.json",
                model_config=tmp_path / "config.json",
                run_meta=tmp_path / "meta.json",
            )
        )


@with_measurements
@pytest.mark.usefixtures("in_root")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tensor_parallel_size": 2}, r"--link-us: the all-reduce between GPUs is not in LLMServingSim's tables"),
        ({"greedy": True}, r"--greedy: means nothing with --from llmservingsim"),
        ({"link": LINK}, r"--link-us: one GPU needs no link"),
        ({"kv_cache_dtype": "fp8"}, r"--kv-cache-dtype: was not measured here"),
        ({"model_config": MIXTRAL}, r"mixtral.* architectures: only dense decoders can be imported"),
        ({"model_config": None}, r"--model-config: this source needs the model's config.json"),
    ],
)
def test_what_llmservingsim_did_not_measure_is_refused(options, expected):
    asked = {"model_config": CONFIG, **options}
    with pytest.raises(UserError, match=expected):
        import_profile(ImportRequest("llmservingsim", RTX4090 / "profile", "x.json", **asked))


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
