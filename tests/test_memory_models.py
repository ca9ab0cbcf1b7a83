"""Memory of today's models: layouts against what vLLM logged, checkpoints' own facts, names, lists and pictures."""

import json

import pytest

from simbatch import UserError, plan_memory
from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.model.kv_layout import kv_layout
from simbatch.profiler.model.published import find_model, published_models
from simbatch.profiler.model.weights import weights_of
from tests import run_command
from tests.made_samples import LLAMA_8B, llama

GIB = 2**30
PARAMETERS = {  # in billions, as their makers say
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),
    "Qwen/Qwen3.5-35B-A3B": (34.7, 3.5),
    "openai/gpt-oss-120b": (116.8, 5.8),
    "deepseek-ai/DeepSeek-V3": (671.0, 37.6),
    "moonshotai/Kimi-K2-Instruct": (1026.4, 32.9),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (107.8, 17.2),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 3.6),
}
COUNTED = {  # tensors of the published checkpoints; of GLM without the routers' biases, which are not in every count
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-27b-it": 27_227_128_320,
    "microsoft/Phi-3.5-mini-instruct": 3_821_079_552,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79_674_391_296,
    "zai-org/GLM-4.5-Air": 106_852_245_504,
    "zai-org/GLM-4.5": 352_797_829_632,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "LiquidAI/LFM2-1.2B": 1_170_340_608,
    "internlm/internlm3-8b-instruct": 8_804_241_408,
    "ibm-granite/granite-3.3-8b-instruct": 8_170_864_640,
    "CohereLabs/c4ai-command-r7b-12-2024": 8_028_033_024,
    "LGAI-EXAONE/EXAONE-4.0-32B": 32_003_216_384,
    "baidu/ERNIE-4.5-21B-A3B-PT": 21_825_437_888,
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": 49_867_145_216,
}


def config_of(name):
    return find_model(name)[0]


def out_of(capsys, *words):
    return run_command(capsys, "memory", *words)


@pytest.mark.parametrize(("name", "billions"), PARAMETERS.items())
def test_parameters_are_what_makers_say(name, billions):
    config = config_of(name)
    assert (config.num_parameters / 1e9, config.num_active_parameters / 1e9) == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize(("name", "number"), COUNTED.items())
def test_configs_written_by_hand_have_as_many_parameters_as_their_checkpoints(name, number):
    assert config_of(name).num_parameters == pytest.approx(number, rel=2e-7)


def test_groups_of_windows_are_those_of_a_log():
    """Gemma 3 27B on a MI300X (vLLM 0.11): 89,994 blocks of 109.86 GiB, logged as 205,696 tokens."""
    layout = kv_layout(config_of("google/gemma-3-27b-it"), max_num_batched_tokens=8192, batches=1)
    assert layout.num_blocks(89_994 * layout.bytes_per_block) == 89_994
    assert 89_994 * layout.bytes_per_block / GIB == pytest.approx(109.86, abs=0.005)
    assert 89_994 // len(layout.groups) * 16 == 205_696


@pytest.mark.parametrize(
    ("gpus", "states", "kv_gib", "tokens"), [(1, 1, 6.93, 216_946), (2, 2, 4.99, 302_921)]
)  # logs: a 5090, and two 3090 with prefix caching
def test_states_share_blocks_with_attention(gpus, states, kv_gib, tokens):
    layout = kv_layout(config_of("Qwen/Qwen3.5-27B"), "fp8", gpus, states=states)
    assert layout.block_size == 1568
    assert layout.tokens(layout.num_blocks(int(kv_gib * GIB)), 131_072) == tokens


@pytest.mark.parametrize(("version", "states"), [("0.27.1", 1), ("0.28.0", 2)])
def test_prefixes_of_states_are_cached_unasked_since_0_28(version, states):
    def plan(**more):
        return plan_memory("Qwen/Qwen3.5-27B", "h100", max_model_len=8192, vllm_version=version, **more).layout.states

    assert (plan(), plan(enable_prefix_caching=True), plan(enable_prefix_caching=False)) == (states, 2, 1)


