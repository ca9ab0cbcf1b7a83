"""From a `config.json` to its layers: which kind each one is, and its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from simbatch.profiler.model.architectures import Architecture
from simbatch.profiler.model.layers import Experts, Layer, Mlp
from simbatch.profiler.model.mixers import Attention, GatedDeltaNet, LatentAttention, Mamba2, Mixer, ShortConv
from simbatch.sim.errors import Problem, UserError

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "experts_per_token", "moe_k", "moe_top_k")
EXPERT_INNER = ("moe_intermediate_size", "expert_intermediate_size", "expert_hidden_dim", "intermediate_size")
NEMOTRON_LETTERS = {"mamba": "M", "attention": "*", "moe": "E", "mlp": "-"}
MXFP4_MULTIPLES = (256, 128)  # of hidden and inner width in vLLM's mxfp4 kernels (fused_moe/oracle/mxfp4.py)


class Keys:
    """A config's content with what an architecture takes where a key is missing; `place` is for messages."""

    def __init__(self, content: Mapping[str, Any], defaults: Mapping[str, Any], place: str) -> None:
        self._content = {**defaults, **{key: value for key, value in content.items() if value is not None}}
        self.place = place

    def get(self, *names: str, default: Any = None) -> Any:
        """The first that is there."""
        return next((self._content[name] for name in names if name in self._content), default)

    def count(self, *names: str, default: int | None = None) -> int:
        """A whole number above 0; UserError for anything else."""
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise UserError(Problem(f"{self.place} {names[0]}", "must be a whole number above 0", value))
        return value

    def size(self, *names: str) -> int:
        """A whole number, 0 where there is none."""
        value = self.get(*names, default=0)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


def layers_of(keys: Keys, architecture: Architecture, quantisation: str | None) -> tuple[Layer, ...]:
    """All layers, in order."""
    if (letters := keys.get("hybrid_override_pattern", "layers_block_type")) is not None:
        return tuple(_nemotron_layer(keys, NEMOTRON_LETTERS.get(letter, letter)) for letter in letters)
    if (blocks := keys.get("block_configs")) is not None:
        return tuple(_own_widths(keys, block["attention"], block["ffn"]) for block in blocks)
    number = keys.count("num_hidden_layers")
    kinds = _kinds(keys, architecture, number)
    shared = number - keys.size("num_kv_shared_layers")  # from here on layers read the keys and values of earlier ones
    found = []
    for i, kind in enumerate(kinds):
        mixer = _mixer(keys, architecture, kind, i, keeps=i < shared)
        found.append(_layer(keys, architecture, mixer, i, i >= shared, quantisation))
    return tuple(found)


def _kinds(keys: Keys, architecture: Architecture, number: int) -> list[str]:
    """Of each layer: full_attention, sliding_attention, chunked_attention, linear_attention, mamba or conv."""
    given = keys.get("layer_types")
    uses = keys.get("use_sliding_window", default=True) and architecture.windows != ""
    if given is not None and architecture.windows != "chunked":
        kinds = [str(kind) for kind in given]
        return kinds if uses else ["full_attention" if kind == "sliding_attention" else kind for kind in kinds]
    interval = keys.size("full_attention_interval")
    if interval and keys.size("linear_num_value_heads"):
        return ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(number)]
    if architecture.windows == "all" and keys.get("sliding_window"):
        return ["sliding_attention"] * number
    if architecture.windows == "alternate":
        return ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(number)]
    if architecture.windows == "pattern":
        every = keys.count("sliding_window_pattern")
        return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(number)]
    if architecture.windows == "chunked":
        rope = keys.get("no_rope_layers") or [int((i + 1) % 4 != 0) for i in range(number)]
        return ["chunked_attention" if turned else "full_attention" for turned in rope]
    return ["full_attention"] * number


