"""How fast clusters are: `python -m benchmarks.cluster_speed [--azure FILE] [--repeat N] [--million]`.

The Azure conversation trace at 0.3 of its rate for each replica, as in `engine_speed`; requests per CPU second of the
event loop, and as a share of one engine's in the same process. `--million`: 64 replicas and a million requests, with
the time and the memory of the whole process.

`--soak 2000`: spans against stepping in as many random clusters, of one to six engines, alike or not, in open and
closed loops, with and without times on host and front end, replicas that fail and drain, behind a router that ships
or one that looks at everything there is to see.

`... corners`: where an engine could fall off a cliff. Overload with long queues, many running requests and too few
blocks, in microseconds of CPU per request; stepping and a policy that plans every step itself, in steps per CPU second.
Synthetic requests, no file needed.

`... beside CHECKOUT`: one engine of an older checkout and of this one, a process each, by turns: least CPU seconds of
`engine.run` on the Azure trace, read before; this one also with times of the host.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import parser_of, run_one_of
from benchmarks.engine_speed import AZURE, HOST, Repeated, azure_scenario, device_alone, played
from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from simbatch.routers.testing import random_cluster
from simbatch.sim import engine, is_compiled
from simbatch.sim.clock import PS_PER_MS, to_ps
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import Member, run_cluster
from simbatch.sim.plugins.router import ROUTERS
from simbatch.sim.report.result import Result
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.search import run_facts
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.chunk import RequestChunk

LEAST = "least_requests"
CASES = ((1, LEAST), (4, LEAST), (16, "round_robin"), (16, LEAST), (64, LEAST))


def resolved_for(path: Path, replicas: int, *, is_timed: bool = False) -> Resolved:
    """The trace, as many times as fast, with and without times of host and front end."""
    scenario = azure_scenario(path, enable_prefix_caching=False)
    scenario = scenario.override({"workload.trace.rate_scale": 0.3 * replicas})
    if is_timed:
        return resolve(scenario.override({"host.from": str(HOST)}), "vllm")
    return device_alone(resolve(scenario, "vllm"))


def members_of(resolved: Resolved, replicas: int) -> list[Member]:
    """So many engines alike."""
    return [Member(resolved.engine, resolved.cost_model(), copy.deepcopy(resolved.policy)) for _ in range(replicas)]


def cluster_rate(path: Path, replicas: int, router: str, repeat: int, is_timed: bool) -> tuple[float, int]:
    """Requests per CPU second, the best of several runs, and the segments of one."""
    best, segments, resolved = 0.0, 0, resolved_for(path, replicas, is_timed=is_timed)
    for _ in range(repeat):
        source = open_workload(resolved.scenario.workload, seed=0, folder=Path())
        members = members_of(resolved, replicas)
        record = run_cluster(members, ROUTERS.load(router, {}, folder=Path()), source)
        best, segments = max(best, len(record.requests) / record.event_loop_cpu_s), len(record.segments)
    return best, segments


def million(path: Path) -> None:
    """64 replicas behind least_requests, the trace 52 times over, summary included."""
    begin_s = time.perf_counter()
    scenario = azure_scenario(path, enable_prefix_caching=False)
    cluster = {"replicas": 64, "router": {"name": LEAST}}
    resolved = device_alone(resolve(scenario.override({"workload.trace.rate_scale": 0.3 * 64, "cluster": cluster})))
    assert resolved.fleet is not None
    one = open_workload(resolved.scenario.workload, seed=0, folder=Path())
    source = Repeated(one, 52, max(chunk.arrival_ps[-1] for chunk in one.chunks()))
    members = members_of(resolved, 64)
    record = run_cluster(members, resolved.fleet.router, source)
    ran_s = time.perf_counter() - begin_s
    summary = Result(record, run_facts(resolved, record, source)).summary
    all_s, peak_mib = time.perf_counter() - begin_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{summary['completed']:,} requests on 64 replicas: {record.event_loop_cpu_s:.1f} s of event loop, "
        f"{ran_s:.1f} s on the wall, {all_s:.1f} s with the summary, {peak_mib:,.0f} MiB at the most"
    )


def soak(first: int, num_cases: int) -> None:
    """Count the random clusters in which leaping, or keeping steps, differs from stepping."""
    from tests.test_cluster import NAMES, assert_same, router

    begin_s, wrong, num_requests = time.perf_counter(), 0, 0
    for seed in range(first, first + num_cases):
        case = random_cluster(seed)
        name = random.Random(seed).choice([*NAMES, "wild", "wild", "wild"])
        stepped = case.run(router(name), spans=False, steps=True)
        num_requests += len(stepped.requests)
        for steps in (True, False):
            try:
                found = case.run(router(name), steps=steps)
                assert_same(stepped, found)
                assert not steps or found.steps == stepped.steps
            except AssertionError as error:
                wrong += 1
                print(f"seed {seed}, {name}: {str(error).splitlines()[0]}", flush=True)
    took_s = time.perf_counter() - begin_s
    print(f"{num_cases:,} clusters, {num_requests:,} requests: {wrong} differ ({took_s:.0f} s)")


def speed() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--azure", type=Path, default=AZURE)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--host", action="store_true", help="with times of host and front end")
    parser.add_argument("--soak", type=int, metavar="CASES", help="whether spans equal stepping in so many clusters")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    options = parser.parse_args()
    if options.soak:
        soak(options.first, options.soak)
        return
    print("compiled" if is_compiled() else "interpreted")
    if options.million:
        million(options.azure)
        return
    lone, resolved = 0.0, resolved_for(options.azure, 1, is_timed=options.host)
    for _ in range(options.repeat):
        record = played(resolved)
        lone = max(lone, len(record.requests) / record.event_loop_cpu_s)
    print("| replicas | router | requests per CPU second | of one engine's | events |\n|---|---|---|---|---|")
    print(f"| no cluster | - | {lone:,.0f} | 1 | {len(record.segments):,} |")
    for replicas, router in CASES:
        rate, segments = cluster_rate(options.azure, replicas, router, options.repeat, options.host)
        print(f"| {replicas} | `{router}` | {rate:,.0f} | {rate / lone:.2f} | {segments:,} |", flush=True)


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


def corners() -> None:
    """Where an engine could fall off a cliff."""
    overload()
    stepping()


PLAYER = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from simbatch.sim import engine
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.workload import open_workload
class Read:
    def __init__(self, source): self.source, self.read = source, list(source.chunks())
    def __getattr__(self, name): return getattr(self.source, name)
    def chunks(self): return iter(self.read)
for line in sys.stdin:
    resolved = resolve(Scenario.from_dict(json.loads(line)), "vllm")
    without = [] if "host" in json.loads(line) else ["host", "front_end"]
    config = replace(resolved.engine, **{name: None for name in without if hasattr(resolved.engine, name)})
    cost = (resolved if hasattr(resolved, "cost_model") else resolved.profile).cost_model()
    source, begin_s = Read(open_workload(resolved.scenario.workload, seed=0, folder=Path())), time.process_time()
    engine.run(config, cost, resolved.policy, source)
    print(time.process_time() - begin_s, flush=True)
"""


