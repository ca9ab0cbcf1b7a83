"""GPU memory of a profile, and the KV blocks that follow from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from simbatch.sim.cost.step_time import Strict

KVCacheType = Literal["float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "float32"]
# Bytes per element of what vLLM accepts as --kv-cache-dtype ("auto" is the profile's own).
KV_ELEMENT_BYTES: dict[str, int] = {
    "float16": 2,
    "bfloat16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}

Bytes = Annotated[int, Field(ge=0, le=2**50)]


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

    @model_validator(mode="after")
    def _adds_up(self) -> Memory:
        computed = self.kv_bytes(self.gpu_memory_utilization) // (self.kv_bytes_per_token * self.block_size)
        if computed != self.num_gpu_blocks:
            raise ValueError(
                f"the parts leave {computed} blocks, not {self.num_gpu_blocks}: num_gpu_blocks must be "
                "(total * gpu_memory_utilization - weights - activation - graphs - reserve) / bytes of a block"
            )
        return self

    def kv_bytes(self, gpu_memory_utilization: float) -> int:
        """What is left for the KV cache, never below zero."""
        taken = self.weights_bytes + (self.activation_bytes or 0) + (self.graphs_bytes or 0) + self.reserve_bytes
        return max(0, int(self.total_bytes * gpu_memory_utilization) - taken)
