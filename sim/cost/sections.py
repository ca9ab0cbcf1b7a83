"""Sections of a profile, checked when read: `host`, `front_end`, `memory` with the KV blocks that follow, `power`.

Host and front end are what a server's processes take beside the device. Power is a straight line through measured
servers, in watts: an estimate, without host, fans and cooling.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from simbatch.sim.clock import to_ps
from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE, FrontEndTimes, HostTimes, LaunchDraws, LaunchTimes
from simbatch.sim.cost.step_time import Ratios
from simbatch.sim.json_values import Strict

# Bounds that only a wrong unit breaks, so that sums stay inside 64 bits: a minute for a launch, a second for a request
# or a token of it.
Once = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
Each = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Measured = Annotated[str, Field(min_length=1, max_length=10_000)]


class GraphLaunch(Strict):
    """Launches of batches without prefills, as one CUDA graph."""

    base_s: Once = Field(default=0.0, description="of any such launch, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")

    @model_validator(mode="before")
    @classmethod
    def _has_no_prefills(cls, value: Any) -> Any:
        if isinstance(value, dict) and (keys := [key for key in ("per_prefill_s", "per_token_s") if key in value]):
            raise ValueError(f"a graph's launch has no prefills, so there is no {keys[0]}: base_s and per_seq_s alone")
        return value


class OtherLaunch(Strict):
    """Launches of batches with prefills, or too large for a graph."""

    base_s: Once = Field(default=0.0, description="of any such launch, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")
    per_prefill_s: Each = Field(default=0.0, description="per entry that is not a decode, s")
    per_token_s: Each = Field(default=0.0, description="per scheduled token, s")


class LaunchSection(Strict):
    """Host time to schedule and launch a batch, by kind of launch."""

    graph: GraphLaunch = GraphLaunch()
    piecewise: OtherLaunch = OtherLaunch()
    none: OtherLaunch = OtherLaunch()


class Update(Strict):
    """Host time to take a step's tokens in."""

    base_s: Once = Field(default=0.0, description="of any step, s")
    per_seq_s: Each = Field(default=0.0, description="per request of the batch, s")


class Admit(Strict):
    """Host time to take a request in."""

    base_s: Once = Field(default=0.0, description="of any request, s")
    per_prompt_token_s: Each = Field(default=0.0, description="per token of its prompt, s")


class Spread(Strict):
    """How launches are spread round their mean, by kind; a kind without quantiles always takes its mean."""

    graph: Ratios | None = None
    piecewise: Ratios | None = None
    none: Ratios | None = None

    def draws(self, seed: int, replica: int = 0) -> LaunchDraws | None:
        """Draws for one run of one replica; None where no kind is spread."""
        given = {GRAPH: self.graph, PIECEWISE: self.piecewise, NONE: self.none}
        tables = {kind: ratios.table() for kind, ratios in given.items() if ratios is not None}
        return LaunchDraws(tables, seed, replica) if tables else None


class LaunchGrowth(Strict):
    """How well it is known what a launch grows by with each request at once; beside `around` of them it is known."""

    around: float = Field(ge=0, description="requests that decoded in steps with prefills, mean of the runs")
    launch_s: float = Field(gt=0, description="of a launch with so many running")
    error_s: float = Field(ge=0, description="standard error of what it grows by with each request")


class HostSection(Strict):
    """What the engine's thread takes; what is left out is 0."""

    source: Measured | None = Field(default=None, description="where it was measured")
    assumed: bool = Field(
        default=False, description="whether it is another machine's, or nobody's, for want of a better"
    )
    launch: LaunchSection = Field(default=LaunchSection(), description="to schedule and launch a batch")
    update: Update = Field(default=Update(), description="to take a step's tokens in")
    admit: Admit = Field(default=Admit(), description="to take a request in")
    lag_s: Once = Field(default=0.0, description="from the begin of schedule() to the device's earliest start, s")
    tail_s: Once = Field(default=0.0, description="from the return of a launch to the device's earliest end, s")
    spread: Spread = Field(default=Spread(), description="quantiles of launch time over its mean, by kind of launch")
    growth: LaunchGrowth | None = Field(default=None, description="how well launches' growth with requests is known")

    def times(self) -> HostTimes | None:
        """The times, rounded to ps; None where all of them are 0."""
        times = HostTimes(
            graph=_launch(self.launch.graph),
            piecewise=_launch(self.launch.piecewise),
            none=_launch(self.launch.none),
            update_base_ps=to_ps(self.update.base_s),
            update_per_seq_ps=to_ps(self.update.per_seq_s),
            admit_base_ps=to_ps(self.admit.base_s),
            admit_per_prompt_token_ps=to_ps(self.admit.per_prompt_token_s),
            lag_ps=to_ps(self.lag_s),
            tail_ps=to_ps(self.tail_s),
        )
        return None if times == HostTimes() else times


