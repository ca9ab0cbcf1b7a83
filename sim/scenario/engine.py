"""The `engine` section: `vllm serve` flags in snake_case, every one optional."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=2**31)]
Limit = Annotated[int, Field(ge=0, le=2**40)]
MAX_SIZES = 4096  # of CUDA graphs; vLLM's own list has 51
OURS = ("batching", "step_noise", "front_end", "host_noise")  # no flags of vLLM's


class Section(BaseModel):
    """What every section keeps to: no unknown keys, no text or booleans for numbers, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class EngineSettings(Section):
    """Scheduler and KV-cache settings of vLLM 0.32; what is left out takes vLLM's default for the profile's GPU."""

    max_num_seqs: Count | None = Field(
        default=None, description="requests that run at once; by GPU: 256, from 70 GiB 1,024 (A100: 256)"
    )
    max_num_batched_tokens: Count | None = Field(
        default=None,
        description="token budget of a step; by GPU: 2,048, from 70 GiB 8,192, from 160 GiB 16,384 (A100: 2,048)",
    )
    max_model_len: Count | None = Field(
        default=None, description="longest prompt and output together, tokens; default: the profile's"
    )
    block_size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="tokens a KV block holds; default: the profile's, 16 inline"
    )
    num_gpu_blocks_override: Annotated[int, Field(ge=2, le=2**40)] | None = Field(
        default=None, description="KV blocks, vLLM's null block included, instead of the profile's"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the GPU's memory that vLLM may take (0.92); recomputes the KV blocks"
    )
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto",
        description="type of keys and values; another than the profile's takes the one that ships and was measured so",
    )
    enable_prefix_caching: bool = Field(default=True, description="reuse KV blocks of equal prefixes")
    enable_chunked_prefill: bool = Field(default=True, description="split long prompts over several steps")
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        default="fcfs", description="vLLM's order of the queue; beside policy vllm only"
    )
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=2**31)] = Field(
        default=0, description="tokens a step that one prompt may take at most while others are there; 0: no limit"
    )
    long_prefill_token_threshold_adaptive: bool = Field(
        default=False, description="raise that threshold to a fair share of the token budget"
    )
    max_num_active_seqs: Count | None = Field(
        default=None, description="requests admitted at once, when fewer than max_num_seqs"
    )
    watermark: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the KV blocks kept free when admitting"
    )
    scheduler_reserve_full_isl: bool = Field(
        default=True, description="admit a prompt only when all of it fits the KV cache"
    )
    async_scheduling: bool | None = Field(
        default=None, description="plan a step while the last one runs; default: true on a GPU, false inline and on CPU"
    )
    batching: Literal["continuous", "static"] = Field(
        default="continuous", description="ours: admit at every step, or run whole batches as generate() does"
    )
    step_noise: bool = Field(default=False, description="ours: draw step times from the profile's noise")
    cudagraph_capture_sizes: Annotated[list[Count], Field(max_length=MAX_SIZES)] | None = Field(
        default=None, description="tokens of the CUDA graphs; default: 1, 2, 4, 8, 16, ... up to the largest"
    )
    max_cudagraph_capture_size: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        default=None,
        description="tokens of the largest CUDA graph; default: 2 * max_num_seqs, at most 512 (B200: 1,024)",
    )
    enforce_eager: bool = Field(default=False, description="launch every step without CUDA graphs")
    api_server_count: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="processes that take requests in and send tokens out"
    )
    max_num_queued_reqs: Limit | None = Field(
        default=None, description="refuse requests (503) while so many are waiting or running"
    )
    max_num_queued_tokens: Limit | None = Field(
        default=None, description="refuse requests (503) while the prompts in prefill have so many tokens"
    )
    front_end: bool = Field(
        default=True, description="ours: false leaves the server's processes out, as a replay in one process does"
    )
    host_noise: bool = Field(default=True, description="ours: draw launch times from the spread of the profile's host")
