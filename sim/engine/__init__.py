"""The engine: continuous and static batching on paged KV memory, decision by decision as vLLM's V1 scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import simpy

from simbatch.policies.base import Policy
from simbatch.sim.cost.host import HostDraws
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.noise import NoiseDraws
from simbatch.sim.engine.arrivals import Arrivals
from simbatch.sim.engine.explain import Event, WatchedReplica
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.spans import SpanReplica
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.prefix_keys import PrefixKeys

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestSource


def run(
    config: EngineConfig,
    cost: CostModel,
    policy: Policy,
    source: RequestSource,
    *,
    steps: bool = False,
    spans: bool = True,
    progress: Callable[[int], None] | None = None,
    noise: NoiseDraws | None = None,
    host_noise: HostDraws | None = None,  # noqa: ARG001  # the engine with a host is on its way
) -> RunRecord:
    """Serve every request of `source`; returns what happened.

    `steps` keeps every step, `spans=False` simulates them one by one (same result, slower), `progress` is told how many
    requests have left the system, once for each five hundred. `noise` is drawn from for the time of every step.
    """
    recorder = Recorder(keep_steps=steps)
    env = simpy.Environment(0)
    arrivals = arrivals_of(source, recorder, config)
    kind = SpanReplica if spans else Replica
    replica = kind(env, config, cost, policy, arrivals, recorder, progress, noise)
    loaded_before_s = arrivals.load_cpu_s
    begin_s = time.process_time()
    env.process(replica.run())
    env.run()
    cpu_s = time.process_time() - begin_s - (arrivals.load_cpu_s - loaded_before_s)
    for request in replica.unfinished():
        recorder.left(request)
    scheduler = replica.scheduler
    return recorder.record(
        config,
        replica.now_ps,
        cpu_s,
        num_preemptions=scheduler.num_preemptions,
        num_recomputed_tokens=scheduler.num_recomputed_tokens,
    )


def explain(
    config: EngineConfig,
    cost: CostModel,
    policy: Policy,
    source: RequestSource,
    request_id: str,
    noise: NoiseDraws | None = None,
    host_noise: HostDraws | None = None,  # noqa: ARG001  # the engine with a host is on its way
) -> list[Event]:
    """The life of one request, from its arrival on; empty if there is no such request."""
    recorder, env = Recorder(), simpy.Environment(0)
    arrivals = arrivals_of(source, recorder, config)
    replica = WatchedReplica(env, config, cost, policy, arrivals, recorder, noise=noise, watched_id=request_id)
    env.process(replica.run())
    env.run()
    return replica.events


def arrivals_of(source: RequestSource, recorder: Recorder, config: EngineConfig) -> Arrivals:
    """The source's requests on their way to an engine with these settings."""
    keys = None
    if config.enable_prefix_caching and source.hash_block_tokens:
        keys = PrefixKeys(source.hash_block_tokens, config.block_size)
    return Arrivals(source, recorder, config.max_model_len, keys)
