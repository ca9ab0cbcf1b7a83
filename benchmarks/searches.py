"""`simbatch tune` against the whole grid: it should find the best with at most a fifth of the runs.

    .venv/bin/python -m benchmarks.searches [--seeds 10] [--jobs -1] [--only steady]

Three scenarios with small workloads and the space that `tune` searches by default. Every combination is simulated once;
then the search runs under several seeds of its own on the same requests, with as many trials as `tune` takes by
default, but never more than a fifth of the combinations. Found means the same objective as the grid's best within the
limit (ties are the same). `after` is the number of runs, the scenario as it stands included, until the best was first
seen; `worst` the lowest result as a share of the best. Exit code 1 when a search misses it. Then come small spaces,
seats and tokens alone, of which a fifth is few; they are shown and not judged.

Parallel efficiency of a 1,000-cell sweep: time on one process / (n x time on n), everything included.

    .venv/bin/python -m benchmarks.searches sweep [--processes 2] [--cells 1000] [--requests 1000]

The cells are those of scenarios/bursty.yaml with 10 numbers of seats under 100 seeds. Each time is that of the whole
command as a user starts it: reading, checking, starting workers, simulating, writing every cell and the summary (which
must be the same to the byte). On one process there is no worker: the cells run in the command itself.

An SRE's question from an empty folder, timed: `python -m benchmarks.searches plan`.

How many H100, H200 or L40S for Qwen3-32B, questions about documents, 40 requests a second at peak, P99 TTFT 2 s and
P99 TPOT 60 ms? One command, bands included; exit code 1 when it takes longer than five minutes. docs/plan.md has the
time on a machine of two cores that did nothing else.

`simbatch tune --capacity` on a queue whose capacity is known: whether its bound holds, and where seeds lie.

    .venv/bin/python -m benchmarks.searches capacity [--repetitions 50] [--busy 0.7]

M/D/1: Poisson arrivals, one seat, a request is one step of 10 ms. The limit is the mean latency that Pollaczek and
Khinchine give for the server busy to that share, so the capacity of the long run is that share of 100 requests per
second. Every repetition has 8 seeds of its own, 2,500 requests each; at its bound 100 other seeds are simulated.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks import parser_of, run_one_of
from simbatch.sim.results.runs import Means, Runs, Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search import simulate
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning import Tuned, default_trials, tune
from simbatch.sim.tuning.capacity import find_capacity
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


def tune_against_grid() -> None:
    parser = parser_of(__doc__)
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
    grid = [means_of(summary) for summary in runner([(each, scenario.seed) for each in settings])]
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


def means_of(summary: Summary) -> Means:
    return Runs([summary]).means


def hits(tuned: Tuned, best: tuple[float, ...]) -> bool:
    """Whether the search tried it; what it recommends may be an equal within 1 % with a better goodput or TTFT."""
    return best_tried(tuned) == best


def best_tried(tuned: Tuned) -> tuple[float, ...]:
    return min(tuned.goal.rank(trial.means) for trial in tuned.trials)


SCENARIO = Path(__file__).parents[1] / "scenarios" / "bursty.yaml"
NUM_SEATS = 10
SETTINGS = f"engine.max_num_seqs={','.join(str(12 + 4 * i) for i in range(NUM_SEATS))}"


def seconds(folder: Path, jobs: int, replications: int, num_prompts: int) -> float:
    """Of one whole command."""
    command = [sys.executable, "-m", "simbatch", "sweep", str(SCENARIO), "--over", SETTINGS]
    command += ["--replications", str(replications), "--set", f"workload.num_prompts={num_prompts}"]
    begin_s = time.perf_counter()
    subprocess.run([*command, "--jobs", str(jobs), "-o", str(folder), "--quiet"], check=True)
    return time.perf_counter() - begin_s


def sweep_efficiency() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    replications = given.cells // NUM_SEATS
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        one_s = seconds(one, 1, replications, given.requests)
        many_s = seconds(many, given.processes, replications, given.requests)
        files = [path.relative_to(one) for path in one.rglob("*") if path.suffix in (".json", ".csv", ".parquet")]
        assert len(files) == NUM_SEATS * replications + 3
        assert all((one / file).read_bytes() == (many / file).read_bytes() for file in files)
    efficiency = one_s / (given.processes * many_s)
    print(
        f"{NUM_SEATS * replications:,} cells of {given.requests:,} requests: {one_s:.1f} s on one process, "
        f"{many_s:.1f} s on {given.processes}, parallel efficiency {efficiency:.2f}"
    )


MOST_S = 300.0
ASKED = "--model Qwen3-32B --preset rag --rate 40 --gpus h100,h200,l40s"
QUESTION = f"plan {ASKED} --limit p99_ttft_ms=2000 --limit p99_tpot_ms=60"


def sre_question() -> None:
    """Ask, and print the answer, the simulations and the seconds."""
    with TemporaryDirectory() as empty:
        begin_s = time.monotonic()
        command = [sys.executable, "-m", "simbatch", *QUESTION.split(), "--quiet", "-o", empty]
        subprocess.run(command, cwd=empty, check=True)
        seconds = time.monotonic() - begin_s
        answer, run = (json.loads((Path(empty) / name).read_text()) for name in ("plan.json", "run.json"))
    print(answer["answer"])
    print(f"{run['simulations']} simulations, {seconds:.0f} s")
    sys.exit(seconds > MOST_S)


SERVICE_S, REPLICATIONS, NUM_PROMPTS, NUM_OTHERS = 0.01, 8, 2500, 100


def capacity_coverage() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--busy", type=float, default=0.7, help="share of the service rate at the capacity")
    options = parser.parse_args()
    truth = options.busy / SERVICE_S
    limit_ms = 1000 * SERVICE_S * (1 + options.busy / (2 * (1 - options.busy)))
    limit = Limit.parse(f"mean_e2el_ms={limit_ms}")
    medians, bounds, kept = [], [], []
    for i in range(options.repetitions):
        scenario = queue(seed=1000 * i)
        found = find_capacity(scenario, (limit,), Runner(scenario, jobs=1), REPLICATIONS)
        assert found.bound is not None
        assert found.median is not None
        medians.append(found.median / truth)
        bounds.append(found.bound.rate / truth)
        at_it = scenario.override(found.settings(found.bound.rate))
        runs = [simulate(at_it.override({"seed": 1000 * i + 100 + j})).summary for j in range(NUM_OTHERS)]
        kept.append(fmean(run["mean_e2el_ms"] <= limit_ms for run in runs))
    print(
        f"capacity {truth:g}/s: median / truth {fmean(medians):.4f} on average, bound / truth {fmean(bounds):.4f};",
        end=" ",
    )
    print(f"of other seeds {fmean(kept):.1%} keep the limits at the bound, {min(kept):.0%} at the worst")


def queue(seed: int) -> Scenario:
    return Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "max_model_len": 64, "step_time": {"base_s": SERVICE_S}},
            "engine": {"max_num_seqs": 1},
            "workload": {
                "num_prompts": NUM_PROMPTS,
                "arrival": {"process": "poisson", "request_rate": 50},
                "prompt_len": {"distribution": "fixed", "mean": 10},
                "output_len": {"distribution": "fixed", "mean": 1},
            },
            "seed": seed,
        }
    )


if __name__ == "__main__":
    run_one_of(tune_against_grid, sweep=sweep_efficiency, plan=sre_question, capacity=capacity_coverage)
