"""Layouts and weights of every architecture against vLLM itself, on its CPU build.

Where that build constructs the model, its own layers say what they keep; where it does not (sparse attention, experts
without a gate, most KV types), the specs are made by hand from vLLM's classes, as its GPU backends make them.

The memory planner against vLLM itself: blocks that its engine makes, and bytes of the weights that it allocates.

One engine is started; the other configurations go through vLLM's own functions, and the models of any size are built
on torch's meta device, which gives every parameter its shape and type and no memory.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.model.kv_layout import kv_layout
from simbatch.profiler.model.memory_plan import kv_bytes_per_token, num_blocks
from simbatch.profiler.model.weights import weights_of
from simbatch.profiler.server.start import EngineOptions
from tests.made_samples import LLAMA_8B, SHARED
from tests.vllm.engine_inside import EngineInside
from tests.vllm.small_models import LATENT, SIZES, SMALL, know_own_code

MODELS = Path(__file__).parent / "models"
KV_BYTES = 123_456_789  # no whole number of blocks
DENSE = ("llama-3.1-8b-instruct", "llama-3.1-70b-instruct", "llama-2-7b-hf", "qwen2.5-7b-instruct", "qwen3-14b",
         "qwen3-32b", "mistral-nemo-instruct-2407", "yi-34b", "codellama-34b-instruct-hf")  # fmt: skip
FP8 = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "channel", "dynamic": False}
INT4 = {"type": "int", "num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
BY_TOKEN = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
WEIGHT_SIZES = (2, 4, 8, 16)  # with 16, its 8 KV heads are there twice
SCALES_OF_KV = 18 * 32  # compressed-tensors keeps three scales and zero points of q, k and v in every layer


def compressed(form, weights, activations):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}
    kind = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": ["lm_head"]}
    return {**kind, "format": form, "config_groups": groups}


QUANTISED = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, 0),
    "awq-64": ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}, 0),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}, 0),
    "int8": (compressed("int-quantized", {**FP8, "type": "int"}, {**BY_TOKEN, "type": "int"}), SCALES_OF_KV),
    "fp8": (compressed("float-quantized", FP8, {**BY_TOKEN, "type": "float"}), SCALES_OF_KV),
    # and the shape of each of the four linear layers of a layer, two int64
    "int4": (compressed("pack-quantized", INT4, None), SCALES_OF_KV + 64 * 32),
}


@pytest.fixture(scope="module", autouse=True)
def engine():
    extra = {"enforce_eager": True, "kv_cache_memory_bytes": KV_BYTES, "load_format": "dummy"}
    limits = {"max_num_seqs": 8, "max_num_batched_tokens": 128, "max_model_len": 1024}
    engine = EngineInside(EngineOptions(str(MODELS / "tiny-llama"), **limits, extra=extra))
    yield engine
    engine.close()


def vllm_config_of(folder, **args):
    from vllm.engine.arg_utils import EngineArgs

    common = {"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True, "max_model_len": 1024}
    return EngineArgs(model=str(folder), **common, **args).create_engine_config()


@contextmanager
def gpus(size):
    """As one of so many: vLLM shards by the size of its group alone."""
    from vllm.distributed import parallel_state

    group = parallel_state.get_tp_group()
    experts = parallel_state._EP
    group.world_size, parallel_state._EP = size, group
    try:
        yield
    finally:
        group.world_size, parallel_state._EP = 1, experts


def built(folder, size=1, **args):
    """A configuration as vLLM resolves it, and its model without memory."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = vllm_config_of(folder, **args)
    dtype = set_default_torch_dtype(config.model_config.dtype)
    with gpus(size), set_current_vllm_config(config), dtype, torch.device("meta"):
        return config, initialize_model(vllm_config=config)


