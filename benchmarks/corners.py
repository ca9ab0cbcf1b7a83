"""Where an engine could fall off a cliff: `python -m benchmarks.corners`.

Overload with long queues, many running requests and too few blocks, in microseconds of CPU per request; stepping and a
policy that plans every step itself, in steps per CPU second. Synthetic requests, no file needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from simbatch.sim import engine
from simbatch.sim.clock import PS_PER_MS, to_ps
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.chunk import RequestChunk

COST_70B = LinearCost(20 * PS_PER_MS, 100_000_000, 50_000_000, 10_000)


@dataclass
class Synthetic:
    """Requests of 100 to 2,000 prompt and 20 to 500 output tokens, at a rate or, without one, all at once."""

    count: int
    rate_per_s: float = 0.0
    lengths: tuple[int, int] | None = None
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    skipped: int = 0

    @property
    def num_requests(self) -> int:
        """How many there are."""
        return self.count

    def chunks(self) -> Iterator[RequestChunk]:
        """All in one chunk."""
        rng, now, rows = random.Random(3), 0, []
        for _ in range(self.count):
            now += to_ps(rng.expovariate(self.rate_per_s)) if self.rate_per_s else 0
            rows.append((now, *(self.lengths or (rng.randint(100, 2000), rng.randint(20, 500)))))
        yield RequestChunk(*(list(column) for column in zip(*rows, strict=True)))


class WholePlan(Policy):
    """vLLM's order, planned by hand at every step."""

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Everybody who wants tokens, then whoever finds a seat."""
        tokens = {request: n for request in running if (n := request.num_wanted_tokens)}
        for request in waiting[: engine.max_num_seqs - len(running)]:
            tokens[request] = request.num_wanted_tokens
        return Plan(tokens)


def overload() -> None:
    """CPU per request under four loads."""
    print(f"{'load':<30} {'caching':<8} {'policy':<9} {'us/request':>10} {'preempted':>10} {'running':>8}")
    loads = (
        ("light", Synthetic(20_000, 1.0), 40_000),
        ("100,000 waiting", Synthetic(100_000), 200_000),
        ("100,000 waiting, few blocks", Synthetic(100_000), 40_000),
        ("20,000 waiting, fewer blocks", Synthetic(20_000), 10_000),
    )
    for name, source, num_gpu_blocks in loads:
        for caching in (False, True):
            for policy in (VLLM(), Priority(max_batch_size=1024)):
                config = EngineConfig(
                    max_num_seqs=1024,
                    max_num_batched_tokens=8192,
                    max_model_len=8192,
                    num_gpu_blocks=num_gpu_blocks,
                    enable_prefix_caching=caching,
                    async_scheduling=True,
                )
                record = engine.run(config, COST_70B, policy, source)
                per_request_us = record.event_loop_cpu_s / source.count * 1e6
                print(
                    f"{name:<30} {caching!s:<8} {type(policy).__name__:<9} {per_request_us:>10.1f}"
                    f" {record.num_preemptions:>10,} {record.segments['num_running'].max():>8,}",
                    flush=True,
                )


def stepping() -> None:
    """Steps per CPU second at 32 decodes a step."""
    print(f"\n{'steps one by one':<30} {'async':<8} {'steps/CPU s':>12}")
    for name, policy, spans in (("stepwise", VLLM(), False), ("planned by the policy", WholePlan(), True)):
        for is_async in (False, True):
            config = EngineConfig(
                max_num_seqs=32,
                max_num_batched_tokens=2048,
                max_model_len=8192,
                num_gpu_blocks=10_000,
                enable_prefix_caching=False,
                async_scheduling=is_async,
            )
            cost = LinearCost(PS_PER_MS, 0, 0, 0)
            record = engine.run(config, cost, policy, Synthetic(128, lengths=(10, 2000)), spans=spans)
            print(f"{name:<30} {is_async!s:<8} {record.num_steps / record.event_loop_cpu_s:>12,.0f}", flush=True)


if __name__ == "__main__":
    overload()
    stepping()
