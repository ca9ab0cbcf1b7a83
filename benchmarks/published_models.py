"""Make `profiler/model/published.json` again: the figures of public models' configs, by Hugging Face name.

    python -m benchmarks.published_models FOLDER [--shared ../shared/models] [--write]

FOLDER is `aiconfigurator_core/model_configs` of the package aiconfigurator-core (PyPI, Apache-2.0). Only the keys that
shapes and storage hang on are kept; names of layers become patterns where all layers of a kind are alike.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import parser_of
from simbatch.profiler.model.checkpoint import bare
from simbatch.profiler.model.config import ModelConfig, model_config_of
from simbatch.profiler.model.weights import weights_of
from simbatch.sim.errors import UserError

OUT = Path(__file__).parents[1] / "profiler" / "model" / "published.json"
SOURCE = (
    "figures of the models' own config.json, as collected by aiconfigurator-core 0.12 (github.com/ai-dynamo/"
    "aiconfigurator, Apache-2.0) or published by their makers; shapes are facts, each model has a licence of its own"
)
KEPT = [
    "architectures", "model_type", "torch_dtype", "dtype", "tie_word_embeddings", "num_hidden_layers",
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "max_position_embeddings", "attention_bias", "mlp_bias", "layer_types", "sliding_window",
    "use_sliding_window", "sliding_window_pattern", "attention_chunk_size", "no_rope_layers", "num_experts",
    "num_local_experts", "n_routed_experts", "num_experts_per_tok", "top_k_experts", "experts_per_token",
    "moe_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size", "n_shared_experts", "num_shared_experts", "first_k_dense_replace",
    "mlp_layer_types", "mlp_only_layers", "decoder_sparse_step", "interleave_moe_layer_step",
    "intermediate_size_mlp", "topk_method", "use_routing_bias", "use_qk_norm", "kv_lora_rank", "q_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_topk", "index_n_heads", "index_head_dim",
    "index_topk_freq", "index_skip_topk_offset", "linear_num_key_heads", "linear_num_value_heads",
    "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim", "full_attention_interval",
    "mamba_ssm_dtype", "attn_output_gate", "hybrid_override_pattern", "layers_block_type", "mamba_num_heads",
    "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_conv_bias", "mamba_ssm_cache_dtype",
    "moe_num_experts", "moe_k", "moe_num_shared_experts", "moe_layer_start_index", "use_bias", "conv_L_cache",
    "conv_bias", "conv_dim", "block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier",
    "block_multiple_of", "attention_head_dim", "moe_latent_size", "global_head_dim",
    "num_global_key_value_heads", "num_kv_shared_layers", "use_double_wide_mlp", "partial_rotary_factor",
    "hidden_act",
]  # fmt: skip
BLOCK = ("no_op", "n_heads_in_group", "ffn_mult")
VISION = [
    "depth",
    "num_hidden_layers",
    "vt_num_hidden_layers",
    "embed_dim",
    "hidden_size",
    "vt_hidden_size",
    "intermediate_size",
    "vt_intermediate_size",
    "patch_size",
    "temporal_patch_size",
    "spatial_merge_size",
    "deepstack_visual_indexes",
]
QUANTISATION = [
    "quant_method",
    "quant_algo",
    "bits",
    "group_size",
    "desc_act",
    "sym",
    "zero_point",
    "weight_block_size",
    "activation_scheme",
    "load_in_4bit",
    "load_in_8bit",
    "kv_cache_scheme",
    "kv_cache_quant_algo",
    "format",
]
LISTS = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers")
NAMES = {  # folders of ../shared/models whose configs have no name in them
    "llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.1-70b-instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "llama-2-7b-hf": "meta-llama/Llama-2-7b-hf",
    "mistral-nemo-instruct-2407": "mistralai/Mistral-Nemo-Instruct-2407",
    "codellama-34b-instruct-hf": "codellama/CodeLlama-34b-Instruct-hf",
    "yi-34b": "01-ai/Yi-34B",
    "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "more/qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "more/qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "more/qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "more/qwen2.5-14b": "Qwen/Qwen2.5-14B",
    "more/qwen2.5-32b": "Qwen/Qwen2.5-32B",
    "more/qwen2.5-72b": "Qwen/Qwen2.5-72B",
    "more/qwen3-4b": "Qwen/Qwen3-4B",
    "more/r1-distill-qwen-14b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
    "more/llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "more/llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "more/llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "more/mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "more/mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "more/phi-4": "microsoft/phi-4",
    "more/seed-oss-36b": "ByteDance-Seed/Seed-OSS-36B-Instruct",
    "more/gemma-2-9b": "google/gemma-2-9b",
    "more/gemma-3-27b": "google/gemma-3-27b-it",
    "more/ministral-3-14b": "mistralai/Ministral-3-14B-Instruct-2512",
    "more/granite-3.3-2b": "ibm-granite/granite-3.3-2b-instruct",
    "more/solar-10.7b": "upstage/SOLAR-10.7B-v1.0",
}
BY_HAND = Path(__file__).parent / "published_by_hand.json"  # not read from files; their counts of parameters are tested
LONG = {"max_position_embeddings": 262_144}
SAME_SHAPE = {  # published under more than one name
    "Qwen/Qwen2.5-Coder-7B-Instruct": ("Qwen/Qwen2.5-7B-Instruct", {}),
    "Qwen/Qwen2.5-Coder-32B-Instruct": ("Qwen/Qwen2.5-32B", {"max_position_embeddings": 32_768}),
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistralai/Mistral-7B-v0.1", {"sliding_window": None}),
    "Qwen/Qwen3-4B-Instruct-2507": ("Qwen/Qwen3-4B", LONG),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": ("Qwen/Qwen3-30B-A3B", LONG),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": ("Qwen/Qwen3-30B-A3B", LONG),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": ("Qwen/Qwen3-235B-A22B", LONG),
    "Qwen/Qwen3.6-27B": ("nvidia/Qwen3.6-27B-NVFP4", {"quantization_config": None}),
    "Qwen/Qwen3.6-35B-A3B": ("nvidia/Qwen3.6-35B-A3B-NVFP4", {"quantization_config": None}),
    "google/gemma-4-31B-it": ("nvidia/Gemma-4-31B-IT-NVFP4", {"quantization_config": None}),
    "mistralai/Devstral-Small-2507": (
        "mistralai/Mistral-Small-24B-Instruct-2501",
        {"max_position_embeddings": 131_072},
    ),
    "zai-org/GLM-4.6": ("zai-org/GLM-4.5", {"max_position_embeddings": 202_752}),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("Qwen/Qwen2.5-7B-Instruct", {"max_position_embeddings": 131_072}),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": ("Qwen/Qwen2.5-32B", {"max_position_embeddings": 131_072}),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("meta-llama/Llama-3.1-8B-Instruct", {}),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": ("meta-llama/Llama-3.1-70B-Instruct", {}),
    "meta-llama/Llama-3.3-70B-Instruct": ("meta-llama/Llama-3.1-70B-Instruct", {}),
    "deepseek-ai/DeepSeek-V3-0324": ("deepseek-ai/DeepSeek-V3", {}),
    "deepseek-ai/DeepSeek-V3.1": ("deepseek-ai/DeepSeek-V3", {}),
    "Qwen/QwQ-32B": ("Qwen/Qwen2.5-32B", {"max_position_embeddings": 40_960}),
}


def main() -> None:
    """Compare with what ships, or write it."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared/models"))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    models = collected(arguments.folder, arguments.shared)
    lines = [f"  {json.dumps(name)}: {json.dumps(content)}" for name, content in sorted(models.items())]
    text = f'{{"source": {json.dumps(SOURCE)},\n"models": {{\n' + ",\n".join(lines) + "\n}}\n"
    if arguments.write:
        OUT.write_text(text, encoding="utf-8")
    same = OUT.read_text(encoding="utf-8") == text
    print(f"{len(models)} models; published.json {'is what they make' if same else 'differs'}")
    raise SystemExit(0 if same else 1)