def _mixer(keys: Keys, architecture: Architecture, kind: str, index: int, *, keeps: bool) -> Mixer:
    if kind == "linear_attention":
        return _delta_net(keys)
    if kind == "mamba":
        return _mamba(keys)
    if kind == "conv":
        return ShortConv(keys.count("conv_dim", "hidden_size"), keys.count("conv_L_cache"), bool(keys.get("conv_bias")))
    if keys.size("kv_lora_rank"):
        return _latent(keys, index)
    heads, hidden = keys.count("num_attention_heads"), keys.count("hidden_size")
    kv_heads = keys.count("num_key_value_heads", "num_attention_groups", default=heads)
    head_dim = keys.get("head_dim") or hidden // heads
    if (other := keys.get("attention_other_setting", default={})).get("attention_type") == kind:  # Step 3.5
        heads, kv_heads, head_dim = other["num_attention_heads"], other["num_attention_groups"], other["head_dim"]
    if kind == "full_attention":  # Gemma 4 has other shapes here
        kv_heads = keys.size("num_global_key_value_heads") or kv_heads
        head_dim = keys.size("global_head_dim") or head_dim
    has_bias = bool(keys.get("attention_bias", "qkv_bias", "use_bias", "bias", default=False))
    norm: Literal["", "head", "all"] = architecture.qk_norm or ("head" if keys.get("use_qk_norm") else "")
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        window=_window(keys, kind, architecture.window_more),
        is_chunked=kind == "chunked_attention",
        keeps=keeps,
        has_gate=architecture.has_gate and bool(keys.get("attn_output_gate", default=True)),
        has_head_gates=bool(keys.get("use_head_wise_attn_gate")),
        has_qkv_bias=has_bias if architecture.qkv_bias is None else architecture.qkv_bias,
        has_o_bias=has_bias if architecture.o_bias is None else architecture.o_bias,
        qk_norm="" if architecture.windows == "chunked" else norm,
        has_sinks=architecture.has_sinks,
    )


def _window(keys: Keys, kind: str, more: int) -> int | None:
    if kind == "sliding_attention":
        return keys.count("sliding_window") + more
    return keys.count("attention_chunk_size", default=8192) if kind == "chunked_attention" else None


def _latent(keys: Keys, index: int) -> LatentAttention:
    """Of a sparse model's layers some share the indexer of an earlier one (GLM 5.2)."""
    frequency, offset = keys.size("index_topk_freq") or 1, keys.get("index_skip_topk_offset", default=2)
    shares = max(index - offset + 1, 0) % frequency != 0
    has_indexer = keys.get("index_topk") is not None and not shares
    return LatentAttention(
        num_heads=keys.count("num_attention_heads"),
        q_lora_rank=keys.get("q_lora_rank"),
        kv_lora_rank=keys.count("kv_lora_rank"),
        qk_nope_head_dim=keys.count("qk_nope_head_dim"),
        qk_rope_head_dim=keys.count("qk_rope_head_dim"),
        v_head_dim=keys.count("v_head_dim"),
        index_heads=keys.count("index_n_heads") if has_indexer else 0,
        index_head_dim=keys.count("index_head_dim") if has_indexer else 0,
    )


def _mamba(keys: Keys) -> Mamba2:
    return Mamba2(
        num_heads=keys.count("mamba_num_heads", "mamba_n_heads"),
        head_dim=keys.count("mamba_head_dim", "mamba_d_head"),
        num_groups=keys.count("n_groups", "mamba_n_groups"),
        state_size=keys.count("ssm_state_size", "mamba_d_state"),
        conv_width=keys.count("conv_kernel", "mamba_d_conv"),
        has_conv_bias=bool(keys.get("use_conv_bias", "mamba_conv_bias", default=True)),
        state_element_bytes=4 if keys.get("mamba_ssm_cache_dtype", default="float32") == "float32" else 2,
    )


def _delta_net(keys: Keys) -> GatedDeltaNet:
    return GatedDeltaNet(
        num_k_heads=keys.count("linear_num_key_heads"),
        num_v_heads=keys.count("linear_num_value_heads"),
        head_k_dim=keys.count("linear_key_head_dim"),
        head_v_dim=keys.count("linear_value_head_dim"),
        conv_width=keys.count("linear_conv_kernel_dim"),
        state_element_bytes=4 if keys.get("mamba_ssm_dtype") == "float32" else 2,
    )


def _layer(
    keys: Keys, architecture: Architecture, mixer: Mixer, index: int, is_shared: bool, quantisation: str | None
) -> Layer:
    dense = Mlp(_dense_inner(keys), has_bias=bool(keys.get("mlp_bias", default=False)))
    post_norms = 2 if keys.get("use_post_norm") else 0
    if is_shared and keys.get("use_double_wide_mlp"):
        dense = Mlp(2 * dense.inner)
    if not has_experts(keys, index):
        return Layer(mixer, dense, architecture.norms + post_norms)
    experts = _experts(keys, architecture, quantisation)
    if keys.size("global_head_dim"):  # Gemma 4: a dense part beside the experts, each with norms of its own
        return Layer(mixer, experts, architecture.norms + 3, parallel=dense)
    return Layer(mixer, experts, architecture.norms)


