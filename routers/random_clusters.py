"""Random clusters for `check_router`: small enough to run by the hundred, nasty enough to reach all code."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from simbatch.policies.fixed import Fixed
from simbatch.policies.priority import Priority
from simbatch.policies.random_cases import MS, ListSource, random_config, random_cost, random_source
from simbatch.policies.vllm import VLLM
from simbatch.routers.base import Router
from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.engine import Member, run_cluster
from simbatch.sim.engine.record import RunRecord

MAX_REPLICAS = 6
LONGEST = 128  # tokens of a request; engines may take fewer


@dataclass
class ClusterCase:
    """A cluster and its requests."""

    members: list[Member]
    source: ListSource
    seed: int
    refresh_ps: int = 0

    def run(self, router: Router, *, spans: bool = True, steps: bool = False) -> RunRecord:
        """Simulate it; policies and draws are made anew each time."""
        return run_cluster(
            copy.deepcopy(self.members),
            router,
            self.source,
            seed=self.seed,
            refresh_ps=self.refresh_ps,
            spans=spans,
            steps=steps,
        )


def random_cluster(seed: int) -> ClusterCase:
    """One to six engines, alike or not, some with times on host and front end; open and closed loops."""
    rng = random.Random(seed)
    first = _random_member(rng)
    others: Sequence[Member] = [first] * (MAX_REPLICAS - 1)
    if rng.random() < 0.5:
        others = [_random_member(rng) for _ in range(MAX_REPLICAS - 1)]
    block_size = first.config.block_size
    members = [first, *(replace(m, config=replace(m.config, block_size=block_size)) for m in others)]
    for i, member in enumerate(members):  # as many blocks as hold one request, at least
        least = 1 + -(-member.config.max_model_len // block_size)
        if member.config.num_gpu_blocks < least:
            members[i] = replace(member, config=replace(member.config, num_gpu_blocks=least))
    source = random_source(rng, LONGEST)
    return ClusterCase(members[: rng.randint(1, MAX_REPLICAS)], source, seed, rng.choice([0, 0, 0, 30 * MS, 200 * MS]))


def _random_member(rng: random.Random) -> Member:
    policy = rng.choice([VLLM(), VLLM(), Fixed(batch_size=rng.choice([1, 3])), Priority(max_batch_size=8)])
    config = random_config(rng, policy, is_vllm=isinstance(policy, VLLM))
    if rng.random() < 0.4:
        times = HostTimes(update_base_ps=rng.choice([0, MS]), admit_base_ps=MS, lag_ps=rng.choice([0, 3 * MS]))
        chunk_ps, network_ps = rng.choice([0, MS]), rng.choice([0, MS])
        front_end = FrontEndTimes(per_request_ps=2 * MS, per_chunk_ps=chunk_ps, network_ps=network_ps)
        config = replace(config, host=times, front_end=rng.choice([None, front_end]))
    return Member(config, random_cost(rng), policy)