def collected(folder: Path, shared: Path) -> dict[str, dict[str, Any]]:
    """All that can be planned, trimmed, by name; what plans differently when trimmed is left out, with a word."""
    whole = {name: json.loads((shared / path / "config.json").read_text()) for path, name in NAMES.items()}
    whole |= json.loads(BY_HAND.read_text())
    for file in sorted(folder.glob("*_config.json")):
        if file.name.endswith("_hf_quant_config.json"):
            continue
        content, beside = json.loads(file.read_text()), file.with_name(file.name.replace("_config", "_hf_quant_config"))
        if "quantization_config" not in content and beside.exists():
            content["quantization_config"] = json.loads(beside.read_text()).get("quantization")
        whole[file.name.removesuffix("_config.json").replace("--", "/")] = content
    for name, (base, own) in SAME_SHAPE.items():
        whole[name] = {**whole[base], **own}
    found = {}
    for name, content in whole.items():
        try:
            whole_bytes = _bytes(model_config_of(content, name))
            ways = (trimmed(content, shorten) for shorten in (patterns, numbered))
            kept = next((way for way in ways if _bytes(model_config_of(way, name)) == whole_bytes), None)
            if kept is not None:
                found[name] = kept
            else:
                print(f"{name}: left out, its layers' types cannot be written shortly")
        except UserError as error:
            print(f"{name}: left out, {str(error)[:90]}")
    return found


