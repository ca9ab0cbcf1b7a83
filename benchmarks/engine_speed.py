"""How fast the engine is: `python -m benchmarks.engine_speed [--azure FILE] [--mooncake FILE] [--repeat N]`.

Requests per CPU second of the event loop alone (`event_loop_cpu_s` of run.json), best of N runs, and as a ratio to a
calibration loop run beside it (SimPy timeouts per CPU second), so that a noisy machine does not decide. The traces are
those of ../shared, unless named; what is not there is left out and said.

`--policies`: the first rows of the Azure trace under every policy that ships, each in turn with `vllm`, so that a noisy
machine slows both; the figure is the ratio of their best CPU times for all requests. Those that plan every step are
measured on a twentieth of the trace. Due: half of `vllm`, unless every step is planned.

`--peers PYTHON`: the first tenth of the Azure trace by what one might take instead, in one run: twenty lines of SimPy,
and sched-sim (PyPI), installed beside that Python. Both have an event a step and looser rules than vLLM's scheduler.
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import simpy

from benchmarks import parser_of
from simbatch.sim import engine, is_compiled
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.chunk import RequestChunk, RequestSource

HOST = Path(__file__).parent / "h100-host.json"
TRACES = Path(__file__).parents[2] / "shared" / "traces"
AZURE = TRACES / "azure" / "AzureLLMInferenceTrace_conv.csv"
MOONCAKE = TRACES / "mooncake" / "conversation_trace.jsonl"


@dataclass
class Repeated:
    """A source, several times over, each time later by its own length."""

    source: RequestSource
    times: int
    period_ps: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def chunks(self) -> Iterator[RequestChunk]:
        """The chunks of every round."""
        for i in range(self.times):
            for chunk in self.source.chunks():
                yield RequestChunk(
                    [arrival_ps + i * self.period_ps for arrival_ps in chunk.arrival_ps],
                    chunk.num_prompt_tokens,
                    chunk.num_output_tokens,
                )


def timeouts_per_cpu_s(count: int = 300_000) -> float:
    """The calibration loop: a SimPy process that does nothing but wait."""
    env = simpy.Environment()

    def wait() -> Iterator[simpy.Event]:
        for _ in range(count):
            yield env.timeout(1)

    env.process(wait())
    begin_s = time.process_time()
    env.run()
    return count / (time.process_time() - begin_s)


def azure_scenario(path: Path, **engine_settings: Any) -> Scenario:
    """The Azure conversation trace at 0.3 of its rate on the RTX 4090 profile with 20,000 blocks."""
    settings = {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "max_model_len": 32_768, "block_size": 16}
    return Scenario.from_dict(
        {
            "profile": "rtx4090-llama-3.1-8b-bf16",
            "engine": {**settings, "num_gpu_blocks_override": 20_000, **engine_settings},
            "workload": {"trace": {"path": str(path), "format": "azure", "rate_scale": 0.3}},
        }
    )


def mooncake_scenario(path: Path) -> Scenario:
    """The Mooncake conversation trace with its prefix hashes, 60,000 blocks."""
    settings = {"max_model_len": 131_072, "block_size": 16, "num_gpu_blocks_override": 60_000}
    return Scenario.from_dict(
        {
            "profile": "rtx4090-llama-3.1-8b-bf16",
            "engine": settings,
            "workload": {"trace": {"path": str(path), "format": "mooncake"}},
        }
    )


def sessions_scenario(num_sessions: int) -> Scenario:
    """Conversations of 10 turns on an H100, 300 tokens new and 200 answered in each, half of what it can bear."""

    def about(mean: int) -> dict[str, Any]:
        return {"distribution": "uniform", "min": mean // 2, "max": mean * 3 // 2}

    sessions = {
        "num_sessions": num_sessions,
        "arrival": {"process": "gamma", "request_rate": 2.0},
        "turns": {"distribution": "fixed", "mean": 10},
        "new_tokens": about(300),
        "output_len": about(200),
        "system_prompt_tokens": 500,
        "think_time_s": {"distribution": "exponential", "mean": 10},
    }
    return Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "workload": {"sessions": sessions}})


def device_alone(resolved: Resolved) -> Resolved:
    """Without the times of host and front end that the profile has."""
    return replace(resolved, engine=replace(resolved.engine, host=None, front_end=None))


def played(resolved: Resolved, rounds: int = 1) -> RunRecord:
    """One engine's run of the workload, so many times over."""
    source: Any = open_workload(resolved.scenario.workload, seed=0, folder=Path())
    if rounds > 1:
        source = Repeated(source, rounds, max(chunk.arrival_ps[-1] for chunk in source.chunks()))
    return engine.run(resolved.engine, resolved.cost_model(), copy.deepcopy(resolved.policy), source)


