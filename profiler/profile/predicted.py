"""What is known of an engine without measuring it, beside what was measured.

The batch table of any profile: every batch size simulated, all its requests sent at once. The memory that the planner
predicts, beside what vLLM resolved; and what the datasheet says of the steps in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simbatch.profiler.model.config import ModelConfig, model_config_of
from simbatch.profiler.model.memory_plan import kv_bytes_per_token, num_blocks, plan_memory
from simbatch.profiler.model.roofline import Roofline, roofline_of
from simbatch.profiler.model.weights import weights_of
from simbatch.profiler.profile.batches import KNEE_FIGURES, MIB, batch_sizes, knee, ms_text, plot_throughput
from simbatch.profiler.records.samples import EngineFacts
from simbatch.sim.cost.gpus import GIB, GPUS
from simbatch.sim.cost.profile import MeasuredProfile, Profile
from simbatch.sim.errors import UserError
from simbatch.sim.statistics import RULE
from simbatch.sim.text import table

LARGEST = 256  # of the sizes that are shown unasked
COLUMNS = ("batch", "step ms", "output tok/s", "TTFT ms", "TPOT ms", "E2EL ms", "KV GiB", "roofline", "")


def default_sizes(profile: Profile) -> list[int]:
    """1, 2, 4 ... up to vLLM's default limit on this GPU, 256 at most."""
    return batch_sizes(min(LARGEST, profile.default_max_num_seqs))


def lengths_within(profile: Profile) -> tuple[int, int]:
    """Prompt and output tokens of the table's requests: 512 and 128, or what the profile's length allows."""
    output_len = max(2, min(128, profile.max_model_len // 4))
    return max(1, min(512, profile.max_model_len - output_len)), output_len


def predicted_batches(
    profile: Profile, reference: str | Mapping[str, Any], sizes: Sequence[int], prompt_len: int, output_len: int
) -> list[dict[str, Any]]:
    """Rows of the table by the keys of a measured one; `reference` is the profile as a scenario has it.

    Raises UserError for requests that the profile's KV cache cannot hold.
    """
    return [_row(profile, reference, size, prompt_len, output_len) for size in sizes]


def _row(
    profile: Profile, reference: str | Mapping[str, Any], size: int, prompt_len: int, output_len: int
) -> dict[str, Any]:
    from simbatch import Scenario, simulate

    lengths = {
        "prompt_len": {"distribution": "fixed", "mean": prompt_len},
        "output_len": {"distribution": "fixed", "mean": output_len},
    }
    tokens = max(profile.default_max_num_batched_tokens, size)
    content = {
        "profile": reference,
        "engine": {"max_num_seqs": size, "max_num_batched_tokens": tokens, "enable_prefix_caching": False},
        "workload": {"num_prompts": size, "arrival": {"process": "all_at_once"}, **lengths},
    }
    summary = simulate(Scenario.from_dict(content)).summary
    block = profile.default_block_size
    blocks = size * -(-(prompt_len + output_len - 1) // block)
    usable = profile.num_gpu_blocks_for() - 1
    token_bytes = profile.memory.kv_bytes_per_token if isinstance(profile, MeasuredProfile) else 0
    return {
        "batch_size": size,
        "prompt_len": prompt_len,
        "output_len": output_len,
        "step_ms": summary["median_itl_ms"],
        "output_throughput": summary["output_throughput"],
        "ttft_ms": summary["mean_ttft_ms"],
        "tpot_ms": summary["mean_tpot_ms"],
        "e2el_ms": summary["mean_e2el_ms"],
        "kv_gib": min(blocks, usable) * block * token_bytes / GIB,
        "kv_full": blocks > usable,
    }


def roofline_shares(roofline: Roofline | None, rows: Sequence[dict[str, Any]]) -> Iterator[float | None]:
    """The datasheet's shortest time for a step of the whole batch decoding, over what it takes; None without one.

    None too where the KV cache cannot hold the batch: it never decodes whole.
    """
    for row in rows:
        context = row["prompt_len"] + row["output_len"] // 2
        yield None if row["kv_full"] else _share(roofline, row["batch_size"], context, row["step_ms"])


def _share(roofline: Roofline | None, batch_size: int, context: int, step_ms: float | None) -> float | None:
    """Of a step of decodes at this context each."""
    import numpy as np

    from simbatch.profiler.records import Steps

    if roofline is None or not step_ms:
        return None
    columns = (0, 0, 0, 0, batch_size, batch_size * context, context, context)
    steps = Steps(*(np.array([value], dtype=np.int64) for value in columns))
    return float(roofline.utilisation(steps, np.array([step_ms / 1e3]))[0])


def roofline_of_profile(profile: Profile) -> Roofline | None:
    """What the datasheet allows for a profile's model; None where the model or the GPU is not known."""
    from simbatch.profiler.model.published import find_model

    if not isinstance(profile, MeasuredProfile) or profile.gpu not in GPUS:
        return None
    shape = profile.quantisation, profile.kv_cache_dtype, profile.tensor_parallel_size
    try:
        return roofline_of(find_model(profile.model)[0], GPUS[profile.gpu], *shape)
    except UserError:
        return None


def batch_table(rows: Sequence[dict[str, Any]], shares: Sequence[float | None]) -> list[str]:
    """One row a batch size, the knee marked."""
    at, lines = knee(rows), []
    for row, share in zip(rows, shares, strict=True):
        latencies = [ms_text(row[key]) for key in ("ttft_ms", "tpot_ms", "e2el_ms")]
        kv = f"{row['kv_gib']:.2f}" if row["kv_gib"] else "-"
        marks = ["knee"] if row["batch_size"] == at else []
        marks += ["KV full"] if row["kv_full"] else []
        figures = (ms_text(row["step_ms"]), f"{row['output_throughput']:,.0f}", *latencies, kv)
        used = "-" if share is None else f"{share:.0%}"
        lines.append((str(row["batch_size"]), *figures, used, ", ".join(marks)))
    return table(COLUMNS, lines, num_left=0)


def table_notes(profile: Profile, rows: Sequence[dict[str, Any]], roofline: Roofline | None) -> list[str]:
    """What the table's figures are."""
    first = rows[0]
    notes = [
        f"simulated: {first['prompt_len']:,} prompt and {first['output_len']:,} output tokens each, all sent at once; "
        "latencies are means as a client sees them, the step is the median gap between tokens",
        f"knee of {KNEE_FIGURES}: {RULE}" if knee(rows) else "no knee: throughput and latency grow alike",
    ]
    if isinstance(profile, MeasuredProfile) and profile.tensor_parallel_size > 1:
        notes.append(f"KV of one of {profile.tensor_parallel_size} GPUs")
    if roofline is not None:
        notes.append("roofline: the shortest step that the datasheet allows over the one that is simulated")
    if any(row["kv_full"] for row in rows):
        notes.append("KV full: the batch needs more blocks than there are, so requests queue or are preempted")
    if profile.is_estimate:
        notes.append("nobody measured this profile: its step times are an estimate")
    return notes


def plot_batches(profile: Profile, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Throughput over step latency with the knee, and latencies over the batch size, to a PNG."""
    first = rows[0]
    lengths = f"{first['prompt_len']:,} + {first['output_len']:,} tokens"
    plot_throughput(rows, f"{profile.name}, {lengths}, simulated", path)


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
    steps = ((row["step_batch"], round(row["step_context"] or 0), row["step_ms"]) for row in rows)
    return [_share(roofline, *step) for step in steps], ""


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
