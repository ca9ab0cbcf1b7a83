"""A profile: what a GPU does with a model, or step times written inside a scenario."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field, ValidationInfo, field_validator

from simbatch.sim.clock import to_ps
from simbatch.sim.cost.gpus import capture_size_of_model, default_batch_limits, default_max_capture_size
from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.provenance import FitError, Link, MeasuredRange, RealRuns, RecorderFit, StreamFit
from simbatch.sim.cost.sections import (
    DEFAULT_GPU_MEMORY_UTILIZATION,
    KV_ELEMENT_BYTES,
    FrontEndSection,
    GpuPower,
    HostFile,
    HostSection,
    KVCacheType,
    Memory,
    Settled,
)
from simbatch.sim.cost.step_time import Seconds, StepNoise, StepTime
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import Strict

HOST_KEYS = ("host", "front_end", "request_overhead_s", "client_overhead_s")
OLDER_KEYS = {"request_overhead_s": ("host", "admit.base_s"), "client_overhead_s": ("front_end", "network_s")}
INLINE = "inline"  # the name of step times that a scenario writes itself
FLOAT32_BYTES = 4  # a model in float32 (on a CPU) has such a cache, but nobody can ask vLLM for one


class Profile(Strict):
    """What every profile answers; `InlineProfile` and `MeasuredProfile` are the two kinds."""

    name: str = Field(default=INLINE, min_length=1, max_length=200)
    step_time: StepTime
    max_model_len: int = Field(default=8192, gt=0, le=2**31, description="default of engine.max_model_len, tokens")
    host: HostSection | None = Field(
        default=None, description="what the engine's thread takes, in parallel with the device"
    )
    front_end: FrontEndSection | None = Field(default=None, description="what the server's processes take around it")
    request_overhead_s: Seconds = Field(default=0.0, description="older word for host.admit.base_s, s")
    client_overhead_s: Seconds = Field(default=0.0, description="older word for front_end.network_s, s")
    noise: StepNoise | None = Field(default=None, description="how measured steps spread, for engine.step_noise")
    streams: StreamFit | None = Field(default=None, description="the fit from a server's streams that it comes from")

    recorder: RecorderFit | None = Field(default=None, description="the fit from a recorder's files that it comes from")

    @field_validator(*OLDER_KEYS)  # these stand below the sections: fields are checked in their order
    @classmethod
    def _stands_alone(cls, value: float, info: ValidationInfo) -> float:
        section, key = OLDER_KEYS[str(info.field_name)]
        if value and info.data.get(section) is not None:
            raise ValueError(f"is the older word for {section}.{key}, and there is a section {section} too: remove it")
        return value

    def cost_model(self, capture_sizes: Sequence[int] = ()) -> CostModel:
        """The step times in ps; `capture_sizes` (of CUDA graphs) rise, and count where steps are padded."""
        return self.step_time.cost_model(capture_sizes)

    def with_host_of(self, other: Profile | HostFile) -> Profile:
        """A copy with the other's host and front end."""
        return self.model_copy(update={key: getattr(other, key, 0.0) for key in HOST_KEYS})

    def host_times(self) -> HostTimes | None:
        """What the engine's thread takes, of the section or of the older key; None where that is nothing."""
        if self.host is not None:
            return self.host.times()
        return HostTimes(admit_base_ps=to_ps(self.request_overhead_s)) if self.request_overhead_s else None

    def front_end_times(self) -> FrontEndTimes | None:
        """What the front end takes, of the section or of the older key; None where that is nothing."""
        if self.front_end is not None:
            return self.front_end.times()
        return FrontEndTimes(network_ps=to_ps(self.client_overhead_s)) if self.client_overhead_s else None

    @property
    def default_max_capture_size(self) -> int:
        """The largest CUDA graph that vLLM 0.32 captures unasked on this GPU, in tokens; 0: it captures none."""
        return 512

    @property
    def capture_size_of_model(self) -> int | None:
        """`max_cudagraph_capture_size` that vLLM sets for this model where nobody does; None for most."""
        return None

    @property
    def is_gpu(self) -> bool:
        """Whether vLLM would schedule asynchronously by default."""
        return False

    @property
    def default_async_scheduling(self) -> bool:
        """As the server that it was fitted on, or vLLM's default."""
        of_server = self.streams or self.recorder
        return self.is_gpu if of_server is None else of_server.async_scheduling

    @property
    def has_free_host(self) -> bool:
        """Whether it is a GPU's without any time for the host: taking requests in, HTTP, tokenising."""
        return self.is_gpu and not any(getattr(self, key) for key in HOST_KEYS)

    @property
    def is_estimate(self) -> bool:
        """Whether the step times were computed rather than measured."""
        return False

    @property
    def measured(self) -> MeasuredRange | None:
        """What was measured, if anything."""
        of_server = self.streams or self.recorder
        return None if of_server is None else of_server.range

    @property
    def fit_error(self) -> FitError | None:
        """The held-out error, if step times were fitted to steps."""
        return None if self.recorder is None else self.recorder.error

    @property
    def compared(self) -> RealRuns | None:
        """Real runs that were put beside their simulation, if there are any."""
        return None

    @property
    def default_max_num_seqs(self) -> int:
        """VLLM 0.32's default on this GPU, or the server's that it was fitted on."""
        of_server = self.streams or self.recorder
        return (of_server and of_server.max_num_seqs) or 256

    @property
    def default_max_num_batched_tokens(self) -> int:
        """VLLM 0.32's default budget of tokens on this GPU, or the server's that it was fitted on."""
        of_server = self.streams or self.recorder
        return (of_server and of_server.max_num_batched_tokens) or 2048

    @property
    def default_gpu_memory_utilization(self) -> float | None:
        """VLLM's default; None where memory is not shared out so."""
        return None

    @property
    @abstractmethod
    def default_block_size(self) -> int:
        """Tokens a block, as measured or written."""

    @abstractmethod
    def num_gpu_blocks_for(
        self,
        gpu_memory_utilization: float | None = None,
        kv_cache_dtype: str = "auto",
        block_size: int | None = None,
        settled: Settled | None = None,
    ) -> int:
        """Blocks under other settings, vLLM's null block included; None and `auto` are the profile's own.

        Raises UserError for settings that cannot be computed or that leave no block.
        """


