"""What a measurement found, for people: the batch table and the memory, as vLLM resolved it and as it is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simbatch.profiler.fitting.samples import EngineFacts
from simbatch.profiler.measuring.batches import KNEE_FIGURES, knee
from simbatch.sim.statistics.pareto import RULE

if TYPE_CHECKING:
    from rich.table import Table

MIB = 2**20


def batch_table(rows: Sequence[dict[str, Any]], facts: EngineFacts, shares: Sequence[float | None]) -> Table:
    """One row per batch size; `shares` are the utilisations, None where there is no datasheet."""
    from rich.table import Table

    columns = (
        "batch",
        "output tok/s",
        "step ms",
        "TTFT ms",
        "TPOT ms",
        "E2EL ms",
        "KV blocks",
        "MiB/seq",
        "roofline",
        "",
    )
    table = Table(*columns, box=None)
    for column in table.columns[:-1]:
        column.justify = "right"
    for row, share in zip(rows, shares, strict=True):
        table.add_row(
            str(row["batch_size"]),
            f"{row['output_throughput']:,.0f}",
            _ms(row["step_ms"]),
            _ms(row["ttft_ms"]),
            _ms(row["tpot_ms"]),
            _ms(row["e2el_ms"]),
            f"{row['kv_blocks']:,} of {facts.num_gpu_blocks - 1:,}",
            f"{row['kv_bytes_per_seq'] / MIB:,.2f}",
            "-" if share is None else f"{share:.0%}",
            "kv_full" if row["kv_full"] else "",
        )
    return table


def batch_notes(rows: Sequence[dict[str, Any]], facts: EngineFacts, no_roofline: str) -> list[str]:
    """What the table's figures are."""
    if not rows:
        return []
    at = knee(rows)
    notes = [
        f"{rows[0]['prompt_len']} prompt and {rows[0]['output_len']} output tokens each, all sent at once; latencies "
        "are means over the requests, the step is the median with the whole batch decoding",
        f"KV allocated at the start: {facts.kv_cache_bytes / MIB:,.0f} MiB; blocks are those in use at the peak",
        f"knee: {f'batch {at}' if at else 'none'} (of {KNEE_FIGURES}: {RULE})",
    ]
    if no_roofline:
        notes.append(f"roofline: - because {no_roofline}")
    if any(row["kv_full"] for row in rows):
        rule = "kv_full: the batch needs more blocks than there are, so requests queue or are preempted"
        notes.append(f"{rule}; its step is that of those which fit")
    return notes


def memory_table(facts: EngineFacts, planned: dict[str, int]) -> Table:
    """Memory of one GPU: as vLLM says, as the planner predicts, and the difference."""
    from rich.table import Table

    table = Table("memory", "vLLM", "planned", "difference", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, key, is_bytes in _MEMORY:
        real, plan = getattr(facts, key), planned.get(key)
        difference = "-" if real is None or plan is None else _difference(real, plan)
        table.add_row(label, _amount(real, is_bytes), _amount(plan, is_bytes), difference)
    left = (_left(facts, parts) for parts in (facts.model_dump(), planned))
    table.add_row("left of vLLM's share", *(_amount(amount, is_bytes=True) for amount in left), "-")
    return table


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


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
