"""`simbatch tune` against the whole grid: it should find the best with at most a fifth of the runs.

    .venv/bin/python -m benchmarks.tune_against_grid [--seeds 10] [--jobs -1] [--only steady]

Three scenarios with small workloads and the space that `tune` searches by default. Every combination is simulated once;
then the search runs under several seeds of its own on the same requests, with as many trials as `tune` takes by
default, but never more than a fifth of the combinations. Found means the same objective as the grid's best within the
limit (ties are the same). `after` is the number of runs, the scenario as it stands included, until the best was first
seen; `worst` the lowest result as a share of the best. Exit code 1 when a search misses it. Then come small spaces,
seats and tokens alone, of which a fifth is few; they are shown and not judged.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from simbatch.sim.results.runs import Means, Runs, Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning import Tuned, default_trials, tune
from simbatch.sim.tuning.goal import Goal, Limit, metric_of
from simbatch.sim.tuning.space import SEQS, TOKENS, Space, default_axes

ROOT = Path(__file__).parents[1]
LARGEST_SHARE = 1 / 5


class Case(NamedTuple):
    """A scenario, what changes it, and the goal."""

    name: str
    scenario: str
    changes: dict[str, Any]
    maximize: str
    limits: tuple[str, ...] = ()
    is_small: bool = False


OFFLINE = {"workload.num_prompts": 300, "engine.batching": "continuous", "policy": {"name": "vllm"}}
STEADY = {"workload.num_prompts": 300, "workload.request_rate": 8}
CASES = (
    Case("goodput in bursts", "bursty", {"workload.num_prompts": 400}, "goodput"),
    Case(
        "throughput under a latency limit",
        "steady",
        STEADY,
        "throughput",
        ("p99_tpot_ms=35",),
    ),
    Case(
        "throughput in a small KV cache",
        "memory_pressure",
        {"workload.num_prompts": 200},
        "throughput",
        ("p99_ttft_ms=20000",),
    ),
    Case("seats and tokens, loose limit", "steady", STEADY, "throughput", ("p99_tpot_ms=50",), is_small=True),
    Case("seats and tokens, tight limit", "steady", STEADY, "throughput", ("p99_tpot_ms=35",), is_small=True),
    Case("seats and tokens, offline", "static_batches", OFFLINE, "throughput", ("p99_tpot_ms=40",), is_small=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="searches for each scenario")
    parser.add_argument("--jobs", type=int, default=-1, help="processes for the grid")
    parser.add_argument("--only", default="", metavar="SCENARIO", help="that one alone")
    options = parser.parse_args()
    cases = [case for case in CASES if case.scenario.startswith(options.only)]
    is_found = [show(case, options.seeds, options.jobs) or case.is_small for case in cases]
    sys.exit(not all(is_found))


def show(case: Case, num_seeds: int, jobs: int) -> bool:
    goal = Goal((metric_of(case.maximize, "--maximize"),), tuple(map(Limit.parse, case.limits)))
    scenario = Scenario.load(ROOT / "scenarios" / f"{case.scenario}.yaml").override(case.changes)
    axes = default_axes(resolve(scenario), goal.limits)
    space = Space(scenario, [axis for axis in axes if not case.is_small or axis.key in (SEQS, TOKENS)])
    trials = min(default_trials(space), len(space.points) // 5)
    begin = time.perf_counter()
    runner = Runner(scenario, jobs=jobs)
    settings = [space.settings(point) for point in space.points if space.is_allowed(point)]
    grid = [figures(summary) for summary in runner([(each, scenario.seed) for each in settings])]
    ranks = [goal.rank(means) for means in grid]
    best, feasible = min(ranks), sum(map(goal.is_met, grid))
    print(f"{case.name} ({case.scenario}.yaml, {goal.metrics[0].key}, {' '.join(map(str, goal.limits)) or 'no limit'})")
    print(f"  grid {len(grid)}, {feasible} within the limits; best {-best[1]:,.4g}, reached by {ranks.count(best)}")
    results = [tune(space, goal, runner, trials=trials, search_seed=seed) for seed in range(num_seeds)]
    after = [
        [goal.rank(trial.means) for trial in tuned.trials].index(best) + 1 for tuned in results if hits(tuned, best)
    ]
    share = max(len(tuned.trials) for tuned in results) / len(grid)
    worst = min(best_tried(tuned)[1] / best[1] if tuned.is_feasible else 0.0 for tuned in results)
    is_found = share <= LARGEST_SHARE and len(after) == num_seeds
    print(f"  tune: {share:.1%} of the grid's runs; found by {len(after)} of {num_seeds} searches", end="")
    print(f", after {min(after)} to {max(after)} runs" if after else "", end="")
    print(f"; worst {worst:.2%} of the best; {'ok' if is_found else 'MISSED'}")
    print(f"  ({time.perf_counter() - begin:.0f} s)", flush=True)
    return is_found


def figures(summary: Summary) -> Means:
    return Runs([summary]).means


def hits(tuned: Tuned, best: tuple[float, ...]) -> bool:
    """Whether the search tried it; what it recommends may be an equal within 1 % with a better goodput or TTFT."""
    return best_tried(tuned) == best


def best_tried(tuned: Tuned) -> tuple[float, ...]:
    return min(tuned.goal.rank(trial.means) for trial in tuned.trials)


if __name__ == "__main__":
    main()