class InlineProfile(Profile):
    """Step times and blocks as written: for theory and tests."""

    num_gpu_blocks: int = Field(gt=1, le=2**40, description="KV blocks, vLLM's null block included")
    block_size: int = Field(default=16, gt=0, le=2**20, description="tokens a block")

    @property
    def default_block_size(self) -> int:
        """Tokens a block."""
        return self.block_size

    def num_gpu_blocks_for(
        self,
        gpu_memory_utilization: float | None = None,
        kv_cache_dtype: str = "auto",
        block_size: int | None = None,
        settled: Settled | None = None,
    ) -> int:
        """The blocks as they are written: there are no memory figures here to compute others from."""
        del block_size, settled
        rule = "an inline profile has no memory figures to compute blocks from"
        mend = "remove it and set profile.num_gpu_blocks"
        if gpu_memory_utilization not in (None, DEFAULT_GPU_MEMORY_UTILIZATION):
            raise UserError(Problem("engine.gpu_memory_utilization", rule, gpu_memory_utilization, mend))
        if kv_cache_dtype != "auto":
            raise UserError(Problem("engine.kv_cache_dtype", rule, kv_cache_dtype, mend))
        return self.num_gpu_blocks


class MeasuredProfile(Profile):
    """A model on a GPU: step times with their error, memory, and where the figures come from."""

    name: str = Field(min_length=1, max_length=200)
    model: str
    gpu: str = Field(description="rtx4090, rtxpro6000, h100, h200, a100, l40s, or cpu")
    quantisation: str = Field(description="of the weights: bf16, fp8, awq, ...")
    kv_cache_dtype: KVCacheType = Field(description="of the KV cache as measured")
    tensor_parallel_size: int = Field(ge=1)
    vllm_version: str
    source: str
    licence: str
    command: str = Field(description="what makes this file from the source")
    estimate: bool = Field(default=False, description="computed rather than measured")
    notes: tuple[str, ...] = Field(default=(), strict=False)
    memory: Memory
    link: Link | None = Field(default=None, description="what all-reduce between its GPUs was computed from")
    error: FitError | None
    real_runs: RealRuns | None = Field(default=None, description="whole runs next to their simulation from this file")
    power: GpuPower | None = Field(default=None, description="what one of its GPUs draws, measured in a server")
    range: MeasuredRange | None

    @property
    def is_gpu(self) -> bool:
        """Whether vLLM would schedule asynchronously by default: on all but a CPU."""
        return self.gpu != "cpu"

    @property
    def is_estimate(self) -> bool:
        """Whether the step times were computed rather than measured."""
        return self.estimate

    @property
    def measured(self) -> MeasuredRange | None:
        """What was measured, if anything: of the server that it was fitted on, else its own range."""
        return super().measured or self.range

    @property
    def fit_error(self) -> FitError | None:
        """The held-out error, if step times were fitted to steps."""
        return super().fit_error or self.error

    @property
    def default_max_capture_size(self) -> int:
        """The largest CUDA graph that vLLM 0.32 captures unasked on this GPU, in tokens."""
        return default_max_capture_size(self.gpu)

    @property
    def capture_size_of_model(self) -> int | None:
        """`max_cudagraph_capture_size` that vLLM sets for this model where nobody does; None for most."""
        return capture_size_of_model(self.model)

    @property
    def compared(self) -> RealRuns | None:
        """Real runs that were put beside their simulation, if there are any."""
        return self.real_runs

    @property
    def default_max_num_seqs(self) -> int:
        """The server's that it was fitted on, or vLLM's default: 1,024 from 70 GiB, but not on A100."""
        of_server = None if self.streams is None else self.streams.max_num_seqs
        return of_server or default_batch_limits(self.gpu, self.memory.total_bytes)[0]

    @property
    def default_max_num_batched_tokens(self) -> int:
        """The server's that it was fitted on, or vLLM's: 8,192 from 70 GiB, 16,384 from 160 GiB, but 2,048 on A100."""
        if self.streams is not None:
            return self.streams.max_num_batched_tokens
        return default_batch_limits(self.gpu, self.memory.total_bytes)[1]

    @property
    def default_gpu_memory_utilization(self) -> float | None:
        """VLLM's default; a CPU's cache is as large as it was said."""
        return DEFAULT_GPU_MEMORY_UTILIZATION if self.is_gpu else self.memory.gpu_memory_utilization

    @property
    def default_block_size(self) -> int:
        """Tokens a block."""
        return self.memory.block_size

    def num_gpu_blocks_for(
        self,
        gpu_memory_utilization: float | None = None,
        kv_cache_dtype: str = "auto",
        block_size: int | None = None,
        settled: Settled | None = None,
    ) -> int:
        """The blocks that the utilisation leaves beside weights, activations, graphs and reserve."""
        utilization = self.memory.gpu_memory_utilization if gpu_memory_utilization is None else gpu_memory_utilization
        token_bytes = self._kv_bytes_per_token(kv_cache_dtype)
        blocks = self.memory.kv_bytes(utilization, settled) // (token_bytes * (block_size or self.memory.block_size))
        if blocks < 2:
            rule = f"{self.name} leaves no memory for KV blocks at this utilisation"
            raise UserError(Problem("engine.gpu_memory_utilization", rule, utilization, "raise it"))
        return blocks

    def _kv_bytes_per_token(self, kv_cache_dtype: str) -> int:
        measured = self.memory.kv_bytes_per_token
        if kv_cache_dtype in ("auto", self.kv_cache_dtype):
            return measured
        if kv_cache_dtype not in KV_ELEMENT_BYTES:
            known = ", ".join(["auto", *KV_ELEMENT_BYTES])
            raise UserError(Problem("engine.kv_cache_dtype", "unknown type", kv_cache_dtype, f"known: {known}"))
        return measured * KV_ELEMENT_BYTES[kv_cache_dtype] // KV_ELEMENT_BYTES.get(self.kv_cache_dtype, FLOAT32_BYTES)
