"""How vLLM will divide a GPU's memory, figure by figure with its formula, before any GPU is there.

Exact: bytes of the weights (with their real shapes and quantisation), the KV cache's layout, and the number of blocks
that given bytes make. Estimated, between bounds: what vLLM measures at its start (`reserves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.kv_layout import ONE_BYTE, KVLayout, kv_layout, stored_kv_type
from simbatch.profiler.model.published import find_model
from simbatch.profiler.model.quantisation import checked_quantisation
from simbatch.profiler.model.reserves import ACTIVATIONS, GRAPHS, Limits, Reserve, memory_version, reserves, spread
from simbatch.profiler.model.weights import Weights, weights_of
from simbatch.sim.cost.gpus import GIB, Gpu, find_gpu
from simbatch.sim.cost.sections import DEFAULT_GPU_MEMORY_UTILIZATION, Memory, Peak
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scheduler.config import NEWEST, Version

DEFAULT_UTILIZATION = DEFAULT_GPU_MEMORY_UTILIZATION
TOKENS_BY_REQUESTS = (0, 20, 1)  # before it vLLM logs blocks / groups x the smallest block
PREFIXES_OF_STATES = (0, 28)  # before it prefixes of models with states are cached only where asked for
VISION_SHARE = 0.5  # how far the estimate of a vision tower's bytes may be off


@dataclass(frozen=True)
class MemoryPlan:
    """One GPU's memory, in bytes; blocks count vLLM's null block.

    `kv_less` and `kv_more` say how far the KV cache may be off in nine of ten starts.
    """

    total_bytes: int
    gpu_memory_utilization: float
    weights: Weights
    quantisation: str
    kv_cache_dtype: str
    parts: tuple[Reserve, ...]
    layout: KVLayout
    limits: Limits
    peak: Peak
    kv_less: int
    kv_more: int

    @property
    def usable_bytes(self) -> int:
        """What vLLM may take."""
        return int(self.total_bytes * self.gpu_memory_utilization)

    @property
    def weights_bytes(self) -> int:
        """On this GPU."""
        return self.weights.total

    def part(self, label: str) -> int:
        """Bytes of one reserve, 0 where there is none."""
        return sum(part.value for part in self.parts if part.label == label)

    @property
    def activation_bytes(self) -> int:
        """At the peak of the profile run."""
        return self.part(ACTIVATIONS)

    @property
    def graphs_bytes(self) -> int:
        """Of CUDA graphs, where they are set aside."""
        return self.part(GRAPHS)

    @property
    def reserve_bytes(self) -> int:
        """All other reserves."""
        return sum(part.value for part in self.parts) - self.activation_bytes - self.graphs_bytes

    @property
    def kv_element_bytes(self) -> int:
        """Of a key's or value's number where the type is a plain one."""
        return 1 if self.kv_cache_dtype in ONE_BYTE else 2

    @property
    def block_size(self) -> int:
        """Tokens of a block of full attention."""
        return self.layout.block_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a request of `max_model_len`, on average over its tokens."""
        return self.layout.bytes_per_token(self.limits.max_model_len)

    @property
    def kv_cache_bytes(self) -> int:
        """What is left for the KV cache, below zero when the model does not fit."""
        return self.usable_bytes - self.weights_bytes - sum(part.value for part in self.parts)

    @property
    def num_gpu_blocks(self) -> int:
        """Whole blocks."""
        return self.layout.num_blocks(self.kv_cache_bytes)

    @property
    def num_gpu_blocks_low(self) -> int:
        """With all reserves at their worst for nine of ten starts."""
        return self.layout.num_blocks(self.kv_cache_bytes - self.kv_less)

    @property
    def num_gpu_blocks_high(self) -> int:
        """With all reserves at their best for nine of ten starts."""
        return self.layout.num_blocks(self.kv_cache_bytes + self.kv_more)

    @property
    def counts_requests(self) -> bool:
        """Whether this vLLM logs tokens by requests of `max_model_len`; older ones take all groups for alike."""
        return self.layout.is_uniform or self.limits.version >= TOKENS_BY_REQUESTS

    def tokens(self, num_blocks: int) -> int:
        """The `GPU KV cache size` that this vLLM logs of so many blocks."""
        if not self.counts_requests:
            return num_blocks // len(self.layout.groups) * self.layout.smallest_block_size
        return self.layout.tokens(num_blocks, self.limits.max_model_len)

    @property
    def kv_cache_tokens(self) -> int:
        """As vLLM logs it, most likely."""
        return self.tokens(self.num_gpu_blocks)

    @property
    def kv_cache_tokens_low(self) -> int:
        """Nine of ten starts have more than this and less than `kv_cache_tokens_high`."""
        return self.tokens(self.num_gpu_blocks_low)

    @property
    def kv_cache_tokens_high(self) -> int:
        """The other bound."""
        return self.tokens(self.num_gpu_blocks_high)

    @property
    def max_kv_tokens(self) -> int:
        """Tokens that all requests together can hold; the null block holds none."""
        if self.layout.is_uniform:
            return max(0, self.num_gpu_blocks - 1) * self.block_size
        return self.layout.tokens(max(0, self.num_gpu_blocks - 1), self.limits.max_model_len)

    def memory(self) -> Memory:
        """As a profile says it, marked as an estimate; blocks of a layout with windows or states are put in tokens."""
        token_bytes = self.kv_bytes_per_token
        blocks = self.num_gpu_blocks
        if not self.layout.is_uniform:
            blocks = max(0, self.kv_cache_bytes) // (token_bytes * self.block_size)
        return Memory(
            total_bytes=self.total_bytes,
            gpu_memory_utilization=self.gpu_memory_utilization,
            weights_bytes=self.weights_bytes,
            activation_bytes=self.activation_bytes,
            graphs_bytes=self.graphs_bytes,
            reserve_bytes=self.reserve_bytes,
            kv_bytes_per_token=token_bytes,
            block_size=self.block_size,
            num_gpu_blocks=blocks,
            num_gpu_blocks_from="estimate",
            peak=self.peak,
        )