def test_tokens_are_logged_by_requests_since_0_20_1():
    """Gemma 4 31B on an A100: the same blocks are some 55,000 tokens in 0.20.0 and ten times that in 0.20.1."""
    old, new = (
        plan_memory(
            "nvidia/Gemma-4-31B-IT-NVFP4", "a100", quantisation="awq", kv_cache_dtype="bfloat16", vllm_version=version
        )
        for version in ("0.20.0", "0.20.1")
    )
    assert old.num_gpu_blocks == new.num_gpu_blocks
    assert old.kv_cache_tokens == pytest.approx(55_000, rel=0.1)
    assert 9 < new.kv_cache_tokens / old.kv_cache_tokens < 11


def test_latent_vectors_are_on_every_gpu():
    config = config_of("deepseek-ai/DeepSeek-V3")
    assert kv_layout(config).bytes_per_token(4096) == kv_layout(config, "auto", 8).bytes_per_token(4096) == 61 * 576 * 2
    sparse = config_of("deepseek-ai/DeepSeek-V3.2")
    assert kv_layout(sparse, "fp8").bytes_per_token(4096) == 61 * (656 + 132)


def test_a_model_of_windows_holds_more_requests_than_one_without():
    windows, whole = (
        plan_memory(model_config_of({**LLAMA_8B, "architectures": ["MistralForCausalLM"], **more}, ""), "h100")
        for more in ({"sliding_window": 4096}, {})
    )
    assert windows.num_gpu_blocks == whole.num_gpu_blocks
    assert windows.kv_cache_tokens > 4 * whole.kv_cache_tokens


def test_whole_experts_or_a_share_of_each():
    config = config_of("Qwen/Qwen3-30B-A3B")
    alone, tensor, expert = (
        weights_of(config, "bf16", size, expert_parallel=whole).layers
        for size, whole in ((1, False), (8, False), (8, True))
    )
    assert expert == tensor < alone / 6
    with pytest.raises(UserError, match="must divide"):  # 768 is no multiple of 512
        weights_of(config, "bf16", 512)


def test_exceptions_of_a_checkpoint_stay_as_published():
    linear = {"quant_method": "fp8"}
    whole, spared, first = (
        weights_of(llama(quantization_config={**linear, **more}), "fp8").layers
        for more in ({}, {"ignore": ["re:.*self_attn.*"]}, {"modules_to_not_convert": ["model.layers.0.mlp"]})
    )
    attention = 4096 * (6144 + 4096)  # one byte more a weight, no scales
    assert spared - whole == 32 * (attention - 4 * (6144 + 4096))
    assert first - whole == 3 * 4096 * 14336 - 4 * (2 * 14336 + 4096)


def test_the_kv_type_of_a_checkpoint_is_followed_and_said(tmp_path, capsys):
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"},
              "config_groups": {"g": {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8}}}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "quantization_config": scheme}))
    _, out, _ = out_of(capsys, tmp_path, "--gpu", "h100", "--json")
    answer = json.loads(out)
    assert {one["key"]: one["value"] for one in answer["figures"]}["kv_per_token"] == 65_536
    assert "checkpoint's quantization_config says so" in " ".join(answer["notes"])
    assert answer["kv_cache_tokens_low"] < answer["kv_cache_tokens"] < answer["kv_cache_tokens_high"]
    assert answer["num_gpu_blocks"] * answer["block_size"] == answer["kv_cache_tokens"]


def test_modelopts_file_beside_the_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    own = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    config = read_model_config(tmp_path)
    assert (config.quantisation, config.checkpoint.kv_cache_dtype) == ("nvfp4", "fp8")


def test_all_shipped_models_are_planned_and_found_by_their_names():
    assert len(published_models()) > 100
    for name in published_models():
        config = config_of(name)
        assert weights_of(config, config.quantisation or "bf16", 2 if "Qwen2.5-0.5B" not in name else 1).total > 0
        assert kv_layout(config).bytes_per_block > 0


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("Qwen/Qwen3-14B-AWQ", "awq"),
        ("cyankiwi/Qwen3-30B-A3B-Instruct-2507-AWQ-4bit", "awq"),
        ("nvidia/Qwen3-32B-FP4", "nvfp4"),
        ("qwen2.5-7b-instruct-gptq-int4", "gptq"),
        ("Qwen/Qwen2.5-14B-Instruct", None),
    ],
)
def test_a_variant_of_a_known_model_is_planned_as_it_and_said(name, quantisation):
    config, short, notes = find_model(name)
    assert (config.quantisation, short) == (quantisation, name.rsplit("/", 1)[-1])
    assert notes[0].startswith(f"{name} is planned as Qwen/")


