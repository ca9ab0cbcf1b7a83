"""What a version's own code says beside the table (`sim/scheduler/config.py`): defaults, settings, and names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.cost.gpus import GIB, default_batch_limits, default_max_capture_size
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scenario.rules import capture_sizes
from simbatch.sim.scheduler.config import CHANGES, Changes, changes_in, default_of

KINDS = ("SchedulerConfig", "CacheConfig", "EngineArgs")
# a scenario's word for a setting of another name, or whose default hangs on more than the version
RENAMED = {"scheduling_policy": "policy"}
BY_MORE = {"vllm_version", "async_scheduling", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens"}
BY_MORE |= {"max_model_len", "block_size", "kv_cache_dtype", "num_gpu_blocks_override", "api_server_count", *OURS}
BY_MORE |= {"cudagraph_capture_sizes", "max_cudagraph_capture_size"}


def wrong_defaults(version: str, facts: dict[str, Any]) -> list[str]:
    """Sentences, one for each default or setting that the table has otherwise."""
    changes = changes_in(version)
    defaults = facts["defaults"]
    values = _values(defaults, facts["graph_memory"], changes)
    return [*_settings(defaults, changes), *values, *_limits(facts, changes)]


def _default_of(name: str, defaults: dict[str, Any]) -> tuple[bool, Any]:
    """Whether vLLM has this setting, and its default."""
    keys = [f"{kind}.{RENAMED.get(name, name)}" for kind in KINDS]
    found = [defaults[key] for key in keys if key in defaults]
    return bool(found), next((value for value in found if value is not None), None)


def _settings(defaults: dict[str, Any], changes: Changes) -> Iterator[str]:
    """Settings that came, and the defaults that do not hang on the version."""
    for name, field in EngineSettings.model_fields.items():
        if name in BY_MORE:
            continue
        is_there, value = _default_of(name, defaults)
        is_known = name not in CHANGES or name in changes
        if is_there != is_known:
            yield f"{name}: the version {'has' if is_there else 'does not have'} it"
        elif is_there and value is not None and value != field.default:
            yield f"{name}: {value}, not {field.default}"


def _values(defaults: dict[str, Any], graph_memory: bool, changes: Changes) -> Iterator[str]:
    """Defaults that have changed."""
    _, utilization = _default_of("gpu_memory_utilization", defaults)
    if utilization != (ours := default_of("gpu_memory_utilization", changes)):
        yield f"gpu_memory_utilization: {utilization}, not {ours}"
    if graph_memory != (ours := default_of("graph_memory", changes)):
        yield f"graph_memory: {graph_memory}, not {ours}"
    is_on = defaults["SchedulerConfig.async_scheduling"] is not False  # None: decided at the start, for it if possible
    if is_on != (ours := default_of("async_scheduling", changes)):
        yield f"async_scheduling: {is_on}, not {ours}"


def _limits(facts: dict[str, Any], changes: Changes) -> Iterator[str]:
    """A server's batch limits by GPU, and the sizes of its CUDA graphs."""
    for gpu, (tokens, seqs) in facts["batch_defaults"].items():
        name, _, memory = gpu.partition(", ")
        our_seqs, our_tokens = default_batch_limits(name, int(memory.split()[0]) * GIB)
        our_tokens = min(our_tokens, default_of("large_gpu_budget", changes))
        if (tokens, seqs) != (our_tokens, our_seqs):
            yield f"{gpu}: {tokens} tokens and {seqs} requests, not {our_tokens} and {our_seqs}"
    for gpu, cases in facts["graphs"].items():
        for seqs, tokens, sizes in cases:
            ours = capture_sizes(EngineSettings(), seqs, tokens, default_max_capture_size(gpu), changes)
            if list(ours) != sizes:
                yield f"CUDA graphs of {gpu} with {seqs} requests and {tokens} tokens: {sizes}, not {list(ours)}"


ROOT = Path(__file__).parents[1]
USERS = ("profiler/profile", "profiler/server", "simbatch/serving")  # all contact with it
# what is called, overridden or read of its classes; imports are found in the sources
_OF_SCHEDULER = (
    "schedule", "add_request", "update_from_output", "finish_requests", "get_request_counts", "has_requests",
    "set_pause_state", "shutdown", "_enqueue_waiting_request", "_preempt_request", "_update_after_schedule",
    "_update_request_with_output", "_free_request", "running", "waiting", "deferred_waiting", "kv_holding_waiting",
    "requests", "kv_cache_manager", "kv_cache_config", "cache_config", "scheduler_config", "block_size",
    "max_model_len", "max_num_scheduled_tokens", "max_num_active_reqs", "policy",
)  # fmt: skip
OF_CLASSES = {
    "vllm.v1.core.sched.scheduler:Scheduler": _OF_SCHEDULER,
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("allocate_slots", "get_blocks", "block_pool"),
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": ("find_longest_cache_hit",),
    "vllm.v1.core.block_pool:BlockPool": ("get_num_free_blocks",),
    "vllm.v1.engine.core:EngineCore": ("step_with_batch_queue", "batch_queue", "model_executor", "scheduler"),
    "vllm.v1.executor.abstract:Executor": ("execute_model", "sample_tokens", "collective_rpc"),
    "vllm.v1.engine.llm_engine:LLMEngine": (
        "from_engine_args", "add_request", "step", "abort_request", "has_unfinished_requests", "reset_prefix_cache",
        "engine_core", "vllm_config",
    ),
    "vllm.v1.request:Request": (
        "num_computed_tokens", "num_output_placeholders", "num_preemptions", "num_prompt_tokens", "num_tokens",
        "arrival_time", "priority", "take_events",
    ),
}  # fmt: skip


def names_used() -> list[str]:
    """All of them, as `module:attribute` or `module:Class.attribute`."""
    names = {f"{kind}.{name}" for kind, known in OF_CLASSES.items() for name in known}
    for folder in USERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                    names |= {f"{node.module}:{alias.name}" for alias in node.names}
    return sorted(names)
