"""What policies cost: `python -m benchmarks.policy_speed [--repeat N]`.

The trace of `engine_speed`'s first rows under every policy that ships, each in turn with `vllm`, so that a noisy
machine slows both; the figure is the ratio of their best CPU times for all requests. Those that plan every step are
measured on a twentieth of the trace. Due: half of `vllm`, unless every step is planned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.engine_speed import AZURE, azure_scenario
from simbatch.sim import engine
from simbatch.sim.plugins.named import POLICIES
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.resolve import resolve
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.workload import open_workload

DUE = 0.5
PLANNED_SHARE = 20


def cpu_s(resolved: Resolved) -> tuple[float, int, int]:
    """CPU seconds of the event loop, events and steps."""
    source = open_workload(resolved.scenario.workload, seed=0, folder=Path())
    record = engine.run(resolved.engine, resolved.cost_model(), resolved.policy, source)
    return record.event_loop_cpu_s, len(record.segments), record.num_steps


def measure(name: str, scenario: Scenario, repeat: int) -> None:
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--azure", type=Path, default=AZURE)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(f"{'policy':<16} {'of vllm':>8} {'events':>10} {'steps':>10} {'steps/CPU s':>12}")
    scenario = azure_scenario(options.azure, enable_prefix_caching=False)
    for name in POLICIES.shipped:
        measure(name, scenario, options.repeat)


if __name__ == "__main__":
    main()
