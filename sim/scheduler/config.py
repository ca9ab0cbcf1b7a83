"""The resolved engine settings, in vLLM's words."""

from __future__ import annotations

from dataclasses import dataclass

from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.scheduler.versions import ALL, NEWEST, Changes


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the scheduler runs with; every default of its version of vLLM is already filled in.

    `num_gpu_blocks` counts vLLM's null block, so one fewer is usable. Lengths are in tokens.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_gpu_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    scheduling_policy: str = "fcfs"
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    max_num_active_seqs: int | None = None
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    async_scheduling: bool = False
    batching: str = "continuous"
    step_noise: bool = False
    host: HostTimes | None = None  # None: the engine's thread takes no time
    front_end: FrontEndTimes | None = None  # None: requests reach the engine, and tokens their user, at once
    max_capture_size: int = 512  # of the largest CUDA graph; 0: there are none
    api_server_count: int = 1
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    prefill_schedule_interval: int = 1
    vllm_version: str = NEWEST
    changes: Changes = ALL  # in force in that version (versions.py)
    seed: int = 0  # of the length predictor