def player(checkout: Path, folder: Path) -> Any:
    """A process that plays scenarios with the sources of a checkout."""
    folder.joinpath("simbatch").mkdir(parents=True)
    parts = [checkout / name for name in ("sim", "policies", "routers", "profiler", "profiles", "scenarios")]
    for path in [*(checkout / "simbatch").iterdir(), *filter(Path.is_dir, parts)]:
        (folder / "simbatch" / path.name).symlink_to(path)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen([sys.executable, "-c", PLAYER], env=environment, cwd=folder, **pipes)


def beside(repeat: int = 8) -> None:
    """Print CPU seconds, and speed as a share of the older checkout's."""
    plain = azure_scenario(AZURE, enable_prefix_caching=False).model_dump(exclude_unset=True, mode="json")
    hosted = {**plain, "engine": {**plain["engine"], "front_end": False}, "host": {"from": str(HOST)}}
    with tempfile.TemporaryDirectory() as folder:
        older = player(Path(sys.argv[1]).resolve(), Path(folder) / "older")
        newer = player(Path(__file__).parents[1], Path(folder) / "newer")
        turns = {"older": (older, plain), "this": (newer, plain), "this, host times": (newer, hosted)}
        found: dict[str, list[float]] = {name: [] for name in turns}
        for _ in range(repeat):
            for name, (process, settings) in turns.items():
                print(json.dumps(settings), file=process.stdin, flush=True)
                found[name].append(float(process.stdout.readline()))
        _ = older.communicate(), newer.communicate()
    for name, seconds in found.items():
        print(f"{name:<20} {min(seconds):>8.3f} s {min(found['older']) / min(seconds):>7.2f}")


if __name__ == "__main__":
    run_one_of(speed, corners=corners, beside=beside)
