"""Do bands hold what they should? `python -m benchmarks.bands_coverage random`, or another of the words below.

random: 200 random scenarios (profile, traffic, load, settings, replicas). The truth of each is one more draw of its
profile from the stated uncertainty; how often its figures lie within the band of the 19 others should be nine in ten.
recorded: the real runs of a server on an H100 (../shared/gpu/h100-vllm-0.32, no part of the project), replayed by the
kernel tables, which saw nothing of them: how many of the real figures lie within the band, and how wide the bands are.
fitted: the same by a fit on p8 alone, which saw one of them. Draw i runs under seed i: a real run has a chance of its
own, in its host's noise. left_out: c1, p8, p16 and p22 each by a fit on the others, and c16 by one on all.
two: other people's servers (../shared/streams) by fits on two of their results, and every other run's means. What
is not held stands in brackets: the ends of its band over the real one. docs/accuracy.md has all of them.
"""

from __future__ import annotations

import argparse
import gzip
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.first_look import (
    FIGURES,
    MEASURED,
    PROFILE,
    RECORDED,
    REPLAYED,
    SERVED,
    Run,
    figures,
    real_figures,
    recorded_run,
    require,
    simulated_run,
)
from benchmarks.stream_fit import SERVERS, SHARED, chosen, write_runs
from simbatch import Scenario
from simbatch.profiler.fit.streams.from_streams import fit_seen
from simbatch.profiler.fit.streams.runs import METRICS, Seen, read_results, real_means, simulated_means, streams_of
from simbatch.profiler.records.recorded import read_recorded
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.uncertainty import deviations, factors, scaled
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.scenario import resolve
from simbatch.sim.search.bands import NUM_DRAWS, Bands, drawn_settings
from simbatch.sim.search.run import Runner
from simbatch.sim.streams.steps import Streams

PROFILES = ("h100-llama-3.1-8b-bf16", "l40s-llama-3.1-8b-bf16", "rtx4090-llama-3.1-8b-awq", "a100-llama-3.1-8b-bf16")
KEYS = ("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "p99_tpot_ms", "mean_e2el_ms", "output_throughput")
FIRST = 1000  # requests of other people's runs: their whole, so that loops stay full to the end
NO_CACHE = {"enable_prefix_caching": False}
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


class BandOverReal(NamedTuple):
    """A figure's band as shares of the real one."""

    name: str
    low: float
    high: float

    @property
    def is_held(self) -> bool:
        """Whether the real one lies within."""
        return self.low <= 1 <= self.high

    @classmethod
    def of(cls, name: str, drawn: Sequence[float], real: float) -> BandOverReal:
        """From what the draws say."""
        return cls(name, min(drawn) / real, max(drawn) / real)


def recorded_coverage(folder: Path, profile: Profile, runs: Sequence[Run] = (*SERVED, *REPLAYED)) -> None:
    """Print of each run how many real figures are held, which not, and how wide the bands are."""
    total: list[bool] = []
    for run in runs:
        found = _bands(run, folder, profile)
        total += [band.is_held for band in found]
        print(_line(run.name, found), flush=True)
    if len(runs) > 1:
        print(f"| all | {sum(total)} of {len(total)}: {100 * np.mean(total):.0f} % | |")


def _line(name: str, found: Sequence[BandOverReal]) -> str:
    missed = ", ".join(f"{band.name} ({band.low:.2f} to {band.high:.2f})" for band in found if not band.is_held)
    width = geometric_mean(band.high / band.low for band in found)
    return f"| {name} | {sum(band.is_held for band in found)} of {len(found)} | {missed or '-'} | x {width:.2f} |"


def fitted_coverage(folder: Path) -> None:
    """The same by a profile that is fitted on p8 alone."""
    nearest = load_profile(PROFILE, folder=Path())
    found = fit_seen(_seen(folder, ["p8"]), nearest=nearest, max_num_seqs=256, max_num_batched_tokens=8192)
    recorded_coverage(folder, found.profile)


def left_out_coverage(folder: Path) -> None:
    """The same of each run by a fit on those of the others that had a say, without a nearest profile."""
    for run in SERVED:
        others = [other.name for other in SERVED if other.seen == "measured" and other is not run]
        recorded_coverage(folder, fit_seen(_seen(folder, others), is_judged=False).profile, [run])


def two_coverage(streams: Path, only: str) -> None:
    """Of other people's servers, how often real means are held by a fit on two other runs, and how wide bands are."""
    for name, server in SERVERS.items():
        if only not in name:
            continue
        with TemporaryDirectory() as temporary:
            paths = write_runs(streams / f"{server.file}.json.gz", Path(temporary))
            fitted = chosen(paths, server.fitted)
            profile = fit_seen(read_results(fitted), is_judged=False).profile
            others = [path for path in chosen(paths, server.others) if path not in fitted]
            bands = [_means_bands(profile, streams_of(read_recorded(path))) for path in others]
        for path, found in zip(others, bands, strict=True):
            print(_line(path.stem[-48:], found), flush=True)
        shares = [100 * np.mean([run[i].is_held for run in bands]) for i in range(len(METRICS))]
        width = np.median([run[-1].high / run[-1].low for run in bands])
        cells = " | ".join(f"{share:.0f} %" for share in (*shares, np.mean(shares)))
        print(f"| {name} | {len(others)} | {cells} | {width:.1f} |", flush=True)


def _means_bands(profile: Profile, streams: Streams) -> list[BandOverReal]:
    """Of TTFT, TPOT and E2EL of its first requests."""
    streams = streams.take(np.arange(len(streams)) < FIRST)
    drawn = [
        simulated_means(scaled(profile, factors(profile, deviations(0, draw))), NO_CACHE, streams, draw)
        for draw in range(NUM_DRAWS)
    ]
    real = real_means(streams)
    return [BandOverReal.of(name, [getattr(each, name) for each in drawn], getattr(real, name)) for name in METRICS]


def _seen(folder: Path, names: Sequence[str]) -> list[Seen]:
    """Results of our H100."""
    with TemporaryDirectory() as temporary:
        paths = [Path(temporary) / f"{name}.json" for name in names]
        for path in paths:
            path.write_bytes(gzip.decompress((folder / "serve" / f"{path.name}.gz").read_bytes()))
        return read_results(paths)


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


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["random", "recorded", "fitted", "left_out", "two"])
    parser.add_argument("--number", type=int, default=200, help="random scenarios")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    parser.add_argument("--profile", default=PROFILE, help=f"for the recorded runs; {MEASURED} is the fitted one")
    parser.add_argument("--only", default="", help="with two: servers whose names have this")
    options = parser.parse_args()
    if options.what == "random":
        random_coverage(options.number, options.jobs)
    elif options.what == "fitted":
        fitted_coverage(require(options.recorded))
    elif options.what == "left_out":
        left_out_coverage(require(options.recorded))
    elif options.what == "two":
        two_coverage(SHARED / "streams", options.only)
    else:
        recorded_coverage(require(options.recorded), load_profile(options.profile, folder=Path()))


if __name__ == "__main__":
    main()