def allocated_bytes(folder, size=1):
    _, model = built(folder, size)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def made_blocks(engine, available, folder, size=1, **args):
    """Block size and blocks that vLLM makes of so many bytes, asking the model's own attention layers."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs

    config, _ = built(folder, size, **args)
    config.cache_config.kv_cache_layout = engine.engine.vllm_config.cache_config.kv_cache_layout
    layers = config.compilation_config.static_forward_context
    with set_current_vllm_config(config):
        specs = {name: layer.get_kv_cache_spec(config) for name, layer in layers.items()}
        (made,) = get_kv_cache_configs(config, [specs], [available])
    return config.cache_config.block_size, made.num_blocks


def published(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no configuration of {name} beside the project")
    return SHARED / name


def test_a_real_engine_makes_the_planned_blocks(engine):
    config, facts = read_model_config(MODELS / "tiny-llama"), engine.facts
    assert facts["block_size"] == 128
    assert facts["kv_bytes_per_token"] == kv_bytes_per_token(config)
    assert facts["num_gpu_blocks"] == num_blocks(KV_BYTES, kv_bytes_per_token(config), facts["block_size"])


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8", "fp8_e5m2"])
@pytest.mark.parametrize("block_size", [None, 32, 256])
@pytest.mark.parametrize("available", [10**8, 2**30, 2**33 + 1])
def test_vllm_makes_the_planned_blocks(engine, kv_cache_dtype, block_size, available):
    folder = MODELS / "tiny-llama"
    tokens, blocks = made_blocks(engine, available, folder, kv_cache_dtype=kv_cache_dtype, block_size=block_size)
    assert tokens == (block_size or 128)
    assert blocks == num_blocks(available, kv_bytes_per_token(read_model_config(folder), kv_cache_dtype), tokens)


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 1) for name in DENSE), *(("llama-3.1-8b-instruct", n) for n in WEIGHT_SIZES)]
)
def test_vllm_makes_the_planned_blocks_of_published_models(engine, name, size):
    folder = published(name)
    tokens, blocks = made_blocks(engine, 10**10, folder, size)
    assert blocks == num_blocks(10**10, kv_bytes_per_token(read_model_config(folder), "auto", size), tokens)


@pytest.mark.parametrize("name", [*DENSE, "mixtral-8x7b-v0.1"])
def test_weights_are_what_vllm_allocates(name):
    folder = published(name)
    assert weights_of(read_model_config(folder), "bf16").total == allocated_bytes(folder)


@pytest.mark.parametrize("size", WEIGHT_SIZES)
def test_a_gpus_share_of_the_weights_is_what_vllm_allocates(size):
    folder = published("llama-3.1-8b-instruct")
    assert weights_of(read_model_config(folder), "bf16", size).total == allocated_bytes(folder, size)


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_what_vllm_allocates(name, tmp_path):
    quantised, more = QUANTISED[name]
    content = {**LLAMA_8B, "model_type": "llama", "rms_norm_eps": 1e-5, "quantization_config": quantised}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_model_config(tmp_path)
    assert config.quantisation == name.partition("-")[0]
    assert allocated_bytes(tmp_path) == weights_of(config, config.quantisation).total + more


AVAILABLE = 10**9


def layout_of(config, made, **more):
    """Ours under what vLLM resolved."""
    states = 2 if made.cache_config.mamba_cache_mode == "align" else 1
    in_flight = made.scheduler_config.max_num_batched_tokens, made.max_concurrent_batches
    return kv_layout(config, max_num_batched_tokens=in_flight[0], batches=in_flight[1], states=states, **more)


def capacity(config, specs, engine):
    """Blocks that vLLM makes of these layers, and the tokens that it logs."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs

    config.cache_config.kv_cache_layout = engine.engine.vllm_config.cache_config.kv_cache_layout
    chunked = config.model_config.attention_chunk_size is not None
    config.scheduler_config.disable_hybrid_kv_cache_manager = chunked  # as on a GPU (config/vllm.py)
    with set_current_vllm_config(config):
        (made,) = get_kv_cache_configs(config, [specs], [AVAILABLE])
        return made.num_blocks, get_kv_cache_capacity(config, made)[0]


