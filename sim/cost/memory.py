"""A profile's GPU memory with the KV blocks that follow from it, and its power.

Power is a straight line through measured servers, in watts: an estimate, without host, fans and cooling.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from simbatch.sim.strict import Strict

KVCacheType = Literal["float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "float32"]
# Bytes per element of what vLLM accepts as --kv-cache-dtype ("auto" is the profile's own).
KV_ELEMENT_BYTES: dict[str, int] = {
    "float16": 2,
    "bfloat16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}

DEFAULT_GPU_MEMORY_UTILIZATION = 0.92  # vLLM's since 0.20 (config/cache.py)

Bytes = Annotated[int, Field(ge=0, le=2**50)]


class Settled(NamedTuple):
    """The engine's limits that memory follows."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_capture_sizes: int | None = None  # CUDA graphs; None: as many as the profile had
    sets_graphs_aside: bool = True  # before the KV cache is made; else (vLLM before 0.20) they come on top


class Peak(Strict):
    """What vLLM's profile run takes at its peak, as it grows with the limits, and the limits that figures are for.

    The higher of two: a forward pass of all tokens, and sampling for all requests.
    """

    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    num_capture_sizes: int | None = Field(default=None, ge=0, description="CUDA graphs that graphs_bytes is for")
    forward_bytes_per_token: Bytes
    sampler_bytes_per_seq: Bytes
    sampler_bytes_per_token: Bytes = Field(description="hidden states that are held meanwhile")

    def bytes_at(self, max_num_seqs: int, max_num_batched_tokens: int) -> int:
        """The peak under these limits."""
        forward = self.forward_bytes_per_token * max_num_batched_tokens
        held = self.sampler_bytes_per_token * max_num_batched_tokens
        return max(forward, self.sampler_bytes_per_seq * max_num_seqs + held)


class Memory(Strict):
    """One GPU's memory as vLLM divides it, in bytes; blocks count vLLM's null block.

    `reserve_bytes` is what total * gpu_memory_utilization leaves after the parts that are known: activations and CUDA
    graphs where nobody measured them, and what other libraries hold. It may be negative.
    """

    total_bytes: Bytes
    gpu_memory_utilization: float = Field(gt=0, le=1)
    weights_bytes: Bytes
    activation_bytes: Bytes | None = Field(default=None, description="at the peak; null: inside the reserve")
    graphs_bytes: Bytes | None = Field(default=None, description="CUDA graphs; null: inside the reserve")
    reserve_bytes: int
    kv_bytes_per_token: int = Field(gt=0, description="keys and values of all layers (GQA heads) on this GPU")
    block_size: int = Field(gt=0)
    num_gpu_blocks: int = Field(gt=1)
    num_gpu_blocks_from: Literal["vllm", "estimate"]
    peak: Peak | None = Field(default=None, description="how blocks follow the limits; null: they do not")

    @model_validator(mode="after")
    def _adds_up(self) -> Memory:
        computed = self.kv_bytes(self.gpu_memory_utilization) // (self.kv_bytes_per_token * self.block_size)
        if computed != self.num_gpu_blocks:
            raise ValueError(
                f"the parts leave {computed} blocks, not {self.num_gpu_blocks}: num_gpu_blocks must be "
                "(total * gpu_memory_utilization - weights - activation - graphs - reserve) / bytes of a block"
            )
        return self

    def kv_bytes(self, gpu_memory_utilization: float, settled: Settled | None = None) -> int:
        """What is left for the KV cache, never below zero; without `settled` under the limits of the figures."""
        taken = self.weights_bytes + (self.activation_bytes or 0) + (self.graphs_bytes or 0) + self.reserve_bytes
        if self.peak is not None and settled is not None:
            taken += self._moved_bytes(self.peak, settled)
        if settled is not None and not settled.sets_graphs_aside:
            taken -= self._graphs_bytes(settled)
        return max(0, int(self.total_bytes * gpu_memory_utilization) - taken)

    def _moved_bytes(self, peak: Peak, settled: Settled) -> int:
        """What other limits take more: activations by the peak's formula, graphs by their number."""
        own = peak.bytes_at(peak.max_num_seqs, peak.max_num_batched_tokens)
        moved = peak.bytes_at(settled.max_num_seqs, settled.max_num_batched_tokens) - own
        return moved + self._graphs_bytes(settled) - (self.graphs_bytes or 0)

    def _graphs_bytes(self, settled: Settled) -> int:
        """All CUDA graphs: each of them takes as much."""
        own = self.graphs_bytes or 0
        if self.peak is None or not self.peak.num_capture_sizes or settled.num_capture_sizes is None:
            return own
        return own + own * (settled.num_capture_sizes - self.peak.num_capture_sizes) // self.peak.num_capture_sizes


Watts = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
JOULES_PER_KWH = 3.6e6


class GpuPower(Strict):
    """`idle_w` always, `busy_w` more while the device has a step, and `per_token_j` for each token of it, in and out.

    For example 150 + 300 x 0.9 + 0.01 x 15,000 tokens per second = 570 W.
    """

    idle_w: Watts = Field(description="between steps, the model loaded, W")
    busy_w: Watts = Field(description="more during steps, W")
    per_token_j: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = Field(
        description="more for each token, prompts and outputs alike, J"
    )
    error: Annotated[float, Field(ge=0, le=1)] = Field(description="largest relative error of runs not fitted on")
    source: str = Field(description="what was measured")

    def watts(self, busy_share: float, tokens_per_s: float) -> float:
        """Of one GPU on average."""
        return self.idle_w + self.busy_w * busy_share + self.per_token_j * tokens_per_s


def kwh_per_million(watts: float, tokens_per_s: float) -> float | None:
    """Energy of a million tokens at this pace: 720 W at 1,000 tokens a second are 0.2 kWh."""
    return watts / tokens_per_s * 1e6 / JOULES_PER_KWH if tokens_per_s else None
