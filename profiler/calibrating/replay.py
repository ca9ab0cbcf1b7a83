"""A run's requests through the engine under a profile: what the simulation says of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.validating.requests import Requests
from simbatch.sim import engine
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics.latencies import latencies_ms
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.streams import Streams
from simbatch.sim.workload.chunk import RequestChunk

METRICS = ("ttft", "tpot", "e2el")


class Means(NamedTuple):
    """Of one run, ms."""

    ttft: float
    tpot: float
    e2el: float

    def errors(self, real: Means) -> Means:
        """As shares of the real ones."""
        return Means(*(ours / theirs - 1 for ours, theirs in zip(self, real, strict=True)))


def real_means(streams: Streams) -> Means:
    """What the client recorded, by the definitions of `vllm bench serve`."""
    first, whole = streams.first_s - streams.sent_s, streams.last_s - streams.sent_s
    several = streams.num_output_tokens > 1
    tpot = (whole - first)[several] / (streams.num_output_tokens[several] - 1)
    return Means(*(1000 * float(values.mean()) if len(values) else 0.0 for values in (first, tpot, whole)))


def simulated_means(profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0) -> Means:
    """What a simulation of the same requests says: sent as recorded, or in as large a closed loop."""
    return simulated(profile, settings, streams, seed)[0]


def simulated(profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0) -> tuple[Means, int]:
    """The same, and how many steps had prefills: how far cohorts fell apart on their way in."""
    record = served(profile, settings, streams, seed)
    latencies = latencies_ms(record, np.full(len(record.requests), True))
    means = Means(*(float(np.mean(latencies[name])) if len(latencies[name]) else 0.0 for name in METRICS))
    segments = record.segments
    return means, int(segments["num_steps"][segments["prefill_tokens"] > 0].sum())


def served(profile: dict[str, Any], settings: dict[str, Any], streams: Streams, seed: int = 0) -> RunRecord:
    """The run, in the engine."""
    workload = {"num_prompts": 1, "request_rate": 1}
    lengths = {f"{name}_len": {"distribution": "fixed", "mean": 1} for name in ("prompt", "output")}
    content = {"profile": profile, "engine": settings, "workload": {**workload, **lengths}, "seed": seed}
    resolved = resolve(Scenario.from_dict(content))
    return engine.run(
        resolved.engine,
        resolved.cost_model(),
        resolved.policy,
        requests_of(streams),
        noise=resolved.noise(),
        host_noise=resolved.host_noise(),
    )


def requests_of(streams: Streams) -> Requests:
    """The run's requests, for the engine."""
    is_loop = streams.max_concurrency is not None
    sent_ps = np.round((streams.sent_s - streams.sent_s.min()) * (0.0 if is_loop else PS_PER_S)).astype(np.int64)
    chunk = RequestChunk(
        sent_ps.tolist(), streams.num_prompt_tokens.tolist(), np.maximum(1, streams.num_output_tokens).tolist()
    )
    return Requests(chunk, max_concurrency=streams.max_concurrency)