@pytest.mark.parametrize("name", SMALL)
def test_weights_blocks_and_logged_tokens_are_vllms(name, tmp_path, engine):
    from vllm.config import set_current_vllm_config
    from vllm.platforms import current_platform

    (tmp_path / "config.json").write_text(json.dumps(SMALL[name]))
    config = read_model_config(tmp_path)
    know_own_code()
    made, model = built(tmp_path)
    weights = weights_of(config, "bf16")
    assert sum(one.numel() * one.element_size() for one in model.parameters()) == weights.total - weights.copies
    with set_current_vllm_config(made):
        current_platform.update_block_size_for_backend(made)
        layers = made.compilation_config.static_forward_context
        specs = {layer: it.get_kv_cache_spec(made) for layer, it in layers.items() if hasattr(it, "get_kv_cache_spec")}
    has_states = any(one.kind == "state" for layer in config.layers for one in layer.kept())
    own = 128 if has_states else made.cache_config.block_size  # 128 is what a CPU begins with
    layout = layout_of(config, made, block_size=own)
    assert layout.block_size == made.cache_config.block_size
    blocks, tokens = capacity(made, specs, engine)
    assert layout.num_blocks(AVAILABLE) == blocks
    assert layout.tokens(blocks, 1024) == tokens


def hand_made(spec, tmp_path, engine):
    """What vLLM makes of a spec for each layer, under a small model's configuration."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL["LlamaForCausalLM"]))
    made, _ = built(tmp_path)
    return made, capacity(made, {f"layer.{i}": one for i, one in enumerate(spec)}, engine)


def test_sparse_mla_with_its_indexer(tmp_path, engine):
    """DeepSeek V3.2 in FlashMLA's packed form: latent vectors and the indexer's keys, one group."""
    import torch
    from vllm.v1.kv_cache_interface import MLAAttentionSpec, SparseCacheRole

    content = {"architectures": ["DeepseekV32ForCausalLM"], **SIZES, **LATENT}
    content |= {"index_topk": 64, "index_n_heads": 4, "index_head_dim": 128}
    config = model_config_of(content, "config.json")
    latent = MLAAttentionSpec(block_size=64, num_kv_heads=1, head_size=96, dtype=torch.uint8, state_content_bytes=656)
    indexer = MLAAttentionSpec(
        block_size=64, num_kv_heads=1, head_size=132, dtype=torch.uint8, cache_role=SparseCacheRole.INDEXER
    )
    made, (blocks, tokens) = hand_made([latent, indexer] * 4, tmp_path, engine)
    layout = layout_of(config, made, kv_cache_dtype="fp8_ds_mla")
    assert (layout.num_blocks(AVAILABLE), layout.tokens(blocks, 1024)) == (blocks, tokens)


@pytest.mark.parametrize(
    "dtype",
    ["int8_per_token_head", "fp8_per_token_head", "int4_per_token_head", "nvfp4", "turboquant_k8v4",
     "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc", "ultraquant_4bit"],
)  # fmt: skip
def test_packed_kv_types(dtype, tmp_path, engine):
    """A full attention layer of four heads of 64 as the backends that know these types pack it.

    Those backends need Triton or FlashInfer, so their sums stand here: Triton's (triton_attn.py) and FlashInfer's
    (flashinfer.py); TurboQuant's and UltraQuant's own functions run anywhere.
    """
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode

    plain = FullAttentionSpec(
        block_size=16, num_kv_heads=4, head_size=64, dtype=torch.uint8, kv_quant_mode=get_kv_quant_mode(dtype)
    )
    if dtype == "nvfp4":
        packed = replace(plain, num_head_slots=8, state_content_bytes=64 // 2 + 64 // 16)
    else:
        packed = replace(plain, state_content_bytes=slot_bytes(dtype))
    made, (blocks, tokens) = hand_made([packed] * 4, tmp_path, engine)
    layout = layout_of(model_config_of(SMALL["LlamaForCausalLM"], "config.json"), made, kv_cache_dtype=dtype)
    assert (layout.num_blocks(AVAILABLE), layout.tokens(blocks, 1024)) == (blocks, tokens)


def slot_bytes(dtype):
    """Of one head and token, keys and values of 64 numbers."""
    if dtype.startswith("turboquant"):
        from vllm.model_executor.layers.quantization.turboquant.config import TurboQuantConfig

        return TurboQuantConfig.from_cache_dtype(dtype, 64).slot_size_aligned
    if dtype == "ultraquant_4bit":
        from vllm.v1.attention.ops.ultraquant.format import slot_size

        return slot_size(64)
    numbers = 64 // 2 if dtype.startswith("int4") else 64
    return 2 * (numbers + 4)
