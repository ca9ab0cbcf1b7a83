"""Do bands hold what they should? `python -m benchmarks.bands_coverage random`, or another of the words below.

random: 200 random scenarios (profile, traffic, load, settings, replicas). The truth of each is one more draw of its
profile from the stated uncertainty; how often its figures lie within the band of the 19 others should be nine in ten.
recorded: the real runs of a server on an H100 (../shared/gpu/h100-vllm-0.32, no part of the project), replayed by the
kernel tables, which saw nothing of them: how many of the real figures lie within the band, and how wide the bands are.
fitted: the same by a fit on p8 alone, which saw one of them. Draw i runs under seed i: a real run has a chance of its
own, in its host's noise. left_out: c1, p8, p16 and p22 each by a fit on the others, and c16 by one on all. What is not
held stands in brackets: the ends of its band over the real one. docs/accuracy.md has all of them.

`... resampling`: how far resamplings of one trace are apart, against traces of the same kind; how often their interval
is right.

    .venv/bin/python -m benchmarks.bands_coverage resampling [--traces 200] [--blocks 5,10,20,50,200]

Many traces of each kind are drawn: 8,000 requests with exponential service through one server, at a load of 0.7, all
over the same time. Each is resampled 8 times. `spread` is the root mean square of the resamplings' standard deviations
over the standard deviation of the traces themselves: 1 is right. `holds` is how often t(7) times the deviation round
the resamplings' mean holds the mean of all traces (95 % is right); `shrunk` the same for the interval of the mean,
divided by sqrt(8), which would be right if resamplings were independent traces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import parser_of, run_one_of
from benchmarks.first_look import (
    FIGURES,
    MEASURED,
    PROFILE,
    REPLAYED,
    SERVED,
    Run,
    figures,
    parser_of_recorded,
    real_figures,
    recorded_run,
    require,
    simulated_run,
    unpacked,
)
from benchmarks.stream_fit import BandOverReal, band_line
from simbatch import Scenario
from simbatch.profiler.fit.streams import fit_seen
from simbatch.profiler.fit.streams.runs import Seen, read_results
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.uncertainty import deviations, factors, scaled
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.scenario import resolve
from simbatch.sim.search.bands import NUM_DRAWS, Bands, drawn_settings
from simbatch.sim.search.run import Runner
from simbatch.sim.statistics import mean_interval
from simbatch.sim.workload.traces.resample import draw_blocks

PROFILES = ("h100-llama-3.1-8b-bf16", "l40s-llama-3.1-8b-bf16", "rtx4090-llama-3.1-8b-awq", "a100-llama-3.1-8b-bf16")
KEYS = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "output_throughput")
CAPACITY = {"h100": 22.0, "l40s": 7.0, "rtx4090": 7.0, "a100": 12.0}  # roughly, so that loads are from light to heavy


def random_scenario(number: int) -> Scenario:
    """The number decides all of it, the seed too."""
    rng = np.random.default_rng(number)
    profile = str(rng.choice(PROFILES))
    prompt, output = int(rng.integers(100, 1500)), int(rng.integers(20, 200))
    rate = CAPACITY[profile.partition("-")[0]] * rng.uniform(0.2, 0.95) * 1000 / (prompt + 5 * output)
    replicas = int(rng.choice([1, 1, 2, 3]))
    content: dict[str, Any] = {
        "profile": profile,
        "engine": {"max_num_seqs": int(rng.choice([32, 64, 256])), "max_num_batched_tokens": 2048},
        "workload": {
            "num_prompts": 150,
            "request_rate": rate * replicas,
            "burstiness": float(rng.choice([0.3, 1.0])),
            "prompt_len": {"distribution": "lognormal", "mean": prompt, "cv": 0.8, "max": 8 * prompt},
            "output_len": {"distribution": "lognormal", "mean": output, "cv": 0.8, "max": 8 * output},
        },
        "seed": number,
    }
    if replicas > 1:
        content["cluster"] = {"replicas": replicas, "router": {"name": "least_requests"}}
    return Scenario.from_dict(content)


def random_coverage(number: int, jobs: int) -> None:
    """Print how often each figure is held."""
    held: dict[str, list[bool]] = defaultdict(list)
    for i in range(number):
        scenario = random_scenario(i)
        resolved, runner = resolve(scenario), Runner(scenario, jobs=jobs)
        draws = [(drawn_settings(resolved, draw), scenario.seed) for draw in range(NUM_DRAWS + 1)]
        *others, truth = runner(draws)
        bands = Bands(others, {})
        for key in KEYS:
            band, value = bands.of(REGISTRY[key]), REGISTRY[key].of(truth)
            assert band is not None
            assert value is not None
            held[key].append(band.low <= value <= band.high)
    for key, each in held.items():
        print(f"| {REGISTRY[key].label} | {100 * np.mean(each):.1f} % |")
    everything = [value for each in held.values() for value in each]
    print(f"| all | {100 * np.mean(everything):.1f} % of {len(everything):,} |")


def recorded_coverage(folder: Path, profile: Profile, runs: Sequence[Run] = (*SERVED, *REPLAYED)) -> None:
    """Print of each run how many real figures are held, which not, and how wide the bands are."""
    total: list[bool] = []
    for run in runs:
        found = _bands(run, folder, profile)
        total += [band.is_held for band in found]
        print(band_line(run.name, found), flush=True)
    if len(runs) > 1:
        print(f"| all | {sum(total)} of {len(total)}: {100 * np.mean(total):.0f} % | |")


def fitted_coverage(folder: Path) -> None:
    """How many figures of our H100's runs are inside the bands of a profile that is fitted on p8 alone."""
    nearest = load_profile(PROFILE, folder=Path())
    found = fit_seen(_seen(folder, ["p8"]), nearest=nearest, max_num_seqs=256, max_num_batched_tokens=8192)
    recorded_coverage(folder, found.profile)


