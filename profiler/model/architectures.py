"""The architectures that are known, one row each: what a `config.json` leaves to the model's code.

Everything that configs say by keys of their own is read from them whatever the architecture: experts, latent attention,
windows by `layer_types`, linear attention, Mamba. Read off vLLM 0.32's model classes (vllm/model_executor/models) and,
for what a config may leave out, off the defaults of Hugging Face's configuration classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Windows = Literal["", "layer_types", "all", "alternate", "pattern", "chunked"]


@dataclass(frozen=True)
class Architecture:
    """What all models of an architecture have in common.

    `qkv_bias`, `o_bias`: None means as `attention_bias` says. `windows`: which layers look at a window where
    `layer_types` is missing; `window_more`: tokens that vLLM keeps beside the config's window. `norms`: of a layer.
    `defaults`: what holds for keys that a config leaves out.
    """

    qkv_bias: bool | None = None
    o_bias: bool | None = False
    qk_norm: Literal["", "head", "all"] = ""
    has_gate: bool = False
    has_sinks: bool = False
    norms: int = 2
    windows: Windows = "layer_types"
    is_tied: bool = False
    router_bias: Literal["", "16", "fp32"] = ""
    router_in_fp32: bool = False
    expert_bias: bool = False
    shared_gate: bool = False
    window_more: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)


# What a wrapper's decoder calls itself where the wrapper is not known: its `model_type`.
BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "granite": "GraniteForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_vl_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "hy_v3": "HYV3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "step3p5": "Step3p5ForCausalLM",
}

_LLAMA = Architecture(o_bias=None)
_QWEN2 = Architecture(qkv_bias=True)
_QWEN3 = Architecture(qk_norm="head")
_QWEN_HYBRID = Architecture(
    qkv_bias=False,
    qk_norm="head",
    has_gate=True,
    shared_gate=True,
    defaults={
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "full_attention_interval": 4,
        "head_dim": 256,
    },
)
_GEMMA = Architecture(is_tied=True, windows="", defaults={"head_dim": 256})
_GEMMA2 = replace(_GEMMA, norms=4, windows="alternate", o_bias=None)
_GEMMA3 = replace(
    _GEMMA2,
    qk_norm="head",
    windows="pattern",
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window_pattern": 6,
    },
)
_DEEPSEEK = Architecture(qkv_bias=False, router_bias="fp32")
_GRANITE_MOE = Architecture(qkv_bias=False, is_tied=True, windows="")
_BAILING = Architecture(qkv_bias=False, router_bias="fp32")
_LFM2 = Architecture(qkv_bias=False, qk_norm="head", is_tied=True, windows="", router_bias="fp32")

ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": replace(_LLAMA, windows="all"),
    "Mistral3ForConditionalGeneration": replace(_LLAMA, defaults={"max_position_embeddings": 262_144}),
    "Ministral3ForCausalLM": replace(_LLAMA, defaults={"max_position_embeddings": 262_144}),
    "GraniteForCausalLM": replace(_LLAMA, is_tied=True),
    "SeedOssForCausalLM": replace(_QWEN2, windows=""),
    "Phi3ForCausalLM": Architecture(qkv_bias=False, windows="all"),
    "MixtralForCausalLM": Architecture(qkv_bias=False, windows="all"),
    "Qwen2ForCausalLM": _QWEN2,
    "Qwen2MoeForCausalLM": replace(_QWEN2, shared_gate=True),
    "Qwen2VLForConditionalGeneration": _QWEN2,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2,
    "MiMoForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": _QWEN3,
    "Qwen3MoeForCausalLM": _QWEN3,
    "Qwen3VLForConditionalGeneration": _QWEN3,
    "Qwen3VLMoeForConditionalGeneration": _QWEN3,
    "Qwen3NextForCausalLM": _QWEN_HYBRID,
    "Qwen3_5ForCausalLM": _QWEN_HYBRID,
    "Qwen3_5MoeForCausalLM": _QWEN_HYBRID,
    "Qwen3_5ForConditionalGeneration": _QWEN_HYBRID,
    "Qwen3_5MoeForConditionalGeneration": _QWEN_HYBRID,
    "GemmaForCausalLM": _GEMMA,
    "Gemma2ForCausalLM": _GEMMA2,
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Gemma4ForCausalLM": replace(_GEMMA3, defaults={"head_dim": 256, "sliding_window_pattern": 6}),
    "Gemma4ForConditionalGeneration": replace(_GEMMA3, defaults={"head_dim": 256, "sliding_window_pattern": 6}),
    "GptOssForCausalLM": Architecture(
        qkv_bias=True, o_bias=True, has_sinks=True, windows="alternate", router_bias="16", expert_bias=True
    ),
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "GlmMoeDsaForCausalLM": _DEEPSEEK,
    "Glm4MoeLiteForCausalLM": replace(_DEEPSEEK, router_in_fp32=True),
    "KimiK25ForConditionalGeneration": _DEEPSEEK,
    "GlmForCausalLM": Architecture(),
    "Glm4ForCausalLM": Architecture(norms=4),
    "Glm4MoeForCausalLM": Architecture(router_bias="fp32", router_in_fp32=True),
    "MiniMaxM2ForCausalLM": Architecture(qk_norm="all", router_bias="fp32", router_in_fp32=True, windows=""),
    "Llama4ForCausalLM": replace(_LLAMA, windows="chunked"),
    "Llama4ForConditionalGeneration": replace(_LLAMA, windows="chunked"),
    "NemotronHForCausalLM": Architecture(norms=1, windows="", router_bias="fp32"),
    **dict.fromkeys(
        ("InternLM2ForCausalLM", "InternLM3ForCausalLM", "IQuestCoderForCausalLM", "LLaMAForCausalLM",
         "SolarForCausalLM", "TeleChat3ForCausalLM", "TeleFLMForCausalLM"),
        _LLAMA,
    ),
    "DeciLMForCausalLM": Architecture(),
    "Step3p5ForCausalLM": replace(_QWEN3, router_bias="fp32", router_in_fp32=True),
    "MiniCPMForCausalLM": Architecture(qkv_bias=False, is_tied=True),
    "HyperCLOVAXForCausalLM": _LLAMA,
    "PanguEmbeddedForCausalLM": replace(_LLAMA, windows=""),
    "CohereForCausalLM": Architecture(qkv_bias=False, norms=1, is_tied=True, windows=""),
    "Cohere2ForCausalLM": Architecture(qkv_bias=False, norms=1, is_tied=True, window_more=1),
    "Ernie4_5ForCausalLM": Architecture(),
    "Ernie4_5_MoeForCausalLM": Architecture(router_bias="fp32", router_in_fp32=True),
    "Exaone4ForCausalLM": _QWEN3,
    "ExaoneMoeForCausalLM": replace(_QWEN3, router_bias="fp32"),
    "ExaoneMoEForCausalLM": replace(_QWEN3, router_bias="fp32"),
    "HYV3ForCausalLM": replace(_QWEN3, qkv_bias=False, router_bias="fp32", router_in_fp32=True),
    "AfmoeForCausalLM": Architecture(
        qkv_bias=False, qk_norm="head", has_gate=True, norms=4, router_bias="fp32", router_in_fp32=True
    ),
    "GraniteSWAForCausalLM": replace(_LLAMA, is_tied=True, has_sinks=True),
    "GraniteMoeForCausalLM": _GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": _GRANITE_MOE,
    "GraniteMoeSWAForCausalLM": replace(_GRANITE_MOE, windows="layer_types", has_sinks=True),
    "GraniteMoeHybridForCausalLM": replace(_GRANITE_MOE, defaults={"mamba_ssm_cache_dtype": "auto"}),
    "OlmoeForCausalLM": Architecture(qkv_bias=False, qk_norm="all", windows=""),
    "DeepseekForCausalLM": replace(_DEEPSEEK, router_bias=""),
    "MistralLarge3ForCausalLM": _DEEPSEEK,
    "AXK1ForCausalLM": replace(_DEEPSEEK, norms=3),
    "SarvamMLAForCausalLM": _DEEPSEEK,
    "BailingMoeForCausalLM": replace(_BAILING, router_bias=""),
    "BailingMoeV2ForCausalLM": _BAILING,
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": _LFM2,
}  # fmt: skip