@pytest.mark.parametrize(
    ("name", "window", "length"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.1", 4096, 32_768),
        ("TheBloke/Mistral-7B-Instruct-v0.2-AWQ", None, 32_768),
        ("mistralai/Mistral-7B-Instruct-v0.3", None, 32_768),
        ("Qwen/Qwen3-4B-Thinking-2507", None, 262_144),
        ("deepseek-ai/DeepSeek-R1-0528", None, 163_840),
    ],
)
def test_versions_and_known_dates_of_a_name_count(name, window, length):
    config = config_of(name)
    assert (config.window, config.max_position_embeddings) == (window, length)


def test_an_unknown_architecture_is_planned_when_one_is_assumed(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "architectures": ["NewForCausalLM"]}))
    code, _, err = out_of(capsys, tmp_path, "--gpu", "h100")
    assert code == 2
    assert "--assume LlamaForCausalLM" in err
    _, out, _ = out_of(capsys, tmp_path, "--gpu", "h100", "--assume", "LlamaForCausalLM")
    assert "NewForCausalLM is not known: planned with the layers that its config.json says" in out
    assert plan_memory(tmp_path, "h100", assume="LlamaForCausalLM").weights_bytes == 16_060_522_496


def test_a_wrapper_that_is_not_known_is_planned_as_the_decoder_in_it():
    content = {"architectures": ["SomeVLForConditionalGeneration"], "vision_config": {"depth": 4, "hidden_size": 64}}
    text = {key: value for key, value in LLAMA_8B.items() if key != "architectures"}
    config = model_config_of({**content, "text_config": {**text, "model_type": "llama"}}, "config.json")
    assert config.num_parameters == llama().num_parameters
    assert config.assumed[0].startswith("SomeVLForConditionalGeneration is planned as the LlamaForCausalLM in it")


def test_reserves_follow_the_version_and_the_flags():
    def plan(**more):
        return plan_memory("Qwen/Qwen3-8B", "l40s", max_model_len=8192, **more)

    old, new = plan(vllm_version="0.19.0"), plan(vllm_version="0.32.0")
    assert (old.gpu_memory_utilization, new.gpu_memory_utilization) == (0.9, 0.92)
    assert old.graphs_bytes == 0 < new.graphs_bytes
    assert old.activation_bytes > 3 * new.activation_bytes  # the older runner sorts
    assert plan(enforce_eager=True).graphs_bytes == 0
    assert plan(max_num_seqs=16).graphs_bytes < new.graphs_bytes / 4


def test_memory_alone_is_enough(capsys):
    code, out, _ = out_of(capsys, "Qwen/Qwen3-8B", "--memory", "24GiB", "--prompt-len", 500, "--output-len", 256)
    assert code == 0
    assert out.splitlines()[0].startswith("44 requests of 500 + 256 fit (")


def test_the_list_has_what_fits_and_holds_the_context(capsys):
    _, out, _ = out_of(capsys, "--gpu", "rtx3090", "--list", "--context", "32k", "--json")
    rows = json.loads(out)
    assert {"Qwen/Qwen3-8B", "openai/gpt-oss-20b"} < {row["model"] for row in rows}
    assert all(row["weights_gib"] < 22 and row["kv_cache_tokens"] >= 32_768 for row in rows)
    assert all(0 < row["tokens_per_s_at_1"] <= row["tokens_per_s_at_batch"] for row in rows)
    assert "models and types of weights hold a request of 2,048 tokens" in out_of(capsys, "--gpu", "t4", "--list")[1]


def test_memory_by_batch_as_a_table_and_a_picture(tmp_path, capsys):
    lengths = ("--prompt-len", 500, "--output-len", 256, "--max-model-len", 8192)
    model = ("Qwen/Qwen3-8B", "--gpu", "rtx4090", *lengths)
    _, out, _ = out_of(capsys, *model, "--batches", "1,8,500", "--plot", tmp_path / "memory.png")
    rows = out.split("Memory in GiB by requests that run at once\n")[1].splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["1", "8", "500"]
    assert rows[1].endswith("fits")
    assert rows[3].endswith("above 21.64 GiB")
    assert (tmp_path / "memory.png").read_bytes()[:4] == b"\x89PNG"