class FrontEndSection(Strict):
    """What a server does to a request on its way in, and to its tokens on their way out; what is left out is 0."""

    source: Measured | None = Field(default=None, description="where it was measured")
    assumed: bool = Field(
        default=False, description="whether it is another machine's, or nobody's, for want of a better"
    )
    per_request_s: Once = Field(default=0.0, description="to take a request in, s")
    per_prompt_token_s: Each = Field(default=0.0, description="per token of its prompt, s")
    per_chunk_s: Each = Field(default=0.0, description="to send one request's tokens of one step, s")
    network_s: Once = Field(default=0.0, description="from the server to the client; delays nothing else, s")

    def times(self) -> FrontEndTimes | None:
        """The times, rounded to ps; None where all of them are 0."""
        times = FrontEndTimes(
            per_request_ps=to_ps(self.per_request_s),
            per_prompt_token_ps=to_ps(self.per_prompt_token_s),
            per_chunk_ps=to_ps(self.per_chunk_s),
            network_ps=to_ps(self.network_s),
        )
        return None if times == FrontEndTimes() else times


class HostFile(Strict):
    """A file of these two sections alone: a machine that was measured, without a model on its GPU."""

    name: str = Field(default="host", min_length=1, max_length=200)
    host: HostSection | None = None
    front_end: FrontEndSection | None = None


def _launch(section: GraphLaunch | OtherLaunch) -> LaunchTimes:
    return LaunchTimes(**{f"{key.removesuffix('_s')}_ps": to_ps(value) for key, value in section})


