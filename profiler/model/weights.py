"""Bytes of a model's weights on one GPU, part by part, sharded as vLLM shards them.

Heads, the MLP's inner width and the vocabulary (padded to a multiple of 64) are divided among the GPUs; key and value
heads are repeated where there are fewer than GPUs; norms stand on every GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.quantisation import GROUP, matrix_bytes
from simbatch.sim.errors import Problem, UserError

VOCAB_MULTIPLE = 64


@dataclass(frozen=True)
class Matrix:
    """A linear layer on one GPU, `count` of them in a layer of the model."""

    name: str
    num_inputs: int
    num_outputs: int
    count: int = 1
    group_size: int = GROUP

    def bytes(self, quantisation: str) -> int:
        """Bytes of all of them."""
        return self.count * matrix_bytes(self.num_inputs, self.num_outputs, quantisation, self.group_size)

    @property
    def flops_per_token(self) -> int:
        """A multiplication and an addition for every weight."""
        return 2 * self.count * self.num_inputs * self.num_outputs


@dataclass(frozen=True)
class Weights:
    """Bytes on one GPU."""

    embeddings: int
    head: int
    layers: int  # linear layers of all layers, quantised if anything is
    others: int  # norms, biases, routers

    @property
    def total(self) -> int:
        """All of them."""
        return self.embeddings + self.head + self.layers + self.others


def local_kv_heads(config: ModelConfig, tensor_parallel_size: int) -> int:
    """Key and value heads on one GPU."""
    return max(1, config.num_key_value_heads // tensor_parallel_size)


def local_vocab(config: ModelConfig, tensor_parallel_size: int) -> int:
    """Rows of embeddings and head on one GPU."""
    return -(-config.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE // tensor_parallel_size


def layer_matrices(config: ModelConfig, tensor_parallel_size: int) -> list[Matrix]:
    """The linear layers of one decoder layer on one GPU; UserError when the heads cannot be divided so."""
    size, hidden = tensor_parallel_size, config.hidden_size
    if config.num_attention_heads % size or config.intermediate_size % size:
        rule = f"must divide {config.num_attention_heads} heads and an inner width of {config.intermediate_size}"
        raise UserError(Problem("--tensor-parallel-size", rule, size))
    kv_heads = config.num_key_value_heads
    if kv_heads % size and size % kv_heads:
        raise UserError(Problem("--tensor-parallel-size", f"must divide {kv_heads} KV heads, or be a multiple", size))
    queries, groups = config.num_attention_heads // size * config.head_dim, config.group_size
    keys = local_kv_heads(config, size) * config.head_dim
    inner = config.intermediate_size // size
    return [
        Matrix("qkv_proj", hidden, queries + 2 * keys, group_size=groups),
        Matrix("o_proj", queries, hidden, group_size=groups),
        Matrix("gate_up_proj", hidden, 2 * inner, config.num_experts, groups),
        Matrix("down_proj", inner, hidden, config.num_experts, groups),
    ]


def weights_of(config: ModelConfig, quantisation: str, tensor_parallel_size: int = 1) -> Weights:
    """Bytes of the weights on one GPU."""
    element, vocab = config.element_bytes, local_vocab(config, tensor_parallel_size)
    table = vocab * config.hidden_size * element
    matrices = layer_matrices(config, tensor_parallel_size)
    norms = 2 * config.hidden_size + (2 * config.head_dim if config.qk_norm else 0)
    biases = matrices[0].num_outputs if config.has_qkv_bias else 0
    router = config.hidden_size * config.num_experts if config.num_experts > 1 else 0
    return Weights(
        embeddings=table,
        head=0 if config.tie_word_embeddings else table,
        layers=config.num_hidden_layers * sum(matrix.bytes(quantisation) for matrix in matrices),
        others=(config.num_hidden_layers * (norms + biases + router) + config.hidden_size) * element,
    )