def _dense_inner(keys: Keys) -> int:
    """Of a dense part; LFM2 says one that is cut to two thirds and then rounded up."""
    if not keys.get("block_auto_adjust_ff_dim", default=False):
        names = ("intermediate_size_mlp", "intermediate_size", "moe_intermediate_size")
        return keys.size("shared_intermediate_size") or keys.count(*names)
    multiple = keys.count("block_multiple_of", default=256)
    inner = int(
        2 * keys.count("block_ff_dim", "intermediate_size") / 3 * keys.get("block_ffn_dim_multiplier", default=1)
    )
    return -(-inner // multiple) * multiple


def has_experts(keys: Keys, index: int) -> bool:
    """Whether a layer's feed-forward part is one of experts."""
    if not keys.size(*EXPERTS):
        return False
    if (types := keys.get("mlp_layer_types")) is not None:
        return str(types[index]) == "sparse"
    if index in (keys.get("mlp_only_layers") or ()):
        return False
    if (listed := keys.get("moe_layers_enum")) is not None:
        return index in [int(one) for one in str(listed).split(",")]
    step = keys.size("decoder_sparse_step") or keys.size("interleave_moe_layer_step") or 1
    first = keys.size("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
    return index >= first and (index + 1) % step == 0


def _experts(keys: Keys, architecture: Architecture, quantisation: str | None) -> Experts:
    inner = keys.count(*EXPERT_INNER)
    shared = keys.size(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
        "share_expert_dim",
    )
    shared = shared or inner * keys.size("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    if keys.get("interleave_moe_layer_step"):  # Llama 4: one more of the same width
        shared = inner
    router = architecture.router_bias
    has_bias = keys.get("use_routing_bias", "use_expert_bias", "moe_router_enable_expert_bias", default=True)
    if keys.get("topk_method", default="noaux_tc") != "noaux_tc" or not has_bias:
        router = ""
    is_gemma = bool(keys.size("global_head_dim"))
    return Experts(
        num_experts=keys.count(*EXPERTS),
        per_token=keys.count(*PER_TOKEN),
        inner=inner,
        shared_inner=shared,
        has_shared_gate=architecture.shared_gate and shared > 0,
        router_bias=router,
        router_in_fp32=architecture.router_in_fp32,
        has_bias=architecture.expert_bias,
        pads_to=MXFP4_MULTIPLES if quantisation == "mxfp4" else None,
        others_per_layer=keys.count("hidden_size") + keys.count(*EXPERTS) if is_gemma else 0,
        group="" if is_gemma else "mlp",
    )


def _own_widths(keys: Keys, attention: Mapping[str, Any], part: Mapping[str, Any]) -> Layer:
    """A layer of DeciLM (Nemotron Super and Ultra): either part may be missing, and each has a width of its own."""
    heads, hidden = keys.count("num_attention_heads"), keys.count("hidden_size")
    mixer, dense = None, None
    if not attention["no_op"]:
        mixer = Attention(heads, heads // attention["n_heads_in_group"], keys.get("head_dim") or hidden // heads)
    if not part["no_op"]:
        inner = int(2 * part["ffn_mult"] * hidden / 3) if part.get("ffn_mult") else int(part["intermediate_size"])
        dense = Mlp(-(-inner // 256) * 256)
    return Layer(mixer, dense, norms=(mixer is not None) + (dense is not None))


def _nemotron_layer(keys: Keys, letter: str) -> Layer:
    """Nemotron-H writes its layers as letters: M Mamba, * attention, E experts, - dense; each is one part alone."""
    has_bias = bool(keys.get("mlp_bias", default=False))
    if letter == "M":
        return Layer(_mamba(keys), None, norms=1)
    if letter == "*":
        heads = keys.count("num_attention_heads")
        head_dim = keys.count("head_dim", "attention_head_dim", default=keys.count("hidden_size") // heads)
        return Layer(Attention(heads, keys.count("num_key_value_heads"), head_dim, group="mixer"), None, norms=1)
    if letter == "-":
        return Layer(None, Mlp(keys.count("intermediate_size"), is_gated=False, has_bias=has_bias, group="mixer"), 1)
    experts = Experts(
        num_experts=keys.count(*EXPERTS),
        per_token=keys.count(*PER_TOKEN),
        inner=keys.count("moe_intermediate_size"),
        shared_inner=keys.size("moe_shared_expert_intermediate_size"),
        is_gated=False,
        router_bias="fp32",
        latent=keys.size("moe_latent_size"),
        group="mixer",
    )
    return Layer(None, experts, norms=1)
