"""Random engines, clusters and requests: small enough to run by the hundred, nasty enough to reach all code."""

from __future__ import annotations

import copy
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simbatch.sim.cost.host import FrontEndTimes, HostTimes
from simbatch.sim.cost.model import CostModel, LinearCost
from simbatch.sim.engine import Member, Switch, run, run_cluster
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.plugins.policy import POLICIES, Policy
from simbatch.sim.plugins.router import Router
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.chunk import RequestChunk
from simbatch.sim.workload.turns import Turns, turns_of, whole_prompts

MS = 10**9  # ps
CHUNK = 7  # requests, so that several are needed
MAX_REPLICAS = 6
LONGEST = 128  # tokens of a request of a cluster; engines may take fewer
NUM_GROUPS = 4  # of requests whose prompts begin alike
Row = tuple[int, int, int, int, tuple[int, ...]]  # arrival_ps, prompt, output, priority, hashes


@dataclass
class ListSource:
    """Requests from a list, in short chunks; the tenants, if any, are those of the list, one a request."""

    rows: list[Row]
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    think_time_ps: int = 0
    skipped: int = 0
    tenants: list[str | None] | None = None
    num_requests: int | None = None  # for progress bars, which nobody watches here
    turns: Turns | None = None

    def chunks(self) -> Iterator[RequestChunk]:
        """In order of arrival."""
        for i in range(0, len(self.rows), CHUNK):
            arrivals, prompts, outputs, priorities, hashes = map(list, zip(*self.rows[i : i + CHUNK], strict=True))
            yield RequestChunk(
                arrivals,
                prompts,
                outputs,
                priorities,
                hash_ids=hashes if self.hash_block_tokens else None,
                tenant=self.tenants[i : i + CHUNK] if self.tenants else None,
            )


@dataclass(frozen=True)
class EngineCase:
    """An engine and its requests."""

    config: EngineConfig
    cost: CostModel
    source: ListSource

    def run(self, policy: Policy, *, spans: bool = True) -> RunRecord:
        """Simulate it, every step kept."""
        return run(self.config, self.cost, policy, self.source, steps=True, spans=spans)


def random_engine(policy: Policy, seed: int) -> EngineCase:
    """Any engine that the policy may meet."""
    rng = random.Random(seed)
    config, cost = random_config(rng, policy), random_cost(rng)
    source = random_source(rng, config.max_model_len)
    return EngineCase(config, cost, in_sessions(source, seed) if seed % 4 == 3 else source)


def random_config(rng: random.Random, policy: Policy, *, is_vllm: bool = False) -> EngineConfig:
    """Any engine that the policy may meet; memory is short in half of them."""
    block_size, max_model_len = rng.choice([1, 4, 16, 16, 32]), rng.choice([64, 128, 256])
    per_request = -(-max_model_len // block_size)
    max_num_seqs = rng.choice([1, 2, 5, 16, 40])
    budget = max(max_num_seqs, rng.choice([16, 48, 64, 100, 256]))
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        num_gpu_blocks=1 + per_request + rng.choice([0, 1, per_request // 2, per_request * 2, per_request * 10]),
        block_size=block_size,
        enable_prefix_caching=rng.random() < 0.5,
        enable_chunked_prefill=rng.random() < 0.85 or budget < max_model_len,
        scheduling_policy="priority" if is_vllm and rng.random() < 0.3 else "fcfs",
        long_prefill_token_threshold=rng.choice([0, 0, 0, 10, 30]),
        long_prefill_token_threshold_adaptive=rng.random() < 0.3,
        watermark=rng.choice([0.0, 0.0, 0.05, 0.2]),
        scheduler_reserve_full_isl=rng.random() < 0.8,
        async_scheduling=rng.random() < 0.5,
        batching=rng.choice(policy.disciplines),
        host=rng.choice([None, None, HostTimes(admit_base_ps=MS)]),
        seed=rng.randrange(100),
    )


def random_cost(rng: random.Random) -> LinearCost:
    """Steps of 6 or 10 ms, with and without terms for tokens, sequences and contexts."""
    return LinearCost(
        rng.choice([6, 10]) * MS, rng.choice([0, 45_000_000]), rng.choice([0, 90_000_000]), rng.choice([0, 351, 35_000])
    )


def random_source(rng: random.Random, max_model_len: int) -> ListSource:
    """Prompts share beginnings of hashes of 4 tokens; some are too long; some arrive at the same moment."""
    now, rate, rows = 0, rng.choice([0, 3, 30, 200]), list[Row]()
    for i in range(rng.choice([5, 20, 60])):
        if rate and rng.random() < 0.8:
            now += int(rng.expovariate(rate) * 1000) * MS
        longest = max_model_len + 2 if rng.random() < 0.1 else max_model_len // 2
        prompt, group = rng.randint(1, longest), rng.randrange(NUM_GROUPS)
        shared = min(prompt // 4, rng.randint(0, 20))
        hashes = [group * 1000 + j for j in range(shared)] + [(i + 9) * 10_000 + j for j in range(prompt // 4 - shared)]
        rows.append((now, prompt, rng.randint(1, max_model_len // 2), rng.randrange(3), tuple(hashes)))
    limit = rng.choice([None, None, None, 3])
    tenants = [rng.choice(["a", "b", "c", None]) for _ in rows] if rng.random() < 0.5 else None
    return ListSource(rows, 4, limit, rng.choice([0, 10 * MS]) if limit else 0, tenants=tenants)


def in_sessions(source: ListSource, seed: int) -> ListSource:
    """The requests of a source as turns: some wait for others, which may come later in the list, or for several."""
    rng, n = random.Random(seed), len(source.rows)
    awaited: list[list[int]] = []
    for row in range(n):
        num_others = min(row, rng.choice([0, 1, 1, 1, 1, 2, 3]))
        near = range(max(0, row - rng.choice([1, 3, 10])), row)
        awaited.append(sorted(rng.sample(near, min(num_others, len(near)))))
    if rng.random() < 0.3:  # the other way round
        awaited = [[n - 1 - other for other in others] for others in reversed(awaited)]
    delays = [rng.choice([0, 0, 5 * MS, 100 * MS]) for _ in range(n)]
    turns = turns_of(awaited, delays)
    lengths = whole_prompts(turns, [rng.randint(1, 30) for _ in range(n)], [row[2] for row in source.rows])
    rows = [
        (row[0] if rng.random() < 0.5 else 0, length, *row[2:])
        for row, length in zip(source.rows, lengths, strict=True)
    ]
    if rng.random() < 0.7:  # prompts that go on with the conversation; else they have lengths of their own
        source = replace(source, rows=rows)
    tokens = rng.choice([0, 0, 10, 50])
    system = array("q", [rng.randrange(2) for _ in range(turns.num_sessions)])
    users = rng.choice([None, None, 1, 2])
    turns = replace(turns, num_system_tokens=tokens, system=system, max_sessions=users)
    has_hashes = rng.random() < 0.3
    return replace(source, turns=turns, max_concurrency=None, hash_block_tokens=source.hash_block_tokens * has_hashes)


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
