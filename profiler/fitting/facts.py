"""What a profile says of the engine that was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.sim.cost.gpus import profile_name


def of_engine(engine: EngineFacts, command: str) -> dict[str, Any]:
    """The keys of a profile that the engine's facts fill."""
    return {
        "model": _model(engine),
        "gpu": engine.gpu,
        "quantisation": engine.quantisation,
        "kv_cache_dtype": engine.kv_cache_dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "vllm_version": engine.vllm_version,
        "source": f"measured by simbatch profile on {engine.gpu_name}",
        "licence": "unstated",
        "command": command or engine.command,
        "max_model_len": engine.max_model_len,
        "memory": _memory(engine),
    }


def own_name(engine: EngineFacts) -> str:
    """The name that goes by the project's rule."""
    return profile_name(
        engine.gpu, _model(engine), engine.quantisation, engine.kv_cache_dtype, engine.tensor_parallel_size
    )


def _model(engine: EngineFacts) -> str:
    """A folder's name alone: the rest of its path means nothing on another machine."""
    return Path(engine.model).name if Path(engine.model).is_absolute() else engine.model


def _memory(engine: EngineFacts) -> dict[str, Any]:
    """What vLLM resolved; the reserve is what is left of the share that vLLM may take."""
    weights = engine.weights_bytes if engine.weights_bytes is not None else 0
    kv_bytes = engine.num_gpu_blocks * engine.block_size * engine.kv_bytes_per_token
    known = weights + (engine.activation_bytes or 0) + (engine.graphs_bytes or 0) + kv_bytes
    return {
        "total_bytes": engine.total_bytes,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "weights_bytes": weights,
        "activation_bytes": engine.activation_bytes,
        "graphs_bytes": engine.graphs_bytes,
        "reserve_bytes": int(engine.total_bytes * engine.gpu_memory_utilization) - known,
        "kv_bytes_per_token": engine.kv_bytes_per_token,
        "block_size": engine.block_size,
        "num_gpu_blocks": engine.num_gpu_blocks,
        "num_gpu_blocks_from": "vllm",
    }
