"""The `engine` and `cluster` sections: `vllm serve` flags in snake_case; how many engines, behind which router."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import Strict, rule_error
from simbatch.sim.scenario.flags import FACTORS
from simbatch.sim.scheduler.config import NEWEST, parse_version

_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG])")


def _counted(value: object) -> object:
    """`32k` as 32,000 and `32K` as 32,768, as vLLM's parser reads them; everything else as it stands."""
    match = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    number = float(match[1]) * FACTORS[match[2]]
    return int(number) if number.is_integer() else value


Count = Annotated[int, BeforeValidator(_counted), Field(ge=1, le=2**31)]
Limit = Annotated[int, Field(ge=0, le=2**40)]
MAX_SIZES = 4096  # of CUDA graphs; vLLM's own list has 51
OURS = ("batching", "step_noise", "front_end", "host_noise")  # no flags of vLLM's


def _version(value: object) -> object:
    """Text; YAML reads 0.30 as a number, and 0.3 is no version that is simulated."""
    if isinstance(value, float):
        value = f"{value:.2f}" if round(value, 2) == value else str(value)
    if isinstance(value, str):
        try:
            parse_version(value)
        except UserError as error:
            problem = error.problems[0]
            raise rule_error(problem.rule, problem.mend) from None
    return value


class EngineSettings(Strict):
    """Scheduler and KV-cache settings; what is left out takes the default of this vLLM on the profile's GPU."""

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
        default="fcfs", description="vLLM's order of the queue; with policy vllm only"
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
    prefill_schedule_interval: Count = Field(
        default=1, description="steps from one with prefills to the next while others decode; from vLLM 0.33 on"
    )
    vllm_version: Annotated[str, BeforeValidator(_version, json_schema_input_type=str | float)] | None = Field(
        default=None,
        description="the vLLM whose rules and defaults hold, 0.12 or newer; default: the newest that is tested",
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

    @property
    def simulated_version(self) -> str:
        """Whose rules and defaults hold."""
        return self.vllm_version or NEWEST


_NAME = re.compile(r"[\w.:/-]+")


def by_key(section: str, key: str, otherwise: str, what: str = "with a name") -> BeforeValidator:
    """Tells who writes `policy: fixed` to write `policy: {name: fixed}`; `otherwise` stands for what is no name."""

    def check(value: object) -> object:
        if isinstance(value, str):
            name = value if _NAME.fullmatch(value) else otherwise
            raise rule_error(f"must be a mapping {what}", f"write {section}: {{{key}: {name}}}")
        return value

    return BeforeValidator(check)


class _Choice(Strict):
    """One by its name, with parameters of its own beside it."""

    model_config = ConfigDict(extra="allow")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters alone."""
        return dict(self.model_extra or {})


class PolicyChoice(_Choice):
    """The batching policy by name, with its parameters beside the name."""

    name: Annotated[str, Field(min_length=1)] = Field(
        description="fixed, adaptive, priority, vllm, or your own as package.module:Class or file.py:Class"
    )


MAX_REPLICAS = 4096
Replicas = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]


class RouterChoice(_Choice):
    """The router by name, with its parameters beside the name."""

    name: Annotated[str, Field(min_length=1)] = Field(
        description="round_robin, least_requests, ..., or your own as package.module:Class or file.py:Class"
    )
    refresh_s: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="how old what engines publish may be: the gateway asks them so often; 0: always fresh"
    )


class Group(Strict):
    """Replicas that are alike; what is left out is as in the scenario."""

    replicas: Replicas = Field(default=1, description="engines in this group")
    profile: str | dict[str, Any] | None = Field(
        default=None, description="a shipped profile's name, a path, or step times inline; default: the scenario's"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings, description="settings that differ from the scenario's `engine`"
    )


class ClusterEvent(Strict):
    """A replica is down for a while."""

    at: Annotated[float, Field(ge=0, le=1e7)] = Field(description="when, s after the run's start")
    replica: Annotated[int, Field(ge=0)] = Field(description="which one, from 0")
    down_s: Annotated[float, Field(gt=0, le=1e7)] = Field(description="how long, s")
    drain: bool = Field(
        default=False,
        description="true: it ends the requests it has, and is sent no more; false: they are sent again",
    )


class ClusterSettings(Strict):
    """Several engines behind a gateway: so many alike, or groups of them."""

    replicas: Replicas | None = Field(default=None, description="engines, all alike")
    groups: Annotated[list[Group], Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="engines that differ, in place of `replicas`"
    )
    router: Annotated[RouterChoice, by_key("router", "name", "least_requests")] = Field(
        default_factory=lambda: RouterChoice(name="round_robin"), description="where each request is sent"
    )
    events: Annotated[list[ClusterEvent], Field(max_length=10_000)] = Field(
        default=[], description="replicas that fail, or are drained, and come back"
    )

    @model_validator(mode="after")
    def _has_one_of_both(self) -> ClusterSettings:
        if (self.replicas is None) == (self.groups is None):
            mend = "write cluster: {replicas: 4}, or groups: [{replicas: 2, profile: ...}, ...]"
            raise rule_error("needs either replicas or groups", mend)
        if self.groups is not None and sum(group.replicas for group in self.groups) > MAX_REPLICAS:
            raise rule_error(f"has more than {MAX_REPLICAS:,} replicas", "take fewer")
        return self

    @property
    def num_replicas(self) -> int:
        """Engines in all groups."""
        return self.replicas or sum(group.replicas for group in self.groups or ())

    def event_problems(self) -> Iterator[Problem]:
        """Events of replicas that do not exist, or that are down already."""
        up_s: dict[int, float] = {}
        for i, event in sorted(enumerate(self.events), key=lambda item: item[1].at):
            place = f"cluster.events[{i}]"
            if event.replica >= self.num_replicas:
                rule = f"there are {self.num_replicas} replicas, numbered from 0"
                yield Problem(f"{place}.replica", rule, event.replica, f"name one of 0 to {self.num_replicas - 1}")
            elif event.at < up_s.get(event.replica, -1.0):
                rule = f"replica {event.replica} is down then, until {up_s[event.replica]:g} s"
                yield Problem(f"{place}.at", rule, event.at, "make one event of both, or let it come up before")
            else:
                up_s[event.replica] = event.at + event.down_s
