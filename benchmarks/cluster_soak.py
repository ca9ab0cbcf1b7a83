"""Spans equal stepping in random clusters: `python -m benchmarks.cluster_soak [--cases N] [--first SEED]`.

Each case is a cluster of one to six engines, alike or not, in open and closed loops, with and without times on host and
front end, replicas that fail and drain, behind a router that ships or one that looks at everything there is to see.
"""

from __future__ import annotations

import argparse
import random
import time

from simbatch.sim.plugins.cases import random_cluster
from tests.test_cluster import NAMES, assert_same, router


def main() -> None:
    """Count the cases that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    begin_s, wrong, num_requests = time.perf_counter(), 0, 0
    for seed in range(options.first, options.first + options.cases):
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
    print(f"{options.cases:,} clusters, {num_requests:,} requests: {wrong} differ ({took_s:.0f} s)")


if __name__ == "__main__":
    main()
