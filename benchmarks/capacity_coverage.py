"""`simbatch tune --capacity` on a queue whose capacity is known: whether its bound holds, and where seeds lie.

    .venv/bin/python -m benchmarks.capacity_coverage [--repetitions 50] [--busy 0.7]

M/D/1: Poisson arrivals, one seat, a request is one step of 10 ms. The limit is the mean latency that Pollaczek and
Khinchine give for the server busy to that share, so the capacity of the long run is that share of 100 requests per
second. Every repetition has 8 seeds of its own, 2,500 requests each; at its bound 100 other seeds are simulated.
"""

from __future__ import annotations

import argparse
from statistics import fmean

from simbatch.sim.scenario import Scenario
from simbatch.sim.search import simulate
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import find_capacity
from simbatch.sim.tuning.goal import Limit

SERVICE_S, REPLICATIONS, NUM_PROMPTS, NUM_OTHERS = 0.01, 8, 2500, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
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
    main()
