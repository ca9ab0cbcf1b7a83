"""What fits a GPU: every known model in 16 bits and quantised, with its KV tokens and estimated speed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.memory_answer import gpu_of_flags, plan_of
from simbatch.profiler.model.published import find_model, published_models
from simbatch.profiler.model.roofline import Roofline, roofline_of
from simbatch.sim.cost.gpus import GIB, Gpu
from simbatch.sim.errors import Problem, UserError

TRIED = ("fp8", "awq")  # of models that are published in 16 bits
PROMPT_LEN, OUTPUT_LEN = 1024, 256  # of the requests of the largest batch


class Listed(NamedTuple):
    """One model that fits; rates in tokens per second on these GPUs, estimated."""

    model: str
    quantization: str
    parameters: int
    weights_gib: float
    kv_cache_tokens: int
    kv_cache_tokens_low: int
    kv_cache_tokens_high: int
    batch: int
    tokens_per_s_at_1: float
    tokens_per_s_at_batch: float


def fitting(flags: Mapping[str, Any]) -> list[Listed]:
    """All that leave room for a request of --context tokens (2,048), the largest first."""
    gpu, context = gpu_of_flags(flags), tokens_of(flags.get("context"))
    rows = []
    for name in published_models():
        config, _, _ = find_model(name)
        stored = [config.quantisation] if config.quantisation else [SHORT_DTYPES[config.dtype], *TRIED]
        for quantisation in [flags["quantization"]] if flags["quantization"] else stored:
            row = _listed(name, config, gpu, {**flags, "quantization": quantisation}, context)
            rows += [row] if row is not None else []
    return sorted(rows, key=lambda row: (-row.parameters, row.model, -row.weights_gib))


def tokens_of(text: str | None) -> int:
    """`32k` is 32,768; nothing is 2,048."""
    if text is None:
        return 2048
    found = re.fullmatch(r"(\d+)(k?)", text.strip().lower())
    if found is None or int(found[1]) == 0:
        raise UserError(Problem("--context", "must be a number of tokens", text, "for example 32k or 8192"))
    return int(found[1]) * (1024 if found[2] else 1)


def _listed(name: str, config: ModelConfig, gpu: Gpu, flags: Mapping[str, Any], context: int) -> Listed | None:
    if context > config.max_position_embeddings:
        return None
    length = flags["max_model_len"] or max(context, min(config.max_position_embeddings, 8192))
    try:
        plan = plan_of(config, gpu, flags, max_model_len=length)
    except UserError:  # it does not fit
        return None
    if plan.layout.blocks_of(context) >= plan.num_gpu_blocks:
        return None
    each = plan.layout.blocks_of(PROMPT_LEN + OUTPUT_LEN)
    batch = max(1, min(plan.limits.max_num_seqs, (plan.num_gpu_blocks - 1) // each))
    gpus = plan.limits.tensor_parallel_size
    roofline = roofline_of(config, gpu, plan.quantisation, flags["kv_cache_dtype"], gpus)
    return Listed(
        model=name,
        quantization=plan.quantisation,
        parameters=config.num_parameters,
        weights_gib=round(plan.weights_bytes / GIB, 2),
        kv_cache_tokens=plan.kv_cache_tokens,
        kv_cache_tokens_low=plan.kv_cache_tokens_low,
        kv_cache_tokens_high=plan.kv_cache_tokens_high,
        batch=batch,
        tokens_per_s_at_1=round(_tokens_per_s(roofline, 1), 1),
        tokens_per_s_at_batch=round(_tokens_per_s(roofline, batch), 1),
    )


def _tokens_per_s(roofline: Roofline, batch: int) -> float:
    """Of one decode step in the middle of the requests' outputs; 0 where nothing is known of the GPU but its memory."""
    if not roofline.gpu.bandwidth_bytes_per_s:
        return 0.0
    return batch / roofline.decode_step_s(batch, PROMPT_LEN + OUTPUT_LEN // 2)


def table_of(rows: Sequence[Listed], flags: Mapping[str, Any]) -> str:
    """As a table for people."""
    gpu, context = gpu_of_flags(flags), tokens_of(flags.get("context"))
    size = flags["tensor_parallel_size"] or 1
    on = f"{size} x {gpu.name}" if size > 1 else gpu.name
    first = f"{len(rows)} models and types of weights hold a request of {context:,} tokens on {on}."
    head = ("model", "weights", "parameters", "GiB", "KV tokens", "between", "tok/s at 1", "batch", "tok/s")
    lines = [
        (
            row.model,
            row.quantization,
            f"{row.parameters / 1e9:.1f}B",
            f"{row.weights_gib:.1f}",
            f"{row.kv_cache_tokens:,}",
            f"{row.kv_cache_tokens_low:,} to {row.kv_cache_tokens_high:,}",
            f"{row.tokens_per_s_at_1:,.0f}",
            f"{row.batch:,}",
            f"{row.tokens_per_s_at_batch:,.0f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    shown = [
        "  ".join(f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in (head, *lines)
    ]
    speed = (
        f"tok/s are estimates of decoding requests of {PROMPT_LEN:,} + {OUTPUT_LEN:,} tokens, alone and in the largest "
        "batch that fits, by the roofline of `simbatch estimate`: the device's steps alone (docs/memory.md)"
    )
    return "\n".join([first, "", *(line.rstrip() for line in shown), "", speed])
