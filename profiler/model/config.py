"""What a model's `config.json` says: the shapes of a decoder with grouped-query attention, dense or with experts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simbatch.profiler.model.quantisation import GROUP, group_size_of, quantisation_of
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object

DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
WITH_EXPERTS = ("MixtralForCausalLM",)
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder with grouped-query attention; a dense one has one expert."""

    architecture: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str
    num_experts: int = 1
    num_experts_per_tok: int = 1
    quantisation: str | None = None  # what the checkpoint's `quantization_config` says, in our words
    group_size: int = GROUP  # inputs that share a scale where weights are int4

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised by head."""
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def has_qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have biases."""
        return self.architecture == "Qwen2ForCausalLM"

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight as published."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def num_parameters(self) -> int:
        """All weights: embeddings, layers, norms and head."""
        return self._parameters(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """The weights that one token meets: of the experts only those that it is sent to."""
        return self._parameters(self.num_experts_per_tok)

    @property
    def weights_bytes(self) -> int:
        """All weights as published, not quantised."""
        return self.num_parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in the weights' type."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * self.element_bytes

    def _parameters(self, num_experts: int) -> int:
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (queries + 2 * keys) + queries * self.hidden_size
        if self.has_qkv_bias:
            attention += queries + 2 * keys
        if self.qk_norm:
            attention += 2 * self.head_dim
        router = self.hidden_size * self.num_experts if self.num_experts > 1 else 0
        layer = attention + router + 3 * self.hidden_size * self.intermediate_size * num_experts + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size


def read_model_config(path: Path) -> ModelConfig:
    """Read a `config.json`, or the one in a model's folder; raises UserError for what is missing or not known."""
    path = path / "config.json" if path.is_dir() else path
    return model_config_of(read_json(path), str(path))


def model_config_of(content: dict[str, Any], place: str) -> ModelConfig:
    """The shapes that a `config.json`'s content says; `place` is where it stands, for messages."""
    architecture = (content.get("architectures") or [""])[0]
    if architecture not in DENSE + WITH_EXPERTS:
        rule = f"only these decoders are known: {', '.join(DENSE + WITH_EXPERTS)}"
        raise UserError(Problem(f"{place} architectures", rule, architecture))
    heads, hidden = _count(place, content, "num_attention_heads"), _count(place, content, "hidden_size")
    dtype = str(content.get("torch_dtype") or content.get("dtype") or "bfloat16")
    if dtype not in ELEMENT_BYTES:
        raise UserError(Problem(f"{place} torch_dtype", f"must be one of {', '.join(ELEMENT_BYTES)}", dtype))
    if dtype == "float32":  # vLLM loads it so unless told otherwise (config/model.py `_resolve_auto_dtype`)
        dtype = "bfloat16"
    has_experts, quantised = architecture in WITH_EXPERTS, content.get("quantization_config")
    return ModelConfig(
        architecture=architecture,
        num_hidden_layers=_count(place, content, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_count(place, content, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_count(place, {"num_key_value_heads": heads, **content}, "num_key_value_heads"),
        head_dim=_count(place, {**content, "head_dim": content.get("head_dim") or hidden // heads}, "head_dim"),
        vocab_size=_count(place, content, "vocab_size"),
        max_position_embeddings=_count(place, content, "max_position_embeddings"),
        tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        dtype=dtype,
        num_experts=_count(place, content, "num_local_experts") if has_experts else 1,
        num_experts_per_tok=_count(place, content, "num_experts_per_tok") if has_experts else 1,
        quantisation=quantisation_of(quantised, f"{place} quantization_config"),
        group_size=group_size_of(quantised, f"{place} quantization_config"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError with the place of a mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    content: dict[str, Any] = json_object(text, path)
    return content


def _count(place: str, content: dict[str, Any], key: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(Problem(f"{place} {key}", "must be a whole number above 0", value))
    return value
