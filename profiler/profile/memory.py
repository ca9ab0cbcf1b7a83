"""Memory of a measured engine as vLLM resolved it and as it is planned, and what the datasheet says of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simbatch.profiler.model.config import ModelConfig, model_config_of
from simbatch.profiler.model.memory_plan import kv_bytes_per_token, num_blocks, plan_memory
from simbatch.profiler.model.roofline import roofline_of
from simbatch.profiler.model.weights import weights_of
from simbatch.profiler.records.samples import BatchEntry, EngineFacts, StepSample, steps_of
from simbatch.sim.cost.gpus import GPUS
from simbatch.sim.errors import UserError
from simbatch.sim.text import table

MIB = 2**20


def planned_memory(facts: EngineFacts) -> tuple[dict[str, int], str]:
    """The planner's figures by the names of EngineFacts, and words for what it cannot say."""
    try:
        config = model_config_of(facts.architecture, facts.model)
        if facts.gpu in GPUS and facts.kv_cache_memory_bytes is None:
            return _on_gpu(config, facts), "planned from config.json, the GPU's memory and the flags (docs/memory.md)"
        return _with_set_size(config, facts)
    except UserError as error:
        return {}, f"nothing is planned: {error}"


def utilisation(facts: EngineFacts, rows: Sequence[dict[str, Any]]) -> tuple[list[float | None], str]:
    """The share of the roofline in each row's decode steps, and why there is none."""
    nothing: list[float | None] = [None] * len(rows)
    if facts.gpu not in GPUS:
        return nothing, f"simbatch has no datasheet of {'a CPU' if facts.gpu == 'cpu' else facts.gpu_name}"
    try:
        config = model_config_of(facts.architecture, facts.model)
        shape = facts.quantisation, facts.kv_cache_dtype, facts.tensor_parallel_size
        roofline = roofline_of(config, GPUS[facts.gpu], *shape)
    except UserError as error:
        return nothing, str(error)
    return [_share(roofline, row) for row in rows], ""


def _on_gpu(config: ModelConfig, facts: EngineFacts) -> dict[str, int]:
    plan = plan_memory(
        config,
        replace(GPUS[facts.gpu], total_bytes=facts.total_bytes),
        quantisation=facts.quantisation,
        kv_cache_dtype=facts.kv_cache_dtype,
        tensor_parallel_size=facts.tensor_parallel_size,
        gpu_memory_utilization=facts.gpu_memory_utilization,
        block_size=facts.block_size,
        max_num_seqs=facts.max_num_seqs,
        max_num_batched_tokens=facts.max_num_batched_tokens,
    )
    names = ("weights_bytes", "activation_bytes", "graphs_bytes", "kv_bytes_per_token", "num_gpu_blocks")
    return {"kv_cache_bytes": plan.kv_cache_bytes, **{name: getattr(plan, name) for name in names}}


def _with_set_size(config: ModelConfig, facts: EngineFacts) -> tuple[dict[str, int], str]:
    """Where the KV cache's size was set, or where there is no datasheet: what follows from config.json alone."""
    token_bytes = kv_bytes_per_token(config, facts.kv_cache_dtype, facts.tensor_parallel_size)
    weights = weights_of(config, facts.quantisation, facts.tensor_parallel_size).total
    planned = {"weights_bytes": weights, "kv_bytes_per_token": token_bytes}
    if facts.kv_cache_memory_bytes is None:
        return (
            planned,
            "blocks are not planned: their number was set, or is what other processes left of the host's memory",
        )
    planned["num_gpu_blocks"] = num_blocks(facts.kv_cache_memory_bytes, token_bytes, facts.block_size)
    planned["kv_cache_bytes"] = planned["num_gpu_blocks"] * token_bytes * facts.block_size
    size = f"{facts.kv_cache_memory_bytes / 2**30:g} GiB"
    return planned, f"planned from config.json and the KV cache's size, which was set to {size} (on a CPU: " + (
        "VLLM_CPU_KVCACHE_SPACE, 1 GiB unless set)"
    )


def _share(roofline: Any, row: dict[str, Any]) -> float | None:
    if not row["step_ms"]:
        return None
    entry = BatchEntry(round(row["step_context"]), 1, True)
    sample = StepSample(0, False, row["step_ms"] / 1e3, (entry,) * row["step_batch"])
    steps, duration_s, _ = steps_of([sample])
    return float(np.asarray(roofline.utilisation(steps, duration_s))[0])


def memory_table(facts: EngineFacts, planned: dict[str, int]) -> list[str]:
    """Memory of one GPU: as vLLM says, as the planner predicts, and the difference."""
    rows: list[tuple[str, ...]] = []
    for label, key, is_bytes in _MEMORY:
        real, plan = getattr(facts, key), planned.get(key)
        difference = "-" if real is None or plan is None else _difference(real, plan)
        rows.append((label, _amount(real, is_bytes), _amount(plan, is_bytes), difference))
    left = (_left(facts, parts) for parts in (facts.model_dump(), planned))
    rows.append(("left of vLLM's share", *(_amount(amount, is_bytes=True) for amount in left), "-"))
    return table(("memory", "vLLM", "planned", "difference"), rows)


def _left(facts: EngineFacts, parts: Mapping[str, Any]) -> int | None:
    """What weights, activations, graphs and KV cache leave of the memory that vLLM may take; None on a CPU."""
    if parts.get("weights_bytes") is None or facts.gpu == "cpu":
        return None
    taken = sum(parts.get(key) or 0 for _, key, is_bytes in _MEMORY if is_bytes)
    return int(facts.total_bytes * facts.gpu_memory_utilization) - taken


_MEMORY = (
    ("weights", "weights_bytes", True),
    ("peak activation", "activation_bytes", True),
    ("CUDA graphs", "graphs_bytes", True),
    ("KV cache", "kv_cache_bytes", True),
    ("KV bytes per token", "kv_bytes_per_token", False),
    ("block size", "block_size", False),
    ("KV blocks", "num_gpu_blocks", False),
)


def _amount(value: float | None, is_bytes: bool) -> str:
    if value is None:
        return "-"
    return f"{value / MIB:,.1f} MiB" if is_bytes else f"{value:,.0f}"


def _difference(real: float, planned: float) -> str:
    return "exact" if real == planned else f"{(planned - real) / real:+.1%}" if real else f"{planned - real:+,.0f}"
