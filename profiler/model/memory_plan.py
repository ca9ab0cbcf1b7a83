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
from simbatch.sim.cost.memory import DEFAULT_GPU_MEMORY_UTILIZATION, KV_ELEMENT_BYTES, Memory, Peak
from simbatch.sim.errors import Problem, UserError

DEFAULT_UTILIZATION = DEFAULT_GPU_MEMORY_UTILIZATION
# The sampler's tensors of [max_num_seqs, vocabulary] in the profile run of vLLM's newer model runner (v1/worker/gpu):
# logits in 16 bits and in fp32; nothing is sorted there. The older one, which vLLM 0.32 takes for synchronous
# scheduling, had 33 bytes on an H100.
SAMPLER_BYTES_PER_LOGIT = 6
# Of a token in the forward pass: three times the hidden state (two and the residual), and gate, up and their product.
# With that Llama-3.1-8B takes 864 MiB for 8,192 tokens, as vLLM 0.32 said on an H100.
HIDDEN_STATES, INNER_STATES = 3, 3
NON_TORCH_BYTES = int(0.16 * GIB)  # vLLM's log on an H100, pull request 12126
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792, 8: 411_041_792}  # aiconfigurator's datasheets (Apache-2.0)
GRAPHS_BYTES = 774 * 2**20  # vLLM 0.32 on an H100 with Llama-3.1-8B and all 51 sizes (AWQ: 788 MiB)
GRAPH_SIZES = 51


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
    peak: Peak
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
            peak=self.peak,
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
    peak = peak_of(config, tensor_parallel_size, seqs, tokens)
    activation = peak.bytes_at(seqs, tokens)
    others = NON_TORCH_BYTES + NCCL_BYTES.get(tensor_parallel_size, NCCL_BYTES[8])
    rotary = config.max_position_embeddings * config.head_dim * config.element_bytes
    token_bytes = kv_bytes_per_token(config, kv_cache_dtype, tensor_parallel_size)
    heads = local_kv_heads(config, tensor_parallel_size)
    element = token_bytes // (2 * config.num_hidden_layers * heads * config.head_dim)
    share = f"{gpu.total_bytes:,} x {gpu_memory_utilization:g}"
    figures = (
        Figure("usable memory", int(gpu.total_bytes * gpu_memory_utilization), f"total x utilisation = {share}", True),
        Figure("weights", weights, _weights_formula(config, stored, tensor_parallel_size), True),
        Figure("activations", activation, _activation_formula(config, peak, tensor_parallel_size), False),
        Figure("CUDA graphs", GRAPHS_BYTES, "measured on one H100 with 51 sizes", False),
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
        peak=peak,
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


def peak_of(config: ModelConfig, tensor_parallel_size: int, seqs: int, tokens: int) -> Peak:
    """The two peaks of vLLM's profile run: a forward pass of all tokens, and sampling for all requests.

    Forward: residual and hidden states, and gate, up and their product, of every token. Sampling: logits of every
    request, with the hidden states of all tokens still held.
    """
    hidden, inner = config.hidden_size, config.intermediate_size // tensor_parallel_size
    width = HIDDEN_STATES * hidden + INNER_STATES * inner * config.num_experts_per_tok
    return Peak(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        num_capture_sizes=GRAPH_SIZES,
        forward_bytes_per_token=width * config.element_bytes,
        # gathered from all GPUs before sampling
        sampler_bytes_per_seq=local_vocab(config, 1) * SAMPLER_BYTES_PER_LOGIT,
        sampler_bytes_per_token=hidden * config.element_bytes,
    )


def _activation_formula(config: ModelConfig, peak: Peak, tensor_parallel_size: int) -> str:
    seqs, tokens, element = peak.max_num_seqs, peak.max_num_batched_tokens, config.element_bytes
    hidden, inner = config.hidden_size, config.intermediate_size // tensor_parallel_size
    if peak.bytes_at(seqs, tokens) == peak.forward_bytes_per_token * tokens:
        times = f" x {config.num_experts_per_tok} experts" if config.num_experts_per_tok > 1 else ""
        width = f"({HIDDEN_STATES} x {hidden:,} + {INNER_STATES} x {inner:,}{times})"
        return f"forward pass: {tokens:,} tokens x {width} x {element} bytes"
    logits = f"{local_vocab(config, 1):,} logits x {SAMPLER_BYTES_PER_LOGIT} bytes"
    return f"sampling: {seqs:,} requests x {logits} + {tokens:,} x {hidden:,} x {element} bytes"


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
