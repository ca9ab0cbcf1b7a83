"""The GPUs that have a short name, in profile names and on the command line, with their datasheets.

Peak rates are dense. H100, H200, A100, L40S and RTX PRO 6000: NVIDIA's datasheets as collected by aiconfigurator
(github.com/ai-dynamo/aiconfigurator, Apache-2.0). RTX 4090: NVIDIA's Ada whitepaper, with fp32 accumulation for bf16
and fp8. `total_bytes` is what CUDA reports where a recorded run or error message says so, less than the memory on the
box.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in bytes, rates per second; `flops` by the type that is multiplied (bf16, fp8, int8)."""

    short: str
    name: str
    total_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: dict[str, float]
    link_bytes_per_s: float  # to another GPU of the node, one direction

    @property
    def default_max_num_seqs(self) -> int:
        """VLLM 0.32's default."""
        return default_batch_limits(self.short, self.total_bytes)[0]

    @property
    def default_max_num_batched_tokens(self) -> int:
        """VLLM 0.32's default."""
        return default_batch_limits(self.short, self.total_bytes)[1]

    def peak_flops_per_s(self, dtype: str) -> float:
        """The dense peak for a type; one that the GPU cannot multiply is computed in bf16."""
        return self.flops_per_s.get(dtype, self.flops_per_s["bf16"])


GPUS = {
    gpu.short: gpu
    for gpu in (
        Gpu(
            short="rtx4090",
            name="NVIDIA GeForce RTX 4090",
            total_bytes=25_250_627_584,  # a recorded run of LLMServingSim's (MIT)
            bandwidth_bytes_per_s=1008e9,
            flops_per_s={"bf16": 165.2e12, "fp8": 330.3e12, "int8": 660.6e12},
            link_bytes_per_s=32e9,
        ),
        Gpu(
            short="rtxpro6000",
            name="NVIDIA RTX PRO 6000 Blackwell Server Edition",
            total_bytes=int(94.97 * GIB),
            bandwidth_bytes_per_s=1792e9,
            flops_per_s={"bf16": 467.8e12, "fp8": 935.6e12, "int8": 935.6e12},
            link_bytes_per_s=64e9,
        ),
        Gpu(
            short="h100",
            name="NVIDIA H100",
            total_bytes=int(79.11 * GIB),  # vLLM issue 27508
            bandwidth_bytes_per_s=3350e9,
            flops_per_s={"bf16": 989e12, "fp8": 1978e12, "int8": 1978e12},
            link_bytes_per_s=450e9,
        ),
        Gpu(
            short="h200",
            name="NVIDIA H200",
            total_bytes=int(139.8 * GIB),
            bandwidth_bytes_per_s=4800e9,
            flops_per_s={"bf16": 989e12, "fp8": 1978e12, "int8": 1978e12},
            link_bytes_per_s=450e9,
        ),
        Gpu(
            short="a100",
            name="NVIDIA A100",
            total_bytes=int(79.15 * GIB),
            bandwidth_bytes_per_s=2039e9,
            flops_per_s={"bf16": 312e12, "int8": 624e12},
            link_bytes_per_s=300e9,
        ),
        Gpu(
            short="l40s",
            name="NVIDIA L40S",
            total_bytes=int(44.53 * GIB),  # vLLM issue 15598
            bandwidth_bytes_per_s=864e9,
            flops_per_s={"bf16": 362e12, "fp8": 733e12, "int8": 733e12},
            link_bytes_per_s=32e9,
        ),
    )
}
GPU_NAMES = {short: gpu.name for short, gpu in GPUS.items()}


def default_batch_limits(gpu: str, total_bytes: int) -> tuple[int, int]:
    """VLLM 0.32's `max_num_seqs` and `max_num_batched_tokens` (engine/arg_utils.py): by memory, but low on A100."""
    if total_bytes < 70 * GIB or gpu == "a100":
        return 256, 2048
    return 1024, 16384 if total_bytes >= 160 * GIB else 8192


DATA_CENTER_BLACKWELL = ("b200", "b300", "gb200", "gb300")  # compute capability 10.x


def default_max_capture_size(gpu: str) -> int:
    """Tokens in the largest CUDA graph that vLLM 0.32 captures unasked (config/vllm.py); on a CPU it captures none."""
    if gpu == "cpu":
        return 0
    return 1024 if gpu in DATA_CENTER_BLACKWELL else 512


def profile_name(gpu: str, model: str, quantisation: str, kv_cache_dtype: str, tensor_parallel_size: int) -> str:
    """`<gpu>-<model>-<weights>[-kvfp8][-tpN]` in lower case; a model is named without its organisation."""
    parts = [gpu, model.rsplit("/", 1)[-1], quantisation]
    if kv_cache_dtype.startswith("fp8"):
        parts.append("kvfp8")
    if tensor_parallel_size > 1:
        parts.append(f"tp{tensor_parallel_size}")
    return "-".join(parts).lower()
