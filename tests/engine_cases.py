"""Random engine scenarios, small enough to run by the hundred and nasty enough to reach every branch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from simbatch.policies.adaptive import Adaptive
from simbatch.policies.base import Policy
from simbatch.policies.fixed import Fixed
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.cost.noise import NoiseDraws, Ratios, StepNoise
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.chunk import RequestChunk

MS = 10**9  # ps
NOISE = StepNoise(
    decode=Ratios(share=(0, 0.5, 0.9, 0.99, 1), ratio=(0.92, 0.95, 1.05, 1.5, 2.05)),
    mixed=Ratios(share=(0, 1), ratio=(0.6, 1.4)),
)
Row = tuple[int, int, int, int, tuple[int, ...]]  # arrival_ps, prompt, output, priority, hashes


@dataclass
class ListSource:
    """Requests from a list, in short chunks."""

    rows: list[Row]
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    think_time_ps: int = 0
    skipped: int = 0

    @property
    def num_requests(self) -> int:
        return len(self.rows)

    def chunks(self) -> Iterator[RequestChunk]:
        for i in range(0, len(self.rows), 7):
            arrivals, prompts, outputs, priorities, hashes = (list(c) for c in zip(*self.rows[i : i + 7], strict=True))
            yield RequestChunk(
                arrivals, prompts, outputs, priorities, hash_ids=hashes if self.hash_block_tokens else None
            )


@dataclass
class Case:
    config: EngineConfig
    cost: LinearCost
    policy: Policy
    source: ListSource
    noise_seed: int | None = None

    def noise(self) -> NoiseDraws | None:
        """Draws from their beginning, for one run."""
        return None if self.noise_seed is None else NOISE.draws(self.noise_seed)


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    block_size, max_model_len = rng.choice([1, 4, 16, 16, 32]), rng.choice([64, 128, 256])
    per_request = -(-max_model_len // block_size)
    max_num_seqs = rng.choice([1, 2, 5, 16, 40])
    budget = max(max_num_seqs, rng.choice([16, 48, 64, 100, 256]))
    policy = random_policy(rng, max_num_seqs)
    is_vllm = isinstance(policy, VLLM)
    config = EngineConfig(
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
        batching="static" if not is_vllm and rng.random() < 0.5 else "continuous",
        request_overhead_ps=rng.choice([0, 0, MS]),
    )
    cost = LinearCost(
        rng.choice([6, 10]) * MS, rng.choice([0, 45_000_000]), rng.choice([0, 90_000_000]), rng.choice([0, 351, 35_000])
    )
    source = random_source(rng, max_model_len)
    return Case(config, cost, policy, source, rng.choice([None, seed]))


def random_policy(rng: random.Random, max_num_seqs: int) -> Policy:
    return rng.choice(
        [
            VLLM(),
            VLLM(),
            VLLM(),
            Fixed(batch_size=min(max_num_seqs, rng.choice([1, 3, 8]))),
            Adaptive(target_tpot_ms=rng.choice([5, 20, 60]), adjustment_interval=rng.choice([1, 3])),
            Priority(max_batch_size=8, ageing_s=rng.choice([0.1, 3.0])),
        ]
    )


def random_source(rng: random.Random, max_model_len: int) -> ListSource:
    """Prompts share beginnings of hashes of 4 tokens; some are too long; some arrive at the same moment."""
    now, rate, rows = 0, rng.choice([0, 3, 30, 200]), list[Row]()
    for i in range(rng.choice([5, 20, 60])):
        if rate and rng.random() < 0.8:
            now += int(rng.expovariate(rate) * 1000) * MS
        longest = max_model_len + 2 if rng.random() < 0.1 else max_model_len // 2
        prompt, group = rng.randint(1, longest), rng.randrange(4)
        shared = min(prompt // 4, rng.randint(0, 20))
        hashes = [group * 1000 + j for j in range(shared)] + [(i + 9) * 10_000 + j for j in range(prompt // 4 - shared)]
        rows.append((now, prompt, rng.randint(1, max_model_len // 2), rng.randrange(3), tuple(hashes)))
    limit = rng.choice([None, None, None, 3])
    return ListSource(rows, 4, limit, rng.choice([0, 10 * MS]) if limit else 0)


def itl_ps(record: RunRecord) -> Counter[int]:
    """Every gap between two tokens of a request, token by token."""
    gaps = Counter(record.gaps.tolist())
    for row in record.segments:
        for j in range(row["num_steps"]):
            gaps[int(row["duration_ps"] + j * row["slope_ps"])] += int(row["num_regular"])
    return +gaps
