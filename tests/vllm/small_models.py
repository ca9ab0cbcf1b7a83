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
GLOBAL = ["sliding_attention"] * 3 + ["full_attention"]


def _of(architecture: str, model_type: str, **own: Any) -> dict[str, Any]:
    content = {"architectures": [architecture], "model_type": model_type, **SIZES, **own}
    return {key: value for key, value in content.items() if value is not None}


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
        _of("GemmaForCausalLM", "gemma", tie_word_embeddings=True, hidden_act="gelu_pytorch_tanh"),
        _of(
            "Gemma2ForCausalLM",
            "gemma2",
            tie_word_embeddings=True,
            sliding_window=256,
            query_pre_attn_scalar=64,
            hidden_activation="gelu_pytorch_tanh",
        ),
        _of(
            "Gemma3ForCausalLM",
            "gemma3_text",
            tie_word_embeddings=True,
            num_hidden_layers=8,
            sliding_window=256,
            sliding_window_pattern=4,
            layer_types=GLOBAL * 2,
            query_pre_attn_scalar=64,
            hidden_activation="gelu_pytorch_tanh",
        ),
        _of(
            "Gemma4ForCausalLM",
            "gemma4_text",
            tie_word_embeddings=True,
            num_hidden_layers=8,
            global_head_dim=128,
            num_global_key_value_heads=1,
            attention_k_eq_v=True,
            sliding_window=256,
            layer_types=GLOBAL * 2,
            hidden_activation="gelu_pytorch_tanh",
            enable_moe_block=False,
            num_kv_shared_layers=0,
            hidden_size_per_layer_input=0,
        ),
        _of(
            "GptOssForCausalLM",
            "gpt_oss",
            num_local_experts=8,
            num_experts_per_tok=2,
            sliding_window=128,
            layer_types=["sliding_attention", "full_attention"] * 2,
            attention_bias=True,
        ),
        _of("DeepseekV2ForCausalLM", "deepseek_v2", **{**LATENT, "topk_method": "greedy", "scoring_func": "softmax"}),
        _of("DeepseekV3ForCausalLM", "deepseek_v3", **LATENT),
        _of("SeedOssForCausalLM", "seed_oss", attention_bias=True),
        _of(
            "Llama4ForCausalLM",
            "llama4_text",
            num_local_experts=4,
            num_experts_per_tok=1,
            intermediate_size_mlp=1024,
            interleave_moe_layer_step=2,
            attention_chunk_size=256,
            no_rope_layers=[1, 1, 1, 0],
            use_qk_norm=True,
        ),
        _of("Glm4ForCausalLM", "glm4", attention_bias=True, partial_rotary_factor=0.5),
        _of(
            "Glm4MoeForCausalLM",
            "glm4_moe",
            **{key: value for key, value in LATENT.items() if "rank" not in key and "qk_" not in key},
            use_qk_norm=True,
            attention_bias=True,
            partial_rotary_factor=0.5,
        ),
        _of("MiniMaxM2ForCausalLM", "minimax_m2", num_local_experts=8, num_experts_per_tok=2, use_routing_bias=True,
            scoring_func="sigmoid", rotary_dim=32, use_qk_norm=True),
        _of("Qwen3NextForCausalLM", "qwen3_next", **EXPERTS, **LINEAR, shared_expert_intermediate_size=128),
        _of("GlmForCausalLM", "glm", attention_bias=True, partial_rotary_factor=0.5, pad_token_id=0),
        _of("Glm4MoeLiteForCausalLM", "glm4_moe_lite", head_dim=None, **LATENT),
        _of(
            "NemotronHForCausalLM",
            "nemotron_h",
            hybrid_override_pattern="M*-M",
            mamba_num_heads=8,
            mamba_head_dim=64,
            n_groups=2,
            ssm_state_size=32,
            conv_kernel=4,
            expand=2,
            use_conv_bias=True,
            mlp_hidden_act="relu2",
            layer_norm_epsilon=1e-5,
        ),
    )
}  # fmt: skip