def measure(
    name: str, scenario: Scenario, policy: str, repeat: int, rounds: int = 1, *, is_timed: bool = False
) -> None:
    """Print one row."""
    best = ratio = 0.0
    resolved = resolve(scenario, policy)
    resolved = resolved if is_timed else device_alone(resolved)
    for _ in range(repeat):
        calibration = timeouts_per_cpu_s()
        record = played(resolved, rounds)
        rate = len(record.requests) / record.event_loop_cpu_s
        if rate > best:
            best, ratio = rate, rate / calibration
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:<44} {len(record.requests):>9,} {best:>12,.0f} {ratio:>10.4f} {len(record.segments):>11,}"
        f" {record.num_steps:>12,} {record.num_preemptions:>9,} {peak_mib:>8,.0f}",
        flush=True,
    )


DUE = 0.5
PLANNED_SHARE = 20


def cpu_s(resolved: Resolved) -> tuple[float, int, int]:
    """CPU seconds of the event loop, events and steps."""
    record = played(device_alone(resolved))
    return record.event_loop_cpu_s, len(record.segments), record.num_steps


def beside_vllm(name: str, scenario: Scenario, repeat: int) -> None:
    """Print one row."""
    resolved = resolve(scenario, name)
    is_planned = resolved.policy.overrides("plan")
    if is_planned:
        scenario = scenario.override({"workload.trace.limit": 19_366 // PLANNED_SHARE})
        resolved = resolve(scenario, name)
    vllm, best = [], []
    for _ in range(1 if is_planned else repeat):
        vllm.append(cpu_s(resolve(scenario, "vllm"))[0])
        seconds, events, steps = cpu_s(resolved)
        best.append(seconds)
    ratio = min(vllm) / min(best)
    note = "plans every step" if is_planned else "" if ratio >= DUE else f"below {DUE}"
    print(f"{name:<16} {ratio:>8.2f} {events:>10,} {steps:>10,} {steps / min(best):>12,.0f}  {note}", flush=True)


def policies(azure: Path, repeat: int) -> None:
    """What each policy that ships costs: requests per CPU second as a share of `vllm` beside it."""
    print(f"{'policy':<16} {'of vllm':>8} {'events':>10} {'steps':>10} {'steps/CPU s':>12}")
    scenario = azure_scenario(azure, enable_prefix_caching=False)
    for name in POLICIES.shipped:
        beside_vllm(name, scenario, repeat)


SCHED_SIM = """
import sys, time
from sched_sim.cli import Simulator, create_scheduler, get_hardware_profile, load_trace_file
hardware = get_hardware_profile("a100")
simulator = Simulator(hardware, create_scheduler("chunked", hardware, token_budget=2048, enable_prefix_caching=False))
simulator.submit_workload(load_trace_file(sys.argv[1]))
begin_s = time.process_time()
simulator.run()
print(time.process_time() - begin_s)
"""


def sketch_cpu_s(requests: list[tuple[float, int, int]], seats: int = 256, budget: int = 2048) -> float:
    """What one writes down in an afternoon: a step is an event, and all who run are looped over in it."""
    env = simpy.Environment()
    waiting: list[list[int]] = []

    def arrive() -> Iterator[simpy.Event]:
        for arrival_s, prompt, output in requests:
            yield env.timeout(arrival_s - env.now)
            waiting.append([prompt, output])

    def serve() -> Iterator[simpy.Event]:
        running: list[list[int]] = []
        while env.peek() < float("inf") or waiting or running:
            while waiting and len(running) < seats:
                running.append(waiting.pop(0))
            left = budget
            for request in running:
                tokens = min(request[0], left) if request[0] else 1
                request[0 if request[0] else 1] -= tokens
                left -= tokens
            running = [request for request in running if request[1] > 0]
            yield env.timeout(0.018 + 1e-4 * (budget - left))

    env.process(arrive())
    env.process(serve())
    begin_s = time.process_time()
    env.run()
    return time.process_time() - begin_s


def peers(azure: Path, python: Path) -> None:
    """Requests per CPU second of each."""
    scenario = azure_scenario(azure, enable_prefix_caching=False).override({"workload.trace.limit": 1936})
    resolved = device_alone(resolve(scenario, "vllm"))
    columns = next(iter(open_workload(resolved.scenario.workload, seed=0, folder=Path()).chunks()))
    arrivals = [arrival_ps / PS_PER_S for arrival_ps in columns.arrival_ps]
    requests = list(zip(arrivals, columns.num_prompt_tokens, columns.num_output_tokens, strict=True))
    names = ("timestamp", "prompt_tokens", "output_tokens")
    ours, kind = min(cpu_s(resolved)[0] for _ in range(5)), "compiled" if is_compiled() else "interpreted"
    found = {f"simbatch, {kind}": ours, "SimPy sketch": sketch_cpu_s(requests)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as trace:
        json.dump([dict(zip(names, request, strict=True)) for request in requests], trace)
        trace.flush()
        done = subprocess.run([python, "-c", SCHED_SIM, trace.name], stdout=subprocess.PIPE, text=True, check=True)
    found["sched-sim, chunked"] = float(done.stdout)
    for name, seconds in found.items():
        print(f"{name:<24} {len(requests) / seconds:>10,.0f} requests per CPU second, 1/{seconds / ours:,.0f}")


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--azure", type=Path, default=AZURE)
    parser.add_argument("--mooncake", type=Path, default=MOONCAKE)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--million", action="store_true", help="the Azure trace 52 times over as well")
    parser.add_argument("--sessions", type=int, metavar="N", help="N sessions of 10 turns, instead")
    parser.add_argument("--policies", action="store_true", help="what policies cost, instead")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="beside others, instead: one that has sched-sim")
    options = parser.parse_args()
    if options.peers:
        peers(options.azure, options.peers)
        return
    if options.policies:
        policies(options.azure, options.repeat)
        return
    print(f"calibration: {timeouts_per_cpu_s():,.0f} SimPy timeouts per CPU second\n")
    head = ("scenario", "requests", "req/CPU s", "/timeouts", "events", "steps", "preempted", "peak MiB")
    print("{:<44} {:>9} {:>12} {:>10} {:>11} {:>12} {:>9} {:>8}".format(*head))
    if options.sessions:
        measure("sessions of 10 turns", sessions_scenario(options.sessions), "vllm", 1)
        measure("sessions of 10 turns, host, front end", sessions_scenario(options.sessions), "vllm", 1, is_timed=True)
        return
    if options.azure.is_file():
        plain = azure_scenario(options.azure, enable_prefix_caching=False)
        for policy in ("vllm", "fixed", "adaptive", "priority"):
            measure(f"azure, {policy}", plain, policy, options.repeat)
        synchronous = azure_scenario(options.azure, enable_prefix_caching=False, async_scheduling=False)
        measure("azure, vllm, synchronous", synchronous, "vllm", options.repeat)
        measure("azure, vllm, prefix caching", azure_scenario(options.azure), "vllm", options.repeat)
        timed = plain.override({"host.from": str(HOST)})
        hosted = timed.override({"engine.front_end": False})
        measure("azure, vllm, host times", hosted, "vllm", options.repeat, is_timed=True)
        measure("azure, vllm, host times and front end", timed, "vllm", options.repeat, is_timed=True)
        if options.million:
            measure("azure x 52, vllm", plain, "vllm", 1, rounds=52)
    else:
        print(f"{options.azure} is not here: the Azure rows are left out")
    if options.mooncake.is_file():
        measure("mooncake, vllm, prefix caching", mooncake_scenario(options.mooncake), "vllm", 1)
    else:
        print(f"{options.mooncake} is not here: the Mooncake row is left out")


if __name__ == "__main__":
    main()