KVCacheType = Literal["float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "float32"]
# Bytes per element of what vLLM accepts as --kv-cache-dtype ("auto" is the profile's own).
KV_ELEMENT_BYTES: dict[str, int] = {
    "float16": 2,
    "bfloat16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}

DEFAULT_GPU_MEMORY_UTILIZATION = 0.92  # vLLM's since 0.20 (config/cache.py)

Bytes = Annotated[int, Field(ge=0, le=2**50)]


class Settled(NamedTuple):
    """The engine's limits that memory follows."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_capture_sizes: int | None = None  # CUDA graphs; None: as many as the profile had
    sets_graphs_aside: bool = True  # before the KV cache is made; else (vLLM before 0.20) they come on top


class Peak(Strict):
    """What vLLM's profile run takes at its peak, as it grows with the limits, and the limits that figures are for.

    The higher of two: a forward pass of all tokens, and sampling for all requests.
    """

    max_num_seqs: int = Field(gt=0)
    max_num_batched_tokens: int = Field(gt=0)
    num_capture_sizes: int | None = Field(default=None, ge=0, description="CUDA graphs that graphs_bytes is for")
    forward_bytes_per_token: Bytes
    sampler_bytes_per_seq: Bytes
    sampler_bytes_per_token: Bytes = Field(description="hidden states that are held meanwhile")

    def bytes_at(self, max_num_seqs: int, max_num_batched_tokens: int) -> int:
        """The peak under these limits."""
        forward = self.forward_bytes_per_token * max_num_batched_tokens
        held = self.sampler_bytes_per_token * max_num_batched_tokens
        return max(forward, self.sampler_bytes_per_seq * max_num_seqs + held)


class Memory(Strict):
    """One GPU's memory as vLLM divides it, in bytes; blocks count vLLM's null block.

    `reserve_bytes` is what total * gpu_memory_utilization leaves after the parts that are known: activations and CUDA
    graphs where nobody measured them, and what other libraries hold. It may be negative.
    """

    total_bytes: Bytes
    gpu_memory_utilization: float = Field(gt=0, le=1)
    weights_bytes: Bytes
    activation_bytes: Bytes | None = Field(default=None, description="at the peak; null: inside the reserve")
    graphs_bytes: Bytes | None = Field(default=None, description="CUDA graphs; null: inside the reserve")
    reserve_bytes: int
    kv_bytes_per_token: int = Field(gt=0, description="keys and values of all layers (GQA heads) on this GPU")
    block_size: int = Field(gt=0)
    num_gpu_blocks: int = Field(gt=1)
    num_gpu_blocks_from: Literal["vllm", "estimate"]
    peak: Peak | None = Field(default=None, description="how blocks follow the limits; null: they do not")

    @model_validator(mode="after")
    def _adds_up(self) -> Memory:
        computed = self.kv_bytes(self.gpu_memory_utilization) // (self.kv_bytes_per_token * self.block_size)
        if computed != self.num_gpu_blocks:
            raise ValueError(
                f"the parts leave {computed} blocks, not {self.num_gpu_blocks}: num_gpu_blocks must be "
                "(total * gpu_memory_utilization - weights - activation - graphs - reserve) / bytes of a block"
            )
        return self

    def kv_bytes(self, gpu_memory_utilization: float, settled: Settled | None = None) -> int:
        """What is left for the KV cache, never below zero; without `settled` under the limits of the figures."""
        taken = self.weights_bytes + (self.activation_bytes or 0) + (self.graphs_bytes or 0) + self.reserve_bytes
        if self.peak is not None and settled is not None:
            taken += self._moved_bytes(self.peak, settled)
        if settled is not None and not settled.sets_graphs_aside:
            taken -= self._graphs_bytes(settled)
        return max(0, int(self.total_bytes * gpu_memory_utilization) - taken)

    def _moved_bytes(self, peak: Peak, settled: Settled) -> int:
        """What other limits take more: activations by the peak's formula, graphs by their number."""
        own = peak.bytes_at(peak.max_num_seqs, peak.max_num_batched_tokens)
        moved = peak.bytes_at(settled.max_num_seqs, settled.max_num_batched_tokens) - own
        return moved + self._graphs_bytes(settled) - (self.graphs_bytes or 0)

    def _graphs_bytes(self, settled: Settled) -> int:
        """All CUDA graphs: each of them takes as much."""
        own = self.graphs_bytes or 0
        if self.peak is None or not self.peak.num_capture_sizes or settled.num_capture_sizes is None:
            return own
        return own + own * (settled.num_capture_sizes - self.peak.num_capture_sizes) // self.peak.num_capture_sizes


Watts = Annotated[float, Field(ge=0, le=1e5, allow_inf_nan=False)]
JOULES_PER_KWH = 3.6e6


class GpuPower(Strict):
    """`idle_w` always, `busy_w` more while the device has a step, and `per_token_j` for each token of it, in and out.

    For example 150 + 300 x 0.9 + 0.01 x 15,000 tokens per second = 570 W.
    """

    idle_w: Watts = Field(description="between steps, the model loaded, W")
    busy_w: Watts = Field(description="more during steps, W")
    per_token_j: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = Field(
        description="more for each token, prompts and outputs alike, J"
    )
    error: Annotated[float, Field(ge=0, le=1)] = Field(description="largest relative error of runs not fitted on")
    source: str = Field(description="what was measured")

    def watts(self, busy_share: float, tokens_per_s: float) -> float:
        """Of one GPU on average."""
        return self.idle_w + self.busy_w * busy_share + self.per_token_j * tokens_per_s


def kwh_per_million(watts: float, tokens_per_s: float) -> float | None:
    """Energy of a million tokens at this pace: 720 W at 1,000 tokens a second are 0.2 kWh."""
    return watts / tokens_per_s * 1e6 / JOULES_PER_KWH if tokens_per_s else None
