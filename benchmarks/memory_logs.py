"""The memory planner against what vLLM logged when it started: the table of docs/memory.md.

    python -m benchmarks.memory_logs --logs ../shared/cases/kv-logs.jsonl --models ../shared/models/more [--markdown]

Each log has settings, what vLLM said of its KV cache, and where it was published. The GPU is the log's, its memory too
where the log says it; of a GPU that is not named, the memory of its class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import parser_of
from simbatch.profiler.model.config import read_model_config
from simbatch.profiler.model.memory_plan import MemoryPlan, plan_memory
from simbatch.profiler.model.reserves import memory_version
from simbatch.sim.cost.gpus import GIB, GPUS, Gpu, known_gpu
from simbatch.sim.errors import UserError

NEW = (0, 20)
CLASSES = {  # what a log without a name says of its GPU, and one of that class
    "48 GB class (A6000 / 6000 Ada)": "a6000",
    "44.5 GiB class (L40S / A40 / L20)": "l40s",
    "45 GiB class x2": "l40s",
    "24 GB class": "a5000",
    "24 GB class (23.99 GiB)": "a5000",
    "22 GiB class": "l4",
    "a100/h100 80": "a100",
    "a10/2080ti-22g class (21.48 GiB)": "a10",
    "rtx4070-laptop (8188 MiB)": "rtx4080",
}
LAPTOP_GIB = {"rtx4070-laptop (8188 MiB)": 8188 / 1024}
# What a log's source says elsewhere than in the lines that were taken from it, or its model's name where the config of
# another stands for its own.
SAID_ELSEWHERE: dict[str, dict[str, Any]] = {
    # the project's notes: "1.5B bf16, util 0.8, 8188 MiB RTX 4070 Laptop"
    "4070l-qwen2.5-1.5b": {"gpu_memory_utilization": 0.8},
    # beside the log: "21.6 GiB budget (gpu_memory_utilization 0.90 of a 24 GB card)"
    "x-qwen2.5-32b-awq": {"gpu_memory_utilization": 0.9, "gpu_total_gib": 24.0},
    # the pull request: 0.27.1 with prefix caching; the config is that of an NVFP4 checkpoint
    "3090x2-qwen3.8-27b-fp8-tp2": {"quantisation": "fp8_block", "vllm": "0.27.1", "enable_prefix_caching": True},
    "5090-qwen3.8-27b-nvfp4-0.90": {"vllm": "0.27.1"},  # the project's notes
    # the config is that of an NVFP4 checkpoint with an fp8 KV cache
    "a100-80-gemma-4-31b-awq-0.21": {"quantisation": "awq", "kv_cache_dtype": "bfloat16"},
}
VERSIONS = {"0.2x": "0.28", "2026": "0.30", "before 0.28": "0.19"}


class Row(NamedTuple):
    """One log beside its plan; `error` of KV tokens, or of KV bytes where the log has no tokens."""

    name: str
    version: tuple[int, int]
    logged: str
    planned: str
    bounds: str
    error: float | None
    is_inside: bool | None
    token_error: float | None
    note: str = ""


def main() -> None:
    """Print the table, and how many are how far off."""
    parser = parser_of(__doc__)
    parser.add_argument("--logs", type=Path, default=Path("../shared/cases/kv-logs.jsonl"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models/more"))
    arguments = parser.parse_args()
    logs = [json.loads(line) for line in arguments.logs.read_text(encoding="utf-8").splitlines()]
    rows = [row_of({**log, **SAID_ELSEWHERE.get(log["id"], {})}, arguments.models) for log in logs]
    print("\n".join(table(rows)))
    print("\n".join(summary(rows)))


def plan_of(log: dict[str, Any], models: Path) -> MemoryPlan:
    """The plan for a log's settings; UserError where its GPU or its setting cannot be planned."""
    config = read_model_config(models / log["config"])
    utilization, vllm = log["gpu_memory_utilization"], version_of(log)
    return plan_memory(
        config,
        gpu_of_log(log),
        quantisation=log["quantisation"],
        kv_cache_dtype=log["kv_cache_dtype"],
        tensor_parallel_size=log["tensor_parallel_size"],
        gpu_memory_utilization=utilization if isinstance(utilization, float) else None,
        max_num_seqs=log["max_num_seqs"],
        max_num_batched_tokens=log["max_num_batched_tokens"],
        max_model_len=log["max_model_len"],
        enforce_eager=log["enforce_eager"],
        enable_prefix_caching=log.get("enable_prefix_caching"),
        vllm_version=vllm,
    )


