"""A cluster put together: one engine for each of its members, one gateway in front of them, one record of it all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import simpy
from numpy.typing import NDArray

from simbatch.sim.cost.host import FrontEndTimes, HostDraws, NoiseDraws
from simbatch.sim.cost.model import CostModel
from simbatch.sim.engine.cluster import Cluster, Published, Switch
from simbatch.sim.engine.front_end import FrontEnd
from simbatch.sim.engine.gateway import Gateway, GatewayReplica
from simbatch.sim.engine.leap import Leap
from simbatch.sim.engine.listener import Listener
from simbatch.sim.engine.record import SEGMENT_DTYPE, TOKEN_DTYPE, ReplicaLog, RunRecord
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.sessions import traffic_of
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import Lane, Traffic
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.plugins.router import Router
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.names import PrefixKeys
from simbatch.sim.workload.turns import turns_in

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestSource


ROUTER_STREAM = 0x5EED2073
ANY_LENGTH = 1 << 62  # a replica cuts outputs itself
# what a run of all replicas has as the sum of theirs
ADDED_UP = ("num_preemptions", "num_recomputed_tokens", "num_truncated", "num_gpu_blocks", "front_end_late_ps")


@dataclass(frozen=True)
class Member:
    """One replica of a cluster, with draws of its own."""

    config: EngineConfig
    cost: CostModel
    policy: Policy
    noise: NoiseDraws | None = None
    host_noise: HostDraws | None = None
    group: int = 0
    profile: str = ""


class ClusterRun:
    """The parts of one run of a cluster."""

    def __init__(
        self,
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
        listeners: Sequence[Listener] | None = None,
    ) -> None:
        self.members, self.source = members, source
        self.env = simpy.Environment(0)
        configs = [member.config for member in members]
        self.networks_ps = [network_ps_of(config) for config in configs]
        is_timed = len(set(self.networks_ps)) > 1 or any(map(has_times, configs))
        self.recorder = Recorder(keep_steps=steps, is_timed=is_timed)
        self.recorder.replica = self.recorder.new_column()
        keys = prefix_keys(configs, source)
        self.traffic = traffic_of(source, self.recorder, ANY_LENGTH, keys, progress)
        published = Published(refresh_ps)
        views = [_view(i, member, published) for i, member in enumerate(members)]
        self.gateway = Gateway(router, views, random.Random((ROUTER_STREAM << 64) + seed).random)
        self.recorders = [self.recorder.beside(i) for i in range(len(members))]
        self.lanes = [
            Lane(i, self.traffic, self.gateway.left, member.config.max_model_len, network_ps)
            for i, (member, network_ps) in enumerate(zip(members, self.networks_ps, strict=True))
        ]
        told: Sequence[Listener | None] = listeners or [None] * len(members)
        parts = zip(members, self.lanes, self.recorders, told, strict=True)
        self.replicas = [replica_of(self.env, *each) for each in parts]
        loops = [Stepwise(replica, Leap(replica) if spans else None) for replica in self.replicas]
        self.cluster = published.cluster = Cluster(
            self.env,
            self.traffic,
            self.gateway,
            published,
            self.lanes,
            self.replicas,
            loops,
            self.recorder.replica,
            sorted(events),
        )
        self.gateway.start()
        self.env.process(self.cluster.run())

    def record(self, event_loop_cpu_s: float) -> RunRecord:
        """What happened, once the environment has nothing more to do."""
        for replica in self.replicas:
            for request in replica.unfinished():
                self.recorder.left(request)
            replica.close()
        for request in self.cluster.held:
            self.recorder.left(request)
        recorder = self.recorder
        network_ps = self.networks_ps[0]
        each_ps = network_ps if len(set(self.networks_ps)) == 1 else np.array(self.networks_ps)[recorder.replica]
        segments, rows = _joined([each.segments for each in self.recorders], SEGMENT_DTYPE)
        tokens, token_rows = _joined([each.tokens for each in self.recorders], TOKEN_DTYPE)
        logs = tuple(self._log(i, rows[i], token_rows[i]) for i in range(len(self.members)))
        return RunRecord(
            requests=recorder.columns(each_ps),
            segments=segments,
            gaps=np.concatenate([log.gaps for log in logs]),
            **{name: sum(getattr(log, name) for log in logs) for name in ADDED_UP},
            end_ps=max(log.end_ps for log in logs),
            block_size=logs[0].block_size,
            client_overhead_ps=min(self.networks_ps),
            event_loop_cpu_s=event_loop_cpu_s,
            steps=None if recorder.steps is None else [row for each in self.recorders for row in each.steps or ()],
            tokens=tokens if recorder.is_timed else None,
            replicas=logs,
            num_sent_again=self.cluster.num_sent_again,
            num_lost_tokens=self.cluster.num_lost_tokens,
            turns=turns_in(self.source),
            num_not_sent=self.traffic.num_not_sent,
        )

    def _log(self, index: int, rows: slice, token_rows: slice) -> ReplicaLog:
        member, replica, recorder = self.members[index], self.replicas[index], self.recorders[index]
        return ReplicaLog(
            group=member.group,
            profile=member.profile,
            rows=rows,
            token_rows=token_rows,
            gaps=np.array(recorder.gaps, dtype=np.int64),
            num_preemptions=replica.scheduler.num_preemptions,
            num_recomputed_tokens=replica.scheduler.num_recomputed_tokens,
            num_truncated=self.lanes[index].num_truncated,
            end_ps=replica.now_ps,
            num_gpu_blocks=member.config.num_gpu_blocks,
            block_size=member.config.block_size,
            front_end_late_ps=replica.front_end.late_ps if replica.front_end else 0,
        )


def _view(index: int, member: Member, published: Published) -> GatewayReplica:
    config = member.config
    return GatewayReplica(
        index,
        published,
        group=member.group,
        profile=member.profile,
        block_size=config.block_size,
        num_gpu_blocks=config.num_gpu_blocks,
        max_num_seqs=config.max_num_active_seqs or config.max_num_seqs,
    )


def _joined(logs: list[bytearray], dtype: np.dtype[np.void]) -> tuple[NDArray[np.void], list[slice]]:
    """Rows of all replicas, one after the other, and where each one's are; the logs are emptied as they are read."""
    sizes = [len(log) // dtype.itemsize for log in logs]
    ends = np.cumsum(sizes).tolist()
    joined = np.empty(ends[-1], dtype=dtype)
    slices = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    for log, part in zip(logs, slices, strict=True):
        joined[part] = np.frombuffer(bytes(log), dtype=dtype)
        log.clear()
    return joined, slices


def replica_of(
    env: simpy.Environment, member: Member, feed: Traffic | Lane, recorder: Recorder, listener: Listener | None
) -> Replica:
    """The engine of a member, behind a front end if requests do not pass it at once."""
    config, times = member.config, front_end_of(member.config)
    lane = feed if isinstance(feed, Lane) else None
    inbox: Traffic | Lane | FrontEnd = feed
    if times is not None:
        limits = config.max_num_queued_reqs, config.max_num_queued_tokens
        inbox = front_end = FrontEnd(times, config.api_server_count, feed, recorder.refused, *limits)
        if lane is not None:
            lane.on_sent = front_end.plan
    return Replica(
        env,
        config,
        member.cost,
        member.policy,
        inbox,
        recorder,
        inbox.left,
        noise=member.noise,
        host_noise=member.host_noise,
        listener=listener,
        lane=lane,
    )


def has_times(config: EngineConfig) -> bool:
    """Whether host or front end take time, so that tokens come after the device's end."""
    return config.host is not None or front_end_of(config) is not None


def network_ps_of(config: EngineConfig) -> int:
    """What the network takes from the server to the client."""
    return config.front_end.network_ps if config.front_end else 0


def front_end_of(config: EngineConfig) -> FrontEndTimes | None:
    """The front end's times, where it does more than add the network's: None if requests pass it at once."""
    times = config.front_end or FrontEndTimes()
    has_limits = config.max_num_queued_reqs is not None or config.max_num_queued_tokens is not None
    if has_limits or times.per_request_ps or times.per_prompt_token_ps or times.per_chunk_ps:
        return times
    return None


def prefix_keys(configs: Sequence[EngineConfig], source: RequestSource) -> PrefixKeys | None:
    """How the blocks of prompts get their names; None where no engine shares any. All have one block size."""
    block_size = configs[0].block_size
    has_names = source.hash_block_tokens or turns_in(source) is not None
    if has_names and any(config.enable_prefix_caching for config in configs):
        return PrefixKeys(source.hash_block_tokens or block_size, block_size)
    return None
