"""Profiles from streams of real servers, and how they predict other runs: `python -m benchmarks.stream_fit`.

The streams lie in ../shared/streams (--streams; other people's, see the README there) and ../shared/gpu/h100-vllm-0.32
(--recorded), and are no part of the project; exit code 2 where they are not there. Each file's runs are written as the
client's JSON into a temporary folder and fitted by `simbatch fit`'s own code. Every run that was not fitted on is then
simulated: in a closed loop as large, with its lengths. The H100's runs that had a say are fitted together and with each
left out, and simulated as they were sent, c16 with its prefix hits. The tables stand in docs/accuracy.md.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks import parser_of
from benchmarks.first_look import SERVED, Run, recorded_run, unpacked
from benchmarks.first_look import errors as look_errors
from simbatch.profiler.fit.streams import StreamProfile, fit_seen, fit_streams
from simbatch.profiler.fit.streams.runs import METRICS, Means, read_results, real_means, simulated_means, streams_of
from simbatch.profiler.records.recorded import Recorded, read_recorded
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.uncertainty import deviations, factors, scaled
from simbatch.sim.errors import UserError
from simbatch.sim.search.bands import NUM_DRAWS
from simbatch.sim.streams import Streams

SHARED = Path(__file__).parents[2] / "shared"
UNIT_S = 1e-5  # of the files' times


class Server(NamedTuple):
    """One file of streams: the runs that are fitted (their names match), and those that are predicted."""

    file: str
    fitted: str
    others: str = "."
    gpu: str = ""


SERVERS = {
    "Llama-3.1-70B, 8 x H100": Server("scicom-h100-Llama-3.1-70B-tp8", r"in1024_.*_c(10|100)_"),
    "the same, loops of 10 and 50": Server("scicom-h100-Llama-3.1-70B-tp8", r"in1024_.*_c(10|50)_"),
    "Qwen3-8B, 8 x H100": Server("scicom-h100-Qwen3-8B-tp8", r"in1024_.*_c(10|50)_"),
    "gpt-oss-120b, 8 x H100": Server("scicom-h100-gpt-oss-120b-tp8", r"in1024_.*_c(10|50)_"),
    "Qwen3.6-27B, 2 x L40S, below its KV limit": Server(
        "scicom-l40s-Qwen3.6-27B", r"in1024_.*_c(10|50)_", r"_c(1|10)_|in(128|1024)_.*_c50_"
    ),
    "Qwen2.5-0.5B, RTX 5070 Ti, same day": Server("pillaiharish-rtx5070ti-qwen2.5-0.5b", r"day06_c(2|16)_", r"day06"),
}
OURS, SEEDS = "our H100", 3
REFUSED = {
    "two engines": "scicom-h100-Llama-3.1-70B-tp4dp2",
    "SGLang": "scicom-sglang-h100-Qwen3-8B",
    "MI300X": "dstack-mi300x8-405b-fp8",
}


def require(folder: Path, file: str) -> Path:
    """The path of a shared file, if it is there; else says so and exits with 2."""
    path = folder / file
    if not path.exists():
        print(
            f"{path}: the recorded streams are not here; --streams and --recorded name their folders", file=sys.stderr
        )
        sys.exit(2)
    return path


def write_runs(path: Path, folder: Path) -> list[Path]:
    """The runs of a file of streams, each as `vllm bench serve --save-detailed` writes it."""
    content = json.loads(gzip.decompress(path.read_bytes()))
    return [_write(run, content.get("model"), folder) for run in content["runs"]]


def _write(run: dict[str, Any], model: str | None, folder: Path) -> Path:
    path = folder / (run["file"].split("/")[-1].rsplit(".", 1)[0] + ".json")
    result = {
        "model_id": model,
        "request_rate": run["request_rate"],
        "max_concurrency": run["max_concurrency"],
        "input_lens": run["in"],
        "output_lens": run["out"],
        "ttfts": [time * UNIT_S for time in run["ttft"]],
        "itls": [[time * UNIT_S for time in itl] for itl in run["itl"]],
        "errors": run.get("errors") or [""] * len(run["in"]),
    }
    if "start" in run:
        result["start_times"] = [time * UNIT_S for time in run["start"]]
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def chosen(paths: Sequence[Path], pattern: str) -> list[Path]:
    """Those whose names match."""
    return [path for path in paths if re.search(pattern, path.name)]


def errors(profile: StreamProfile, path: Path) -> tuple[Means, Means]:
    """What was recorded, and simulated over recorded means less 1; steps that cannot be rebuilt can be predicted."""
    try:
        (seen,) = read_results([path])
        streams = seen.streams
    except UserError:
        streams = streams_of(read_recorded(path))
    content = profile.profile.model_dump(mode="json", exclude_defaults=True)
    real = real_means(streams)
    return real, simulated_means(content, {"enable_prefix_caching": False}, streams).errors(real)


def rows_of(name: str, server: Server, folder: Path, streams: Path, *, shows_runs: bool) -> Iterator[str]:
    """One server's line of the table, after a line a run if wanted."""
    paths = write_runs(require(streams, f"{server.file}.json.gz"), folder)
    fitted = chosen(paths, server.fitted)
    profile = fit_streams(fitted)
    found = []
    for path in chosen(paths, server.others):
        if path in fitted:
            continue
        real, error = errors(profile, path)
        found.append(error)
        if shows_runs:
            shares = " ".join(f"{100 * share:+7.1f}" for share in error)
            print(f"  {path.name[-48:]:<50} TTFT {real.ttft:8.1f} ms TPOT {real.tpot:6.2f} ms | {shares}", flush=True)
    table = np.abs(np.array(found))
    cells = [f"{100 * np.median(column):.1f} ({100 * column.max():.0f})" for column in table.T]
    yield f"| {name} | {len(fitted)} | {len(found)} | {cells[2]} | {cells[1]} | {cells[0]} |"


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


