"""What the flags of `simbatch memory` stand for: a GPU, the lengths of requests, and the plan under both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simbatch.profiler.model.memory_batch import RequestLengths, lengths_of, lengths_of_trace
from simbatch.profiler.model.memory_plan import MemoryPlan, plan_memory
from simbatch.sim.cost.gpus import GIB, Gpu, gpu_of, memory_bytes
from simbatch.sim.errors import Problem, UserError

SETTINGS = (  # of a plan, by the command's flags
    "kv_cache_dtype",
    "gpu_memory_utilization",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enforce_eager",
    "enable_prefix_caching",
)
Flags = Mapping[str, Any]


def plan_of(config: Any, gpu: Gpu, flags: Flags, **more: Any) -> MemoryPlan:
    """A plan under the command's flags."""
    settings = {key: flags[key] for key in SETTINGS} | more
    return plan_memory(
        config,
        gpu,
        quantisation=flags["quantization"],
        tensor_parallel_size=flags["tensor_parallel_size"] or 1,
        expert_parallel=flags["enable_expert_parallel"],
        **({"vllm_version": flags["vllm_version"]} if flags["vllm_version"] else {}),
        **settings,
    )


def gpu_of_flags(flags: Flags) -> Gpu:
    """The GPU by name or datasheet; --memory goes before what it has, and is enough alone."""
    size = flags.get("memory")
    if size is None:
        return gpu_of(flags["gpu"], flags["gpu_spec"])
    total = memory_bytes(size)
    if flags["gpu"] is None and flags["gpu_spec"] is None:
        return Gpu("gpu", f"a GPU of {total / GIB:.2f} GiB", total, 0.0, {"bf16": 0.0}, 0.0)
    return replace(gpu_of(flags["gpu"], flags["gpu_spec"]), total_bytes=total)


def lengths_of_flags(flags: Flags) -> RequestLengths | None:
    """RequestLengths by flags or of a trace; UserError for both, or half of one."""
    trace, trace_format = flags["trace"], flags["trace_format"]
    given = lengths_of(flags["prompt_len"], flags["prompt_len_cv"], flags["output_len"], flags["output_len_cv"])
    if trace is None:
        if trace_format is not None:
            raise UserError(Problem("--trace-format", "there is no trace", trace_format, "add --trace FILE"))
        return given
    if given is not None:
        mend = "leave out --prompt-len and --output-len"
        raise UserError(Problem("--trace", "a trace brings its own lengths", mend=mend))
    return lengths_of_trace(trace, trace_format, flags["columns"])
