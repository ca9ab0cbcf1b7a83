"""The GPUs that have a short name, in profile names and on the command line."""

from __future__ import annotations

GPU_NAMES = {
    "rtx4090": "NVIDIA GeForce RTX 4090",
    "rtxpro6000": "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
    "a100": "NVIDIA A100",
    "l40s": "NVIDIA L40S",
}


def profile_name(gpu: str, model: str, quantisation: str, kv_cache_dtype: str, tensor_parallel_size: int) -> str:
    """`<gpu>-<model>-<weights>[-kvfp8][-tpN]` in lower case; a model is named without its organisation."""
    parts = [gpu, model.rsplit("/", 1)[-1], quantisation]
    if kv_cache_dtype.startswith("fp8"):
        parts.append("kvfp8")
    if tensor_parallel_size > 1:
        parts.append(f"tp{tensor_parallel_size}")
    return "-".join(parts).lower()