def kv_bytes_per_token(config: ModelConfig, kv_cache_dtype: str = "auto", tensor_parallel_size: int = 1) -> int:
    """Keys and values of one token in all layers on a GPU; of a request of the model's length where layers differ."""
    layout = kv_layout(config, kv_cache_dtype, tensor_parallel_size)
    return layout.bytes_per_token(config.max_position_embeddings)


def num_blocks(kv_cache_bytes: int, kv_bytes_per_token: int, block_size: int) -> int:
    """Blocks that the bytes make where all layers keep all tokens: whole ones, none below zero."""
    return max(0, kv_cache_bytes // (kv_bytes_per_token * block_size))


def plan_memory(
    model: ModelConfig | str | Path,
    gpu: Gpu | str,
    *,
    quantisation: str | None = None,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    expert_parallel: bool = False,
    gpu_memory_utilization: float | None = None,
    block_size: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int | None = None,
    enforce_eager: bool = False,
    enable_prefix_caching: bool | None = None,
    vllm_version: str = NEWEST,
    assume: str | None = None,
) -> MemoryPlan:
    """Divide one GPU's memory; what is left out is vLLM's default on this GPU, the quantisation the checkpoint's.

    `model`: a folder, a config.json, or a Hugging Face name that the shipped table knows; `gpu`: a name of the list.
    Raises UserError when the model leaves no room for two blocks.

    >>> from simbatch import plan_memory
    >>> plan_memory("Qwen/Qwen3-8B", "rtx4090", max_model_len=8192).kv_cache_tokens
    31216
    """
    config = model if isinstance(model, ModelConfig) else find_model(model, assume)[0]
    gpu = gpu if isinstance(gpu, Gpu) else find_gpu(gpu)
    stored = checked_quantisation(quantisation or config.quantisation or SHORT_DTYPES[config.dtype])
    version = memory_version(vllm_version)
    limits = Limits(
        max_num_seqs=max_num_seqs or gpu.default_max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens or gpu.default_max_num_batched_tokens,
        max_model_len=max_model_len or config.max_position_embeddings,
        enforce_eager=enforce_eager,
        tensor_parallel_size=tensor_parallel_size,
        version=version,
        is_quantised=stored not in SHORT_DTYPES.values(),
    )
    weights = weights_of(config, stored, tensor_parallel_size, expert_parallel=expert_parallel)
    layout = _layout(config, kv_cache_dtype, block_size, limits, enable_prefix_caching)
    parts, peak = reserves(config, gpu, limits)
    less, more = _either_way(parts, weights)
    plan = MemoryPlan(
        total_bytes=gpu.total_bytes,
        gpu_memory_utilization=gpu_memory_utilization or default_utilization(version),
        weights=weights,
        quantisation=stored,
        kv_cache_dtype=resolved_kv_type(config, kv_cache_dtype),
        parts=tuple(parts),
        layout=layout,
        limits=limits,
        peak=peak,
        kv_less=more,  # where reserves take more, less is left
        kv_more=less,
    )
    if plan.num_gpu_blocks < 2:
        raise _too_large(plan, gpu)
    return plan


def default_utilization(version: Version) -> float:
    """VLLM's `gpu_memory_utilization`: 0.92 since 0.20, 0.9 before (config/cache.py)."""
    return DEFAULT_UTILIZATION if version >= (0, 20) else 0.9


def resolved_kv_type(config: ModelConfig, kv_cache_dtype: str) -> str:
    """The KV cache's type by name: `auto` is the checkpoint's, and else the model's own."""
    kept = stored_kv_type(config, kv_cache_dtype)
    return config.dtype if kept == "auto" else kept


def _either_way(parts: Sequence[Reserve], weights: Weights) -> tuple[int, int]:
    """How much less and more than likely reserves and a vision tower take together."""
    less, more = spread(parts)
    vision = int(VISION_SHARE * weights.vision)
    return less + vision, more + vision


def _layout(
    config: ModelConfig, kv_cache_dtype: str, block_size: int | None, limits: Limits, caches_prefixes: bool | None
) -> KVLayout:
    """Since 0.26 two batches may be in flight; where prefixes are cached a request has two states."""
    caches = limits.version >= PREFIXES_OF_STATES if caches_prefixes is None else caches_prefixes
    return kv_layout(
        config,
        kv_cache_dtype,
        limits.tensor_parallel_size,
        block_size,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        batches=2 if limits.version >= (0, 26) else 1,
        states=2 if caches else 1,
        has_checkpoints=caches and limits.version >= (0, 30),
    )


def _too_large(plan: MemoryPlan, gpu: Gpu) -> UserError:
    usable, weights = plan.usable_bytes, plan.weights_bytes
    rest = usable - plan.kv_cache_bytes - weights
    rule = (
        f"{plan.quantisation} weights need {weights / GIB:.1f} GiB and the rest {rest / GIB:.1f} GiB of the "
        f"{usable / GIB:.1f} GiB that vLLM may take on {gpu.short}: nothing is left for a KV cache"
    )
    mend = "take more GPUs (--tensor-parallel-size), smaller weights (--quantization), or a larger GPU"
    return UserError(Problem("memory", rule, mend=mend))
