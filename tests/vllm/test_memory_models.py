"""Layouts and weights of every architecture against vLLM itself, on its CPU build.

Where that build constructs the model, its own layers say what they keep; where it does not (sparse attention, experts
without a gate, most KV types), the specs are made by hand from vLLM's classes, as its GPU backends make them.
"""

import json
from dataclasses import replace

import pytest

from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.model.kv_layout import kv_layout
from simbatch.profiler.model.weights import weights_of
from tests.vllm.small_models import LATENT, SIZES, SMALL, know_own_code
from tests.vllm.test_memory_blocks import built, engine  # noqa: F401 - the engine is this module's too

AVAILABLE = 10**9


def layout_of(config, made, **more):
    """Ours under what vLLM resolved."""
    states = 2 if made.cache_config.mamba_cache_mode == "align" else 1
    in_flight = made.scheduler_config.max_num_batched_tokens, made.max_concurrent_batches
    return kv_layout(config, max_num_batched_tokens=in_flight[0], batches=in_flight[1], states=states, **more)


def capacity(config, specs, engine):  # noqa: F811
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
def test_weights_blocks_and_logged_tokens_are_vllms(name, tmp_path, engine):  # noqa: F811
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


def hand_made(spec, tmp_path, engine):  # noqa: F811
    """What vLLM makes of a spec for each layer, under a small model's configuration."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL["LlamaForCausalLM"]))
    made, _ = built(tmp_path)
    return made, capacity(made, {f"layer.{i}": one for i, one in enumerate(spec)}, engine)


def test_sparse_mla_with_its_indexer(tmp_path, engine):  # noqa: F811
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
def test_packed_kv_types(dtype, tmp_path, engine):  # noqa: F811
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
