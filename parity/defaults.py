"""The table of defaults and settings (`sim/scheduler/versions.py`) against what a version's own code says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simbatch.sim.cost.gpus import GIB, default_batch_limits, default_max_capture_size
from simbatch.sim.scenario.engine import OURS, EngineSettings
from simbatch.sim.scenario.rules import capture_sizes
from simbatch.sim.scheduler.versions import CHANGES, Changes, changes_in, default_of

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