def left_out_coverage(folder: Path) -> None:
    """How many of each run are inside the bands of a fit on the others that had a say, without a nearest profile."""
    for run in SERVED:
        others = [other.name for other in SERVED if other.seen == "measured" and other is not run]
        recorded_coverage(folder, fit_seen(_seen(folder, others), is_judged=False).profile, [run])


def _seen(folder: Path, names: Sequence[str]) -> list[Seen]:
    """Results of our H100."""
    with TemporaryDirectory() as temporary:
        return read_results(unpacked(names, folder, Path(temporary)))


def _bands(run: Run, folder: Path, base: Profile) -> list[BandOverReal]:
    """Of each figure of a run."""
    recorded = recorded_run(run, folder)
    real = real_figures(recorded)
    with TemporaryDirectory() as temporary:
        drawn = [
            figures(
                *simulated_run(run, recorded, Path(temporary), draw, scaled(base, factors(base, deviations(0, draw))))
            )
            for draw in range(NUM_DRAWS)
        ]
    names = (name for name in (*FIGURES, "tokens/s") if "ITL" not in name)
    return [BandOverReal.of(name, [each[name] for each in drawn], real[name]) for name in names]


def bands() -> None:
    """Count what was asked for on the command line."""
    parser = parser_of_recorded(__doc__)
    parser.add_argument("what", choices=["random", "recorded", "fitted", "left_out"])
    parser.add_argument("--number", type=int, default=200, help="random scenarios")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--profile", default=PROFILE, help=f"for the recorded runs; {MEASURED} is the fitted one")
    options = parser.parse_args()
    if options.what == "random":
        random_coverage(options.number, options.jobs)
    elif options.what == "fitted":
        fitted_coverage(require(options.recorded))
    elif options.what == "left_out":
        left_out_coverage(require(options.recorded))
    else:
        recorded_coverage(require(options.recorded), load_profile(options.profile, folder=Path()))


Floats = NDArray[np.float64]
NUM_REQUESTS, LOAD, RESAMPLINGS, SPAN_S = 8_000, 0.7, 8, 8_000.0
OF_WAITS: dict[str, Callable[[Floats], float]] = {
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


def resampled_traces() -> None:
    parser = parser_of(__doc__)
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
        own = {name: np.array([figure(waits_of(*trace)) for trace in traces]) for name, figure in OF_WAITS.items()}
        for blocks in map(int, options.blocks.split(",")):
            found = [resampled(*trace, blocks, seed) for seed, trace in enumerate(traces)]
            print(
                kind.__name__, blocks, *(judged(own[name], [each[name] for each in found], name) for name in OF_WAITS)
            )


def resampled(times_s: Floats, service_s: Floats, blocks: int, seed: int) -> dict[str, list[float]]:
    """Each figure of each resampling."""
    found: dict[str, list[float]] = {name: [] for name in OF_WAITS}
    times = np.rint(times_s * 1e9).astype(np.int64)
    for i in range(RESAMPLINGS):
        drawn = draw_blocks(times, blocks, np.random.default_rng([seed, i]))
        waits = waits_of(drawn.arrival_ps / 1e9, service_s[drawn.row])
        for name, figure in OF_WAITS.items():
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
    run_one_of(bands, resampling=resampled_traces)
