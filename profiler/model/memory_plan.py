"""How vLLM will divide a GPU's memory, figure by figure with its formula, before any GPU is there.

Exact: bytes of the weights (with their real shapes and quantisation), bytes of KV per token, and the number of blocks
that given bytes make. Estimated: what vLLM measures at its start, the peak of activations and the CUDA graphs, and what
CUDA and NCCL hold beside PyTorch. The estimate was made from vLLM's code, not fitted to block counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.quantisation import checked_quantisation
from simbatch.profiler.model.weights import local_kv_heads, local_vocab, weights_of
from simbatch.sim.cost.gpus import GIB, Gpu
from simbatch.sim.cost.memory import KV_ELEMENT_BYTES, Memory
from simbatch.sim.errors import Problem, UserError

DEFAULT_UTILIZATION = 0.9
# The sampler's tensors of [max_num_seqs, vocabulary] when top-k and top-p are native PyTorch: logits in 16 bits (2) and
# in fp32 (4), sorted values and their int64 indices (12), and the sort's second buffer of both (12).
SAMPLER_BYTES_PER_LOGIT = 30
NON_TORCH_BYTES = int(0.16 * GIB)  # vLLM's log on an H100, pull request 12126
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792}  # aiconfigurator's datasheets (Apache-2.0)
GRAPHS_BYTES = GIB // 2  # assumed; vLLM's logs on 3090s say 0.17 and 0.36 GiB


class Figure(NamedTuple):
    """One quantity, how it was computed, and whether it is exact."""

    label: str
    value: int
    formula: str
    is_exact: bool


@dataclass(frozen=True)
class MemoryPlan:
    """One GPU's memory, in bytes; blocks count vLLM's null block."""

    total_bytes: int
    gpu_memory_utilization: float
    weights_bytes: int
    activation_bytes: int
    graphs_bytes: int
    reserve_bytes: int
    kv_bytes_per_token: int
    block_size: int
    figures: tuple[Figure, ...]

    @property
    def kv_cache_bytes(self) -> int:
        """What is left for the KV cache, below zero when the model does not fit."""
        taken = self.weights_bytes + self.activation_bytes + self.graphs_bytes + self.reserve_bytes
        return int(self.total_bytes * self.gpu_memory_utilization) - taken

    @property
    def num_gpu_blocks(self) -> int:
        """Whole blocks."""
        return num_blocks(self.kv_cache_bytes, self.kv_bytes_per_token, self.block_size)

    @property
    def max_kv_tokens(self) -> int:
        """Tokens that all requests together can hold; the null block holds none."""
        return max(0, self.num_gpu_blocks - 1) * self.block_size

    @property
    def all_figures(self) -> tuple[Figure, ...]:
        """The parts, then what they leave: bytes, blocks and tokens of KV cache."""
        size = f"{self.kv_bytes_per_token:,} x {self.block_size}"
        left = (
            Figure("KV cache", self.kv_cache_bytes, "usable memory - the other parts", False),
            Figure("blocks", self.num_gpu_blocks, f"KV cache / ({size} tokens a block), whole ones", False),
            Figure("KV tokens", self.max_kv_tokens, f"(blocks - vLLM's null block) x {self.block_size}", False),
        )
        return self.figures + left

    def text(self) -> str:
        """A table of all figures, each with its formula."""
        rows = [(one.label, f"{one.value:,}", "" if one.is_exact else "~", one.formula) for one in self.all_figures]
        name, value = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines = [f"{row[0]:<{name}}  {row[2]:>1}{row[1]:>{value}}  {row[3]}" for row in rows]
        return "\n".join([*lines, "~ estimated; everything else is exact"])

    def memory(self) -> Memory:
        """As a profile says it, marked as an estimate."""
        return Memory(
            total_bytes=self.total_bytes,
            gpu_memory_utilization=self.gpu_memory_utilization,
            weights_bytes=self.weights_bytes,
            activation_bytes=self.activation_bytes,
            graphs_bytes=self.graphs_bytes,
            reserve_bytes=self.reserve_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            block_size=self.block_size,
            num_gpu_blocks=self.num_gpu_blocks,
            num_gpu_blocks_from="estimate",
        )


def num_blocks(kv_cache_bytes: int, kv_bytes_per_token: int, block_size: int) -> int:
    """Blocks that the bytes make (vLLM v1/core/kv_cache_utils.py `get_num_blocks`): whole ones, none below zero."""
    return max(0, kv_cache_bytes // (kv_bytes_per_token * block_size))


def kv_bytes_per_token(config: ModelConfig, kv_cache_dtype: str = "auto", tensor_parallel_size: int = 1) -> int:
    """Keys and values of one token in all layers on one GPU; UserError for an unknown type."""
    if kv_cache_dtype != "auto" and kv_cache_dtype not in KV_ELEMENT_BYTES:
        known = ", ".join(["auto", *KV_ELEMENT_BYTES])
        raise UserError(Problem("--kv-cache-dtype", f"must be one of {known}", kv_cache_dtype))
    element = config.element_bytes if kv_cache_dtype == "auto" else KV_ELEMENT_BYTES[kv_cache_dtype]
    return 2 * config.num_hidden_layers * local_kv_heads(config, tensor_parallel_size) * config.head_dim * element


def plan_memory(
    config: ModelConfig,
    gpu: Gpu,
    *,
    quantisation: str | None = None,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = DEFAULT_UTILIZATION,
    block_size: int = 16,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> MemoryPlan:
    """Divide one GPU's memory; limits left out are vLLM's defaults on this GPU, the quantisation the checkpoint's.

    Raises UserError when the model leaves no room for a single block.
    """
    stored = checked_quantisation(quantisation or config.quantisation or SHORT_DTYPES[config.dtype])
    seqs = max_num_seqs or gpu.default_max_num_seqs
    tokens = max_num_batched_tokens or gpu.default_max_num_batched_tokens
    weights = weights_of(config, stored, tensor_parallel_size).total
    activation, activation_formula = _activation(config, tensor_parallel_size, seqs, tokens)
    others = NON_TORCH_BYTES + NCCL_BYTES.get(tensor_parallel_size, NCCL_BYTES[8])
    rotary = config.max_position_embeddings * config.head_dim * config.element_bytes
    token_bytes = kv_bytes_per_token(config, kv_cache_dtype, tensor_parallel_size)
    heads = local_kv_heads(config, tensor_parallel_size)
    element = token_bytes // (2 * config.num_hidden_layers * heads * config.head_dim)
    share = f"{gpu.total_bytes:,} x {gpu_memory_utilization:g}"
    figures = (
        Figure("usable memory", int(gpu.total_bytes * gpu_memory_utilization), f"total x utilisation = {share}", True),
        Figure("weights", weights, _weights_formula(config, stored, tensor_parallel_size), True),
        Figure("activations", activation, activation_formula, False),
        Figure("CUDA graphs", GRAPHS_BYTES, "assumed", False),
        Figure("rotary table", rotary, _rotary_formula(config), True),
        Figure("CUDA and NCCL", others, "beside PyTorch: 0.16 GiB, and NCCL's buffers between GPUs", False),
        Figure(
            "KV per token",
            token_bytes,
            f"2 x {config.num_hidden_layers} layers x {heads} KV heads x {config.head_dim} x {element} bytes",
            True,
        ),
    )
    plan = MemoryPlan(
        total_bytes=gpu.total_bytes,
        gpu_memory_utilization=gpu_memory_utilization,
        weights_bytes=weights,
        activation_bytes=activation,
        graphs_bytes=GRAPHS_BYTES,
        reserve_bytes=rotary + others,
        kv_bytes_per_token=token_bytes,
        block_size=block_size,
        figures=figures,
    )
    if plan.num_gpu_blocks < 2:
        raise _too_large(plan, stored, gpu)
    return plan


def _too_large(plan: MemoryPlan, stored: str, gpu: Gpu) -> UserError:
    usable, weights = int(plan.total_bytes * plan.gpu_memory_utilization), plan.weights_bytes
    rest = usable - plan.kv_cache_bytes - weights
    rule = (
        f"{stored} weights need {weights / GIB:.1f} GiB and the rest {rest / GIB:.1f} GiB of the {usable / GIB:.1f} "
        f"GiB that vLLM may take on {gpu.short}: nothing is left for a KV cache"
    )
    mend = "take more GPUs (--tensor-parallel-size), smaller weights (--quantization), or a larger GPU"
    return UserError(Problem("memory", rule, mend=mend))


def _activation(config: ModelConfig, tensor_parallel_size: int, seqs: int, tokens: int) -> tuple[int, str]:
    """The higher of the two peaks of vLLM's profile run: a forward pass of all tokens, and sampling for all requests.

    Forward: the residual and the hidden states, and gate, up and their product, of every token. Sampling: logits of
    every request, with the hidden states of all tokens still held.
    """
    hidden, inner = config.hidden_size, config.intermediate_size // tensor_parallel_size
    experts = config.num_experts_per_tok
    forward = tokens * (2 * hidden + 3 * inner * experts) * config.element_bytes
    vocab = local_vocab(config, 1)  # gathered from all GPUs before sampling
    sampling = seqs * vocab * SAMPLER_BYTES_PER_LOGIT + tokens * hidden * config.element_bytes
    if forward >= sampling:
        times = f" x {experts} experts" if experts > 1 else ""
        text = f"{tokens:,} tokens x (2 x {hidden:,} + 3 x {inner:,}{times}) x {config.element_bytes} bytes"
        return forward, f"forward pass: {text}"
    text = f"{seqs:,} requests x {vocab:,} logits x {SAMPLER_BYTES_PER_LOGIT} bytes + {tokens:,} x {hidden:,} x "
    return sampling, f"sampling: {text}{config.element_bytes}"


def _weights_formula(config: ModelConfig, stored: str, tensor_parallel_size: int) -> str:
    parts = weights_of(config, stored, tensor_parallel_size)
    names = {
        "embeddings": parts.embeddings,
        "head": parts.head,
        f"{stored} layers": parts.layers,
        "norms": parts.others,
    }
    text = " + ".join(f"{name} {value:,}" for name, value in names.items() if value)
    return text if tensor_parallel_size == 1 else f"on each of {tensor_parallel_size} GPUs: {text}"


def _rotary_formula(config: ModelConfig) -> str:
    return f"{config.max_position_embeddings:,} positions x {config.head_dim} x {config.element_bytes} bytes"
