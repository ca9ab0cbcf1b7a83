"""The contract test: what no router may break, tried on random clusters and requests.

>>> from simbatch.routers.testing import check_router
>>> check_router("least_requests", num_cases=5).num_cases
5
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.engine import Member, Switch, run_cluster
from simbatch.sim.engine.record import UNFINISHED, RunRecord, differences
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.plugins.router import ROUTERS, Router
from simbatch.sim.plugins.testing import (
    MS,
    BrokenRuleError,
    Checked,
    ListSource,
    Rule,
    TriedCase,
    check,
    determinism,
    random_config,
    random_cost,
    random_source,
    spans,
)

MAX_REPLICAS = 6
LONGEST = 128  # tokens of a request of a cluster; engines may take fewer


@dataclass
class ClusterCase:
    """A cluster and its requests."""

    members: list[Member]
    source: ListSource
    seed: int
    refresh_ps: int = 0
    events: Sequence[Switch] = ()

    def run(self, router: Router, *, spans: bool = True, steps: bool = False) -> RunRecord:
        """Simulate it; policies and draws are made anew each time."""
        return run_cluster(
            [replace(member, policy=copy.deepcopy(member.policy)) for member in self.members],
            router,
            self.source,
            seed=self.seed,
            refresh_ps=self.refresh_ps,
            events=self.events,
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
    members = members[: rng.randint(1, MAX_REPLICAS)]
    refresh_ps = rng.choice([0, 0, 0, 30 * MS, 200 * MS])
    events = list[Switch]()
    for i in range(len(members)):
        at_ps = 0
        while rng.random() < 0.25:
            at_ps, drains = at_ps + rng.randrange(1, 2000) * MS, rng.random() < 0.3
            up_ps = at_ps + rng.randrange(1, 1000) * MS
            events += [Switch(at_ps, False, i, drains), Switch(up_ps, True, i, drains)]
            at_ps = up_ps
    return ClusterCase(members, source, seed, refresh_ps, events)


def _random_member(rng: random.Random) -> Member:
    few = {"batch_size": rng.choice([1, 3])}
    name, parameters = rng.choice([("vllm", {}), ("vllm", {}), ("fixed", few), ("priority", {"max_batch_size": 8})])
    policy = POLICIES.load(name, parameters, folder=Path())
    config = random_config(rng, policy, is_vllm=name == "vllm")
    if rng.random() < 0.4:
        times = HostTimes(update_base_ps=rng.choice([0, MS]), admit_base_ps=MS, lag_ps=rng.choice([0, 3 * MS]))
        chunk_ps, network_ps = rng.choice([0, MS]), rng.choice([0, MS])
        front_end = FrontEndTimes(per_request_ps=2 * MS, per_chunk_ps=chunk_ps, network_ps=network_ps)
        config = replace(config, host=times, front_end=rng.choice([None, front_end]))
    return Member(config, random_cost(rng), policy)


Trial = TriedCase[ClusterCase]


class RouterError(BrokenRuleError):
    """A router breaks a rule; says which, on which of the random cases, and how."""


def check_router(
    router: Router | type[Router] | str,
    *,
    num_cases: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Checked:
    """Run a router (an object, a class, or a name as in YAML, with `parameters`) through random clusters.

    Raises RouterError at the first rule that it breaks. `seed` numbers the first case; a fault names the seed of its
    own.
    """
    made = ROUTERS.made(router, parameters)
    return check(
        made, random_cluster, RULES, RouterError, skipped={}, num_cases=num_cases, seed=seed, progress=progress
    )


def _conservation(trial: Trial) -> Iterator[str]:
    """Every request ends once, on one replica."""
    requests = trial.record.requests
    assert requests.replica is not None
    for i in np.flatnonzero(requests.status == UNFINISHED):
        yield f"request {i} never ends, on replica {requests.replica[i]}"
    parts = sum(len(part.requests) for part in trial.record.parts())
    if parts != len(requests):
        yield f"{parts} requests on all replicas, of {len(requests)}"


def _draws(trial: Trial) -> Iterator[str]:
    """A router that says that it never draws does the same under another seed."""
    if not trial.made.draws:
        other = replace(trial.case, seed=trial.case.seed + 1)
        yield from differences(trial.record, other.run(trial.made, spans=False), "draws is False, and it draws")


RULES: dict[str, Rule[ClusterCase]] = {
    "conservation": _conservation,
    "determinism": determinism,
    "spans": spans,
    "draws": _draws,
}
