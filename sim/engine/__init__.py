"""The engine: continuous and static batching on paged KV memory, decision by decision as vLLM's V1 scheduler.

A run has traffic, a front end, and a replica in one SimPy environment; a cluster has several of the last two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import simpy

from simbatch.sim.clock import to_s
from simbatch.sim.cost.host import HostDraws, NoiseDraws
from simbatch.sim.cost.model import CostModel
from simbatch.sim.engine.cluster import Switch
from simbatch.sim.engine.explain import Event, Watch
from simbatch.sim.engine.leap import Leap
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.members import (
    ClusterRun,
    Member,
    front_end_of,
    has_times,
    network_ps_of,
    prefix_keys,
    replica_of,
)
from simbatch.sim.engine.record import SEGMENT_DTYPE, TOKEN_DTYPE, RunRecord
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.sessions import traffic_of
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.plugins.router import Router
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.turns import turns_in

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestSource

__all__ = [
    "ClusterRun",
    "Member",
    "Run",
    "Switch",
    "explain",
    "explain_cluster",
    "front_end_of",
    "run",
    "run_cluster",
]


class Run:
    """The parts of one run, put together: one replica behind its front end."""

    def __init__(
        self,
        config: EngineConfig,
        cost: CostModel,
        policy: Policy,
        source: RequestSource,
        *,
        steps: bool = False,
        spans: bool = True,
        progress: Callable[[int], None] | None = None,
        noise: NoiseDraws | None = None,
        host_noise: HostDraws | None = None,
        listener: Listener | None = None,
        env: simpy.Environment | None = None,
    ) -> None:
        self.config, self.source = config, source
        self.env = env or simpy.Environment(0)
        self.recorder = Recorder(keep_steps=steps, is_timed=has_times(config))
        keys, network_ps = prefix_keys([config], source), network_ps_of(config)
        self.traffic = traffic_of(source, self.recorder, config.max_model_len, keys, progress, network_ps)
        member = Member(config, cost, policy, noise, host_noise)
        self.replica = replica_of(self.env, member, self.traffic, self.recorder, listener)
        leap = Leap(self.replica) if spans else None
        self.stepwise = Stepwise(self.replica, leap)
        self.env.process(self.stepwise.run())

    def record(self, event_loop_cpu_s: float) -> RunRecord:
        """What happened, once the environment has nothing more to do."""
        replica, scheduler = self.replica, self.replica.scheduler
        for request in replica.unfinished():
            self.recorder.left(request)
        replica.close()
        network_ps, recorder = network_ps_of(self.config), self.recorder
        return RunRecord(
            requests=recorder.columns(network_ps),
            segments=np.frombuffer(recorder.segments, dtype=SEGMENT_DTYPE),
            gaps=np.array(recorder.gaps, dtype=np.int64),
            num_preemptions=scheduler.num_preemptions,
            num_recomputed_tokens=scheduler.num_recomputed_tokens,
            num_truncated=recorder.num_truncated,
            end_ps=replica.now_ps,
            num_gpu_blocks=self.config.num_gpu_blocks,
            block_size=self.config.block_size,
            client_overhead_ps=network_ps,
            event_loop_cpu_s=event_loop_cpu_s,
            steps=recorder.steps,
            tokens=np.frombuffer(recorder.tokens, dtype=TOKEN_DTYPE) if recorder.is_timed else None,
            front_end_late_ps=replica.front_end.late_ps if replica.front_end else 0,
            turns=turns_in(self.source),
            num_not_sent=self.traffic.num_not_sent,
        )


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
    host_noise: HostDraws | None = None,
) -> RunRecord:
    """Serve every request of `source`; returns what happened.

    `steps` keeps every step, `spans=False` simulates them one by one (same result, slower), `progress` is told how many
    requests have left the system, once for each five hundred. `noise` is drawn from for the time of every step on the
    device, `host_noise` for launches.
    """
    this = Run(
        config, cost, policy, source, steps=steps, spans=spans, progress=progress, noise=noise, host_noise=host_noise
    )
    return _played(this)


def explain(
    config: EngineConfig,
    cost: CostModel,
    policy: Policy,
    source: RequestSource,
    request_id: str,
    noise: NoiseDraws | None = None,
    host_noise: HostDraws | None = None,
) -> list[Event]:
    """The life of one request, from its arrival on; empty if there is no such request."""
    watch = Watch(request_id)
    this = Run(config, cost, policy, source, noise=noise, host_noise=host_noise, listener=watch)
    watch.replica = this.replica
    this.env.run()
    this.replica.close()
    return watch.events


def run_cluster(
    members: Sequence[Member],
    router: Router,
    source: RequestSource,
    *,
    seed: int = 0,
    refresh_ps: int = 0,
    events: Sequence[Switch] = (),
    steps: bool = False,
    spans: bool = True,
    progress: Callable[[int], None] | None = None,
) -> RunRecord:
    """Serve every request of `source` by several replicas behind a router, which draws by `seed`."""
    this = ClusterRun(
        members,
        router,
        source,
        seed=seed,
        refresh_ps=refresh_ps,
        events=events,
        steps=steps,
        spans=spans,
        progress=progress,
    )
    return _played(this)


def _played(this: Run | ClusterRun) -> RunRecord:
    """Play a run to its end; its processor time is the event loop's, without what reading the requests takes."""
    loaded_before_s = this.traffic.load_cpu_s
    begin_s = time.process_time()
    this.env.run()
    return this.record(time.process_time() - begin_s - (this.traffic.load_cpu_s - loaded_before_s))


def explain_cluster(
    members: Sequence[Member],
    router: Router,
    source: RequestSource,
    request_id: str,
    *,
    seed: int = 0,
    refresh_ps: int = 0,
    events: Sequence[Switch] = (),
) -> list[Event]:
    """The life of one request in a cluster: where it was sent, and why, and what became of it there."""
    watches = [Watch(request_id) for _ in members]
    this = ClusterRun(members, router, source, seed=seed, refresh_ps=refresh_ps, events=events, listeners=watches)
    for watch, replica in zip(watches, this.replicas, strict=True):
        watch.replica = replica
    sent = []

    def note(request: Request, at_ps: int, index: int) -> None:
        if request.request_id == request_id:
            for watch in watches:
                watch.forget()
            what = f"sent to replica {index} by {type(router).__name__}: {this.gateway.why(request)}"
            sent.append(Event(to_s(at_ps), None, 1, what))

    this.gateway.on_routed = note
    this.env.run()
    for replica in this.replicas:
        replica.close()
    return sorted([*sent, *(event for watch in watches for event in watch.events)], key=lambda event: event.time_s)
