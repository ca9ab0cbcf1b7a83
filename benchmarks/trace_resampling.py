"""How far resamplings of one trace are apart, against traces of the same kind; and how often their interval is right.

    .venv/bin/python -m benchmarks.trace_resampling [--traces 200] [--blocks 5,10,20,50,200]

Many traces of each kind are drawn: 8,000 requests with exponential service through one server, at a load of 0.7, all
over the same time. Each is resampled 8 times. `spread` is the root mean square of the resamplings' standard deviations
over the standard deviation of the traces themselves: 1 is right. `holds` is how often t(7) times the deviation round
the resamplings' mean holds the mean of all traces (95 % is right); `shrunk` the same for the interval of the mean,
divided by sqrt(8), which would be right if resamplings were independent traces.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.statistics import mean_interval
from simbatch.sim.workload.traces.resample import draw_blocks

Floats = NDArray[np.float64]
NUM_REQUESTS, LOAD, RESAMPLINGS, SPAN_S = 8_000, 0.7, 8, 8_000.0
FIGURES: dict[str, Callable[[Floats], float]] = {
    "mean": lambda waits: float(waits.mean()),
    "P99": lambda waits: float(np.quantile(waits, 0.99)),
}


def poisson(rng: np.random.Generator) -> Floats:
    return rng.exponential(1.0, NUM_REQUESTS)


def bursty(rng: np.random.Generator) -> Floats:
    return rng.gamma(0.25, 4.0, NUM_REQUESTS)


def on_off(rng: np.random.Generator) -> Floats:
    """2.5 times the rate for 20 s, half of it for 60 s."""
    mass = np.cumsum(rng.exponential(1.0, NUM_REQUESTS))
    cycle, rest = np.divmod(mass, 80.0)
    within = np.where(rest <= 50, rest / 2.5, 20 + (rest - 50) / 0.5)
    return np.diff(cycle * 80 + within, prepend=0.0)


def waits_of(times_s: Floats, service_s: Floats) -> Floats:
    """Lindley's recursion: the highest of the sums so far, less the lowest before."""
    steps = np.append(0.0, service_s[:-1] - np.diff(times_s))
    sums = np.cumsum(steps)
    return sums - np.minimum.accumulate(sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--traces", type=int, default=200)
    parser.add_argument("--blocks", default="5,10,20,50,200")
    options = parser.parse_args()
    for kind in (poisson, bursty, on_off):
        rng = np.random.default_rng(1)
        traces = []
        for _ in range(options.traces):
            gaps = kind(rng)
            times_s = np.cumsum(gaps) * (SPAN_S / gaps.sum())
            traces.append((times_s, rng.exponential(LOAD, NUM_REQUESTS)))
        own = {name: np.array([figure(waits_of(*trace)) for trace in traces]) for name, figure in FIGURES.items()}
        for blocks in map(int, options.blocks.split(",")):
            found = [resampled(*trace, blocks, seed) for seed, trace in enumerate(traces)]
            print(kind.__name__, blocks, *(judged(own[name], [each[name] for each in found], name) for name in FIGURES))


def resampled(times_s: Floats, service_s: Floats, blocks: int, seed: int) -> dict[str, list[float]]:
    """Each figure of each resampling."""
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    times = np.rint(times_s * 1e9).astype(np.int64)
    for i in range(RESAMPLINGS):
        drawn = draw_blocks(times, blocks, np.random.default_rng([seed, i]))
        waits = waits_of(drawn.arrival_ps / 1e9, service_s[drawn.row])
        for name, figure in FIGURES.items():
            found[name].append(figure(waits))
    return found


def judged(own: Floats, found: list[list[float]], name: str) -> str:
    spread = np.sqrt(np.mean([np.var(each, ddof=1) for each in found])) / own.std(ddof=1)
    truth = float(own.mean())
    holds, shrunk = (
        np.mean([mean_interval(each, is_resampled=is_resampled).holds(truth) for each in found])
        for is_resampled in (True, False)
    )
    bias = np.mean(found) / truth - 1
    return f"| {name}: spread {spread:.2f}, holds {holds:.1%}, shrunk {shrunk:.1%}, bias {bias:+.1%}"


if __name__ == "__main__":
    main()