def version_of(log: dict[str, Any]) -> str:
    """As far as it says."""
    text = str(log["vllm"])
    if text in VERSIONS:
        return VERSIONS[text]
    return text.split()[0].split("/")[0].rstrip("?").replace(".x", ".0")


def gpu_of_log(log: dict[str, Any]) -> Gpu:
    """By name or class, with the memory that the log says."""
    gpu = known_gpu(log["gpu"]) or GPUS.get(CLASSES.get(log["gpu"], ""))
    if gpu is None:
        raise UserError(f"the log does not say which GPU ({log['gpu']})")
    total = log["gpu_total_gib"] or LAPTOP_GIB.get(log["gpu"])
    return replace(gpu, total_bytes=int(total * GIB)) if total else gpu


def row_of(log: dict[str, Any], models: Path) -> Row:
    """One log planned and compared."""
    version = memory_version(version_of(log))
    try:
        plan = plan_of(log, models)
    except UserError as error:
        return Row(log["id"], version, _logged(log), "-", "-", None, None, None, str(error).split(": ", 1)[-1])
    said = log["logged"]
    low, likely, high = plan.num_gpu_blocks_low, plan.num_gpu_blocks, plan.num_gpu_blocks_high
    if "tokens" in said:
        values, real = [plan.tokens(n) for n in (low, likely, high)], float(said["tokens"])
        shown = [f"{value:,}" for value in values]
    elif "kv_gib" in said:
        sizes = [max(0, plan.kv_cache_bytes - plan.kv_less), plan.kv_cache_bytes, plan.kv_cache_bytes + plan.kv_more]
        values, real = [size / GIB for size in sizes], said["kv_gib"]
        shown = [f"{value:.2f} GiB" for value in values]
    elif "concurrency" in said:
        length = plan.limits.max_model_len
        values, real = [plan.tokens(n) / length for n in (low, likely, high)], said["concurrency"]
        shown = [f"{value:.2f} x" for value in values]
    else:
        values, real = [plan.weights_bytes / GIB] * 3, said["weights_gib"]
        shown = [f"{values[0]:.2f} GiB of weights"] * 3
    inside = values[0] <= real <= values[2] if values[0] < values[2] else None
    return Row(
        log["id"], version, _logged(log), shown[1], f"{shown[0]} to {shown[2]}" if inside is not None else "-",
        values[1] / real - 1, inside, _token_error(log, plan),
    )  # fmt: skip


def _token_error(log: dict[str, Any], plan: MemoryPlan) -> float | None:
    """KV bytes a token: the planner's over what the log's bytes and tokens say."""
    said = log["logged"]
    if "kv_gib" not in said or "tokens" not in said or said["kv_gib"] <= 0:
        return None
    blocks = plan.layout.num_blocks(int(said["kv_gib"] * GIB))
    return plan.tokens(blocks) / said["tokens"] - 1


def _logged(log: dict[str, Any]) -> str:
    said = log["logged"]
    if "tokens" in said:
        return f"{said['tokens']:,}"
    if "kv_gib" in said:
        return f"{said['kv_gib']:.2f} GiB"
    return f"{said['concurrency']} x" if "concurrency" in said else f"{said['weights_gib']:.2f} GiB of weights"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """As Markdown."""
    yield "| log | vLLM | logged | planned | between | error | bytes a token |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        version = f"{row.version[0]}.{row.version[1]}"
        error = row.note if row.error is None else f"{row.error:+.1%}".replace("%", " %")
        if row.is_inside is False:
            error += ", outside"
        token = "" if row.token_error is None else f"{row.token_error:+.2%}".replace("%", " %")
        yield f"| {row.name} | {version} | {row.logged} | {row.planned} | {row.bounds} | {error} | {token} |"


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """How many are how far off."""
    answered = [row for row in rows if row.error is not None]
    bounded = [row for row in answered if row.is_inside is not None]
    yield f"\n{len(answered)} of {len(rows)} are answered."
    new = sorted(
        abs(row.error) for row in answered if row.version >= NEW and row.error is not None and row.is_inside is not None
    )
    within = ", ".join(f"{sum(error <= bound for error in new)} within {bound:.0%}" for bound in (0.06, 0.12))
    yield f"Of {len(new)} since vLLM 0.20: {within}; half within {new[len(new) // 2]:.1%}."
    yield f"Inside the bounds: {sum(bool(row.is_inside) for row in bounded)} of {len(bounded)}."
    tokens = [abs(row.token_error) for row in answered if row.token_error is not None]
    yield f"KV bytes a token within 0.3 %: {sum(error <= 0.003 for error in tokens)} of {len(tokens)}."


if __name__ == "__main__":
    main()
