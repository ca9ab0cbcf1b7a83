"""What follows from a model's `config.json`: shapes, bytes of weights, bytes of KV per token."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError

DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder with grouped-query attention."""

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

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised by head."""
        return self.architecture == "Qwen3ForCausalLM"

    @property
    def num_parameters(self) -> int:
        """All weights: embeddings, layers, norms and head."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (queries + 2 * keys) + queries * self.hidden_size
        if self.architecture == "Qwen2ForCausalLM":
            attention += queries + 2 * keys  # biases
        if self.qk_norm:
            attention += 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    @property
    def weights_bytes(self) -> int:
        """All weights as published, not quantised."""
        return self.num_parameters * ELEMENT_BYTES[self.dtype]

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in the weights' type."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * ELEMENT_BYTES[self.dtype]


def read_model_config(path: Path) -> ModelConfig:
    """Read a `config.json`; raises UserError for what is missing or no dense decoder."""
    content = read_json(path)
    architecture = (content.get("architectures") or [""])[0]
    if architecture not in DENSE:
        rule = f"only dense decoders are known: {', '.join(DENSE)}"
        raise UserError(Problem(f"{path} architectures", rule, architecture))
    heads = _count(path, content, "num_attention_heads")
    hidden = _count(path, content, "hidden_size")
    dtype = str(content.get("torch_dtype") or content.get("dtype") or "bfloat16")
    if dtype not in ELEMENT_BYTES:
        raise UserError(Problem(f"{path} torch_dtype", f"must be one of {', '.join(ELEMENT_BYTES)}", dtype))
    return ModelConfig(
        architecture=architecture,
        num_hidden_layers=_count(path, content, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_count(path, content, "intermediate_size"),
        num_attention_heads=heads,
        num_key_value_heads=_count(path, {"num_key_value_heads": heads, **content}, "num_key_value_heads"),
        head_dim=_count(path, {**content, "head_dim": content.get("head_dim") or hidden // heads}, "head_dim"),
        vocab_size=_count(path, content, "vocab_size"),
        max_position_embeddings=_count(path, content, "max_position_embeddings"),
        tie_word_embeddings=bool(content.get("tie_word_embeddings", False)),
        dtype=dtype,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError with the place of a mistake."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(Problem(f"{path}:{error.lineno}:{error.colno}", f"not JSON: {error.msg}")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    if not isinstance(content, dict):
        raise UserError(Problem(str(path), "must be an object with keys", content))
    return content


def _count(path: Path, content: dict[str, Any], key: str) -> int:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(Problem(f"{path} {key}", "must be a whole number above 0", value))
    return value
