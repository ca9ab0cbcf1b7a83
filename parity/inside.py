"""What this project uses of vLLM's inside, which is no public interface: names that a version may have moved."""

from __future__ import annotations

import ast
from pathlib import Path

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