def band_line(name: str, found: Sequence[BandOverReal]) -> str:
    """How many are held, which not, and how wide they are."""
    missed = ", ".join(f"{band.name} ({band.low:.2f} to {band.high:.2f})" for band in found if not band.is_held)
    width = geometric_mean(band.high / band.low for band in found)
    return f"| {name} | {sum(band.is_held for band in found)} of {len(found)} | {missed or '-'} | x {width:.2f} |"


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
            print(band_line(path.stem[-48:], found), flush=True)
        shares = [100 * np.mean([run[i].is_held for run in bands]) for i in range(len(METRICS))]
        width = np.median([run[-1].high / run[-1].low for run in bands])
        cells = " | ".join(f"{share:.0f} %" for share in (*shares, np.mean(shares)))
        print(f"| {name} | {len(others)} | {cells} | {width:.1f} |", flush=True)


def _means_bands(profile: Profile, streams: Streams) -> list[BandOverReal]:
    """Of TTFT, TPOT and E2EL."""
    profiles = [scaled(profile, factors(profile, deviations(0, draw))) for draw in range(NUM_DRAWS)]
    settings = {"enable_prefix_caching": False}
    drawn = [simulated_means(each, settings, streams, draw) for draw, each in enumerate(profiles)]
    real = real_means(streams)
    return [BandOverReal.of(name, [getattr(each, name) for each in drawn], getattr(real, name)) for name in METRICS]


def left_out_rows(folder: Path, recorded: Path) -> Iterator[str]:
    """By run of our H100: errors of a fit on all that had a say, and of one on the others alone."""
    runs = {run.name: (run, recorded_run(run, recorded)) for run in SERVED}
    seen = {}
    for run in SERVED:
        if run.seen == "measured":
            (seen[run.name],) = read_results(unpacked([run.name], recorded, folder))
    together = fit_seen([*seen.values()], is_judged=False)
    for name, own in runs.items():
        cells = [_figures(together, *own)]
        if name in seen:
            found = fit_seen([each for other, each in seen.items() if other != name], is_judged=False)
            slope = "not told" if "launch per request" in found.fit.taken else "told"
            cells += [_figures(found, *own), slope]
        yield f"| {name} | {' | '.join(cells)} |"


def _figures(profile: StreamProfile, run: Run, recorded: Recorded) -> str:
    """Simulated over recorded, less 1, in per cent: mean TTFT, P99 TTFT, mean TPOT, mean E2EL."""
    content = profile.profile.model_dump(mode="json", exclude_defaults=True)
    found = look_errors(run, recorded, content, SEEDS)
    return ", ".join(f"{100 * found[key]:+.1f}" for key in ("mean TTFT", "p99 TTFT", "mean TPOT", "mean E2EL"))


def refusals(streams: Path, folder: Path) -> Iterator[str]:
    """What `simbatch fit` says of files that cannot tell."""
    for name, file in REFUSED.items():
        for path in write_runs(require(streams, f"{file}.json.gz"), folder)[:2]:
            try:
                read_results([path])
                yield f"| {name} | NOT refused: {path.name} |"
            except UserError as error:
                yield f"| {name} | {error.problems[0].rule} |"


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--streams", type=Path, default=SHARED / "streams", help="the folder of the streams")
    parser.add_argument("--recorded", type=Path, default=SHARED / "gpu" / "h100-vllm-0.32", help="the H100's runs")
    parser.add_argument("--only", default="", help="servers whose names have this")
    parser.add_argument("--bands", action="store_true", help="whether their bands hold the other runs' means, instead")
    parser.add_argument("--runs", action="store_true", help="a line for every run too")
    options = parser.parse_args()
    if options.bands:
        two_coverage(options.streams, options.only)
        return
    print("| server | fitted | predicted | E2EL | TPOT | TTFT |\n|---|---|---|---|---|---|")
    for name, server in SERVERS.items():
        if options.only in name:
            with TemporaryDirectory() as folder:
                for row in rows_of(name, server, Path(folder), options.streams, shows_runs=options.runs):
                    print(row, flush=True)
    if options.only in OURS:
        print(
            f"\n| {OURS} | fitted on all: TTFT, P99 TTFT, TPOT, E2EL | left out: the same | slope |\n|---|---|---|---|"
        )
        with TemporaryDirectory() as folder:
            for row in left_out_rows(Path(folder), options.recorded):
                print(row, flush=True)
    print("\n| file | refused because |\n|---|---|")
    with TemporaryDirectory() as folder:
        for row in refusals(options.streams, Path(folder)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
