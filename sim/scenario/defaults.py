"""Defaults that hang on the version of vLLM, the GPU, and each other."""

from __future__ import annotations

from simbatch.sim.cost.profile import Profile
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scheduler.versions import Changes, default_of


def async_scheduling(settings: EngineSettings, profile: Profile, changes: Changes) -> bool:
    """What is written, else what the server had that the profile was fitted on, else this vLLM's default."""
    if settings.async_scheduling is not None:
        return settings.async_scheduling
    is_known = profile.streams is not None or default_of("async_scheduling", changes)
    return profile.default_async_scheduling and is_known


def batch_limits(settings: EngineSettings, profile: Profile, max_model_len: int, changes: Changes) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens`; one left out gives way to the other (vLLM engine/arg_utils.py)."""
    seqs = settings.max_num_seqs or profile.default_max_num_seqs
    tokens = settings.max_num_batched_tokens
    if tokens is None:
        tokens = profile.default_max_num_batched_tokens
        if profile.streams is None:
            tokens = min(tokens, default_of("large_gpu_budget", changes))
        if not settings.enable_chunked_prefill:
            tokens = max(tokens, max_model_len)
        tokens = max(min(tokens, seqs * max_model_len), 1)
    if settings.max_num_seqs is None:
        seqs = min(seqs, tokens)
    return seqs, tokens


def memory_share(settings: EngineSettings, profile: Profile, changes: Changes) -> float | None:
    """`gpu_memory_utilization`: what is written, else this vLLM's default on a GPU, else the profile's own."""
    if settings.gpu_memory_utilization is not None:
        return settings.gpu_memory_utilization
    default = profile.default_gpu_memory_utilization
    if default is None or not profile.is_gpu:
        return default
    share: float = default_of("gpu_memory_utilization", changes)
    return share