def _bytes(config: ModelConfig) -> int:
    return weights_of(config, config.quantisation or "bf16").total


def trimmed(content: dict[str, Any], shorten: Callable[[Iterable[str]], list[str]]) -> dict[str, Any]:
    """Only what shapes and storage hang on; `shorten` puts names of modules together."""
    found = {key: content[key] for key in KEPT if content.get(key) is not None}
    if content.get("block_configs"):  # DeciLM's layers
        blocks = ({part: block[part] for part in ("attention", "ffn")} for block in content["block_configs"])
        found["block_configs"] = [
            {part: {key: one[key] for key in BLOCK if one.get(key) is not None} for part, one in block.items()}
            for block in blocks
        ]
    if isinstance(content.get("text_config"), dict):
        found["text_config"] = trimmed(content["text_config"], shorten)
    if isinstance(content.get("vision_config"), dict):
        vision = content["vision_config"]
        found["vision_config"] = {key: vision[key] for key in VISION if vision.get(key) is not None}
    if isinstance(content.get("quantization_config"), dict):
        found["quantization_config"] = _quantisation(content["quantization_config"], shorten)
    return found


def _quantisation(content: dict[str, Any], shorten: Callable[[Iterable[str]], list[str]]) -> dict[str, Any]:
    found = {key: content[key] for key in QUANTISATION if content.get(key) is not None}
    for key in LISTS:
        if content.get(key):
            found[key] = shorten(content[key])
    if content.get("quantized_layers"):
        by_type = defaultdict(list)
        for name, one in content["quantized_layers"].items():
            by_type[json.dumps(one, sort_keys=True)].append(name)
        found["quantized_layers"] = {name: json.loads(one) for one, names in by_type.items() for name in shorten(names)}
    elif isinstance(content.get("config_groups"), dict):
        found["config_groups"] = {
            name: {"targets": shorten(one.get("targets", [])), "weights": one.get("weights")}
            for name, one in content["config_groups"].items()
        }
    return found


def patterns(names: Iterable[str]) -> list[str]:
    """The names with `*` for numbers of layers and experts, each once."""
    return list(
        dict.fromkeys(name if name.startswith("re:") else re.sub(r"\.\d+(?=[.*]|$)", ".*", name) for name in names)
    )


def numbered(names: Iterable[str]) -> list[str]:
    """Exactly those modules, shortly: `layers.3.mlp` and `layers.5.mlp` are one expression of the layers 3 and 5."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    others = []
    for name in names:
        at = None if name.startswith("re:") else re.search(r"\.(\d+)(?=[.*]|$)", bare(name))
        if at is None:
            others.append(name)
        else:
            found[bare(name)[: at.start()], bare(name)[at.end() :]].append(at[1])
    written = [
        f"re:{_escaped(head)}\\.({'|'.join(sorted(set(layers), key=int))}){_escaped(tail)}"
        + ("" if tail.endswith("*") else "(\\.|$)")
        for (head, tail), layers in found.items()
    ]
    return [*others, *written]


def _escaped(name: str) -> str:
    return re.escape(name).replace("\\*", ".*")


if __name__ == "__main__":
    main()
