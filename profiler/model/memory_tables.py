"""Memory against batch size: what weights, reserves and the requests' KV cache take, as a table and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.model import gpu_of_flags, plan_of
from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.memory_batch import held_blocks, lengths_of_flags
from simbatch.profiler.model.memory_plan import MemoryPlan
from simbatch.profiler.model.published import find_model, published_models
from simbatch.profiler.model.roofline import Roofline, roofline_of
from simbatch.sim.cost.gpus import GIB, Gpu
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.text import table, wrapped

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
    head = ("model", "weights", "GiB", "KV tokens", "between", "tok/s\nalone", "batch", "tok/s\nbatch")
    lines = [
        (
            row.model,
            row.quantization,
            f"{row.weights_gib:.1f}",
            f"{row.kv_cache_tokens:,}",
            f"{row.kv_cache_tokens_low // 1000:,}k to {row.kv_cache_tokens_high // 1000:,}k",
            f"{row.tokens_per_s_at_1:,.0f}",
            f"{row.batch:,}",
            f"{row.tokens_per_s_at_batch:,.0f}",
        )
        for row in rows
    ]
    speed = (
        f"tok/s are estimates of decoding requests of {PROMPT_LEN:,} + {OUTPUT_LEN:,} tokens, alone and in the largest "
        "batch that fits, by the roofline of `simbatch estimate`: the device's steps alone (docs/memory.md)"
    )
    return "\n".join([first, "", *table(head, lines, num_left=2), "", *wrapped([speed])])


class BatchMemory(NamedTuple):
    """GiB of one batch size; `kv_gib` on average over its steps, `kv_most_gib` when all are at their longest."""

    batch: int
    weights_gib: float
    reserves_gib: float
    kv_gib: float
    kv_most_gib: float
    fits: bool


@dataclass(frozen=True)
class ByBatch:
    """All batch sizes of a plan."""

    title: str
    usable_gib: float
    total_gib: float
    kv_gib: float
    rows: tuple[BatchMemory, ...]

    def content(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [row._asdict() for row in self.rows]

    def text(self) -> str:
        """As a table."""
        head = ("requests", "weights", "reserves", "KV, mean", "KV, longest", "together", "")
        lines = [
            (
                f"{row.batch:,}",
                *(f"{value:.2f}" for value in row[1:5]),
                f"{row.weights_gib + row.reserves_gib + row.kv_most_gib:.2f}",
                "fits" if row.fits else f"above {self.usable_gib:.2f} GiB",
            )
            for row in self.rows
        ]
        return "\n".join(["Memory in GiB by requests that run at once", *table(head, lines, num_left=0)])


def by_batch(model: str, flags: Mapping[str, Any], batches: str | None) -> ByBatch:
    """Of the sizes in `batches` (`1,8,64`), or of those up to what fits; UserError without lengths."""
    lengths = lengths_of_flags(flags)
    if lengths is None:
        mend = "add --prompt-len and --output-len, or --trace"
        raise UserError(Problem("--batches", "needs the lengths of the requests", mend=mend))
    gpu = gpu_of_flags(flags)
    config, name, _ = find_model(model, flags.get("assume"))
    plan = plan_of(config, gpu, flags)
    kept = lengths.within(plan.limits.max_model_len)
    held = held_blocks(kept, plan.layout.held_by)
    mean = float(held @ np.arange(len(held)))
    longest = (kept.num_prompt_tokens + kept.num_output_tokens).max(keepdims=True) - 1
    most = int(plan.layout.held_by(longest)[0])
    sizes = _sizes(batches, max(1, (plan.num_gpu_blocks - 1) // most))
    rows = tuple(_batch(plan, size, mean, most) for size in sizes)
    title = f"{name} on {gpu.name}: {lengths.source}"
    sizes_gib = plan.usable_bytes / GIB, plan.total_bytes / GIB, plan.kv_cache_bytes / GIB
    return ByBatch(title, *sizes_gib, rows)


def _batch(plan: MemoryPlan, size: int, mean: float, most: int) -> BatchMemory:
    a_block = plan.layout.bytes_per_block / GIB
    reserves = sum(part.value for part in plan.parts) / GIB
    fits = size * most <= plan.num_gpu_blocks - 1
    return BatchMemory(size, plan.weights_bytes / GIB, reserves, size * mean * a_block, size * most * a_block, fits)


def _sizes(batches: str | None, largest: int) -> list[int]:
    if batches is None:
        sizes = {2**power for power in range(20) if 2**power < largest}
        return sorted({*sizes, largest, -(-5 * largest // 4)})
    words = batches.split(",")
    if not all(word.strip().isdigit() and int(word) > 0 for word in words):
        raise UserError(Problem("--batches", "must be whole numbers with commas", batches, "for example 1,8,64"))
    return sorted({int(word) for word in words})


def draw(table: ByBatch, path: Path) -> None:
    """To a PNG: stacked bars, the GPU's memory and vLLM's share of it as lines."""
    from simbatch.sim.report.style import LIMIT, PALETTE, figure, headline

    with figure(path, 8.5, 4.2) as drawing:
        headline(drawing, f"Memory by batch size. {table.title}")
        axes = drawing.subplots()
        places, base = np.arange(len(table.rows)), np.zeros(len(table.rows))
        stacks: Sequence[tuple[str, list[float]]] = (
            ("weights", [row.weights_gib for row in table.rows]),
            ("activations, graphs, libraries", [row.reserves_gib for row in table.rows]),
            ("KV cache, mean", [row.kv_gib for row in table.rows]),
            ("KV cache, all at their longest", [row.kv_most_gib - row.kv_gib for row in table.rows]),
        )
        for (label, values), colour in zip(stacks, PALETTE, strict=False):
            axes.bar(places, values, bottom=base, color=colour, label=label, width=0.7)
            base = base + np.array(values)
        axes.axhline(table.usable_gib, color=LIMIT, linewidth=1.2, label=f"vLLM may take {table.usable_gib:.1f} GiB")
        axes.axhline(
            table.total_gib, color="#999999", linewidth=1, linestyle="--", label=f"GPU {table.total_gib:.1f} GiB"
        )
        axes.set_xticks(places, [f"{row.batch:,}" for row in table.rows])
        axes.set_xlabel("requests that run at once")
        axes.set_ylabel("GiB")
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
