"""One small `config.json` for each architecture that vLLM's CPU build can construct, with all its kinds of layers."""

from typing import Any

SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}
LATENT = {
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_key_value_heads": 8,
    "hidden_act": "silu",
}
LINEAR = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "full_attention_interval": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "partial_rotary_factor": 0.25,
    "mamba_ssm_dtype": "float32",  # which vLLM takes on a CPU in any case
}
NO_LATENT = {key: value for key, value in LATENT.items() if "rank" not in key and "qk_" not in key}
PLAIN = {"hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
LING = {  # Bailing's and Sarvam's words
    **PLAIN,
    "num_experts": 8,
    "num_shared_experts": 1,
    "embedding_dropout": 0.0,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "use_rmsnorm": True,
    "norm_head": False,
    "partial_rotary_factor": 0.5,
}
TIED = {"tie_word_embeddings": True}
MAMBA = {
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "mamba_n_heads": 8,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "position_embedding_type": "nope",
    "mamba_ssm_cache_dtype": "float32",  # as on a CPU in any case
}
CONVOLUTIONS = {
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 256,
    "norm_eps": 1e-5,
    "rms_norm_eps": None,
    "head_dim": None,
}
GLOBAL = ["sliding_attention"] * 3 + ["full_attention"]


def _of(architecture: str, model_type: str, **own: Any) -> dict[str, Any]:
    content = {"architectures": [architecture], "model_type": model_type, **SIZES, **own}
    return {key: value for key, value in content.items() if value is not None}


def _block(heads_in_group: int | None, ffn_mult: float | None) -> dict[str, Any]:
    attention = {"no_op": heads_in_group is None, "n_heads_in_group": heads_in_group}
    return {"attention": attention, "ffn": {"no_op": ffn_mult is None, "ffn_mult": ffn_mult}}


SMALL = {
    config["architectures"][0]: config
    for config in (
        _of("LlamaForCausalLM", "llama"),
        _of("MistralForCausalLM", "mistral", sliding_window=256),
        _of("GraniteForCausalLM", "granite"),
        _of("Phi3ForCausalLM", "phi3", pad_token_id=0),
        _of("Qwen2ForCausalLM", "qwen2", head_dim=None),
        _of("Qwen2MoeForCausalLM", "qwen2_moe", head_dim=None, **EXPERTS, shared_expert_intermediate_size=256),
        _of("Qwen3ForCausalLM", "qwen3"),
        _of("Qwen3MoeForCausalLM", "qwen3_moe", **EXPERTS, mlp_only_layers=[0], decoder_sparse_step=1),
        _of("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2),
        _of("GemmaForCausalLM", "gemma", **TIED, hidden_act="gelu_pytorch_tanh"),
        _of("Gemma2ForCausalLM", "gemma2", **TIED, sliding_window=256, query_pre_attn_scalar=64,
            hidden_activation="gelu_pytorch_tanh"),
        _of("Gemma3ForCausalLM", "gemma3_text", **TIED, num_hidden_layers=8, sliding_window=256,
            sliding_window_pattern=4, layer_types=GLOBAL * 2, query_pre_attn_scalar=64,
            hidden_activation="gelu_pytorch_tanh"),
        _of("Gemma4ForCausalLM", "gemma4_text", **TIED, num_hidden_layers=8, global_head_dim=128,
            num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=256, layer_types=GLOBAL * 2,
            hidden_activation="gelu_pytorch_tanh", enable_moe_block=False, num_kv_shared_layers=0,
            hidden_size_per_layer_input=0),
        _of("GptOssForCausalLM", "gpt_oss", num_local_experts=8, num_experts_per_tok=2, sliding_window=128,
            layer_types=["sliding_attention", "full_attention"] * 2, attention_bias=True),
        _of("DeepseekV2ForCausalLM", "deepseek_v2", **{**LATENT, "topk_method": "greedy", "scoring_func": "softmax"}),
        _of("DeepseekV3ForCausalLM", "deepseek_v3", **LATENT),
        _of("SeedOssForCausalLM", "seed_oss", attention_bias=True),
        _of("Llama4ForCausalLM", "llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=1024,
            interleave_moe_layer_step=2, attention_chunk_size=256, no_rope_layers=[1, 1, 1, 0], use_qk_norm=True),
        _of("Glm4ForCausalLM", "glm4", attention_bias=True, partial_rotary_factor=0.5),
        _of("Glm4MoeForCausalLM", "glm4_moe", **NO_LATENT, use_qk_norm=True, attention_bias=True,
            partial_rotary_factor=0.5),
        _of("MiniMaxM2ForCausalLM", "minimax_m2", num_local_experts=8, num_experts_per_tok=2, use_routing_bias=True,
            scoring_func="sigmoid", rotary_dim=32, use_qk_norm=True),
        _of("Qwen3NextForCausalLM", "qwen3_next", **EXPERTS, **LINEAR, shared_expert_intermediate_size=128),
        _of("GlmForCausalLM", "glm", attention_bias=True, partial_rotary_factor=0.5, pad_token_id=0),
        _of("Glm4MoeLiteForCausalLM", "glm4_moe_lite", head_dim=None, **LATENT),
        _of("NemotronHForCausalLM", "nemotron_h", hybrid_override_pattern="M*-M", mamba_num_heads=8, mamba_head_dim=64,
            n_groups=2, ssm_state_size=32, conv_kernel=4, expand=2, use_conv_bias=True, mlp_hidden_act="relu2",
            layer_norm_epsilon=1e-5),
        _of("InternLM2ForCausalLM", "internlm2", head_dim=None, **PLAIN),
        _of("InternLM3ForCausalLM", "llama"),
        _of("SolarForCausalLM", "solar", **PLAIN, bskcn_1=[1], bskcn_2=[1], bskcn_3=[1], bskcn_4=[1],
            bskcn_tv=[0.9, 0.8]),
        _of("MiniCPMForCausalLM", "minicpm", **PLAIN, **TIED, scale_emb=1, dim_model_base=256, scale_depth=1.4,
            num_experts=0, head_dim=32),
        _of("HyperCLOVAXForCausalLM", "hyperclovax", use_post_norm=True),
        _of("TeleFLMForCausalLM", "teleflm", **PLAIN, use_mup=False),
        _of("PanguEmbeddedForCausalLM", "pangu", **PLAIN, bias=True, num_experts=0),
        _of("CohereForCausalLM", "cohere", **TIED, use_qk_norm=False),
        _of("Cohere2ForCausalLM", "cohere2", **TIED, sliding_window=256, layer_types=GLOBAL),
        _of("Ernie4_5ForCausalLM", "ernie4_5", use_bias=False),
        _of("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", moe_num_experts=8, moe_k=2, moe_num_shared_experts=1,
            moe_intermediate_size=128, moe_layer_start_index=1, moe_layer_interval=1, moe_layer_end_index=3),
        _of("Exaone4ForCausalLM", "exaone4", sliding_window=256, layer_types=GLOBAL, sliding_window_pattern="LLLG"),
        _of("ExaoneMoeForCausalLM", "exaone_moe", **EXPERTS, sliding_window=256, layer_types=GLOBAL,
            sliding_window_pattern="LLLG", num_shared_experts=1, n_group=1, topk_group=1, scoring_func="sigmoid",
            mlp_layer_types=["dense"] + ["sparse"] * 3, routed_scaling_factor=1.0),
        _of("HYV3ForCausalLM", "hy_v3", num_experts=8, num_experts_per_tok=2, expert_hidden_dim=128,
            num_shared_experts=1, first_k_dense_replace=1, qk_norm=True, route_norm=True),
        _of("AfmoeForCausalLM", "afmoe", **EXPERTS, num_shared_experts=1, num_dense_layers=1, score_func="sigmoid",
            n_group=1, topk_group=1, sliding_window=256, layer_types=GLOBAL, route_norm=True, route_scale=1.0),
        _of("GraniteSWAForCausalLM", "granite_swa", **TIED, sliding_window=256, layer_types=GLOBAL),
        _of("GraniteMoeForCausalLM", "granitemoe", **TIED, head_dim=None, num_local_experts=8, num_experts_per_tok=2),
        _of("GraniteMoeSharedForCausalLM", "granitemoeshared", **TIED, head_dim=None, num_local_experts=8,
            num_experts_per_tok=2, shared_intermediate_size=64),
        _of("GraniteMoeSWAForCausalLM", "granitemoe_swa", **TIED, head_dim=None, num_local_experts=8,
            num_experts_per_tok=2, shared_intermediate_size=64, sliding_window=256, layer_types=GLOBAL),
        _of("GraniteMoeHybridForCausalLM", "granitemoehybrid", **TIED, **MAMBA, head_dim=None, num_local_experts=8,
            num_experts_per_tok=2, shared_intermediate_size=64),
        _of("OlmoeForCausalLM", "olmoe", head_dim=None, num_experts=8, num_experts_per_tok=2),
        _of("DeepseekForCausalLM", "deepseek", head_dim=None,
            **{**NO_LATENT, **PLAIN, "topk_method": "greedy", "scoring_func": "softmax", "num_key_value_heads": 4}),
        _of("MistralLarge3ForCausalLM", "deepseek_v3", **LATENT),
        _of("AXK1ForCausalLM", "axk1", **LATENT),
        _of("SarvamMLAForCausalLM", "sarvam_mla", **{**LATENT, **LING}, moe_shared_expert_intermediate_size=128),
        _of("BailingMoeForCausalLM", "bailing_moe",
            **{**NO_LATENT, **LING, "use_qk_norm": False, "first_k_dense_replace": 0, "score_function": None,
               "n_group": None, "topk_group": None, "scoring_func": None, "topk_method": None,
               "moe_router_enable_expert_bias": False}),
        _of("BailingMoeV2ForCausalLM", "bailing_moe_v2", **{**NO_LATENT, **LING}),
        _of("DeciLMForCausalLM", "nemotron-nas", **PLAIN, head_dim=None, intermediate_size=None,
            num_key_value_heads=None, block_configs=[_block(*one) for one in ((4, 2.6), (2, 1), (4, None), (None, 3))]),
        _of("Step3p5ForCausalLM", "step3p5", num_key_value_heads=None, num_attention_groups=4, sliding_window=256,
            layer_types=GLOBAL, use_head_wise_attn_gate=True, moe_layers_enum="1,2,3", moe_num_experts=8, moe_top_k=2,
            moe_intermediate_size=128, share_expert_dim=192, att_impl_type="GQA", use_moe_router_bias=True,
            need_fp32_gate=True, moe_router_scaling_factor=1.0, norm_expert_weight=True,
            attention_other_setting={"attention_type": "sliding_attention", "num_attention_heads": 12,
                                     "num_attention_groups": 4, "head_dim": 64}),
        _of("Lfm2ForCausalLM", "lfm2", **TIED, **CONVOLUTIONS, block_dim=256, block_ff_dim=512, block_multiple_of=64,
            block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.0),
        _of("Lfm2MoeForCausalLM", "lfm2_moe", **TIED, **CONVOLUTIONS, **EXPERTS, num_dense_layers=1,
            use_expert_bias=True),
    )
}  # fmt: skip

OWN_CODE = ("internlm2", "solar", "minicpm", "teleflm", "pangu", "deepseek", "sarvam_mla", "bailing_moe",
            "bailing_moe_v2")  # fmt: skip


def know_own_code() -> None:
    """Types of models whose configurations come with code of their own: plain ones take their place."""
    from transformers import AutoConfig, PretrainedConfig

    class Named(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            if name not in self:
                raise AttributeError(name)
            return self[name]

    class DeciLM(PretrainedConfig):  # type: ignore[misc]
        model_type = "nemotron-nas"

        def __init__(self, block_configs: Any = (), **more: Any) -> None:
            super().__init__(**more)
            self.block_configs = [Named({key: Named(one) for key, one in block.items()}) for block in block_configs]

    AutoConfig.register("nemotron-nas", DeciLM, exist_ok=True)
    for kind in OWN_CODE:
        AutoConfig.register(kind, type("OwnConfig", (PretrainedConfig,), {"model_type": kind}), exist_ok=True)
