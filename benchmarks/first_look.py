"""A real server beside its simulation, by three profiles: `python -m benchmarks.first_look`.

vLLM 0.32 on one H100: five runs of `vllm bench serve` and three replays within one process, which lie in
../shared/gpu/h100-vllm-0.32 (--recorded) and are no part of the project; exit code 2 where they are not there. Requests
are sent as recorded, or in a closed loop as large as the recorded one. The profiles are the shipped kernel tables
without host and front end, as they ship (both assumed), and the measured one, which c1, p8, p16 and p22 had a say in.
docs/accuracy.md has the table. Nothing is written.

`... power`: what the GPU drew, a line through three runs of the server, two others predicted (docs/plan.md). Watts are
read twice a second (gpu-state.csv.gz) and averaged over the middle of each run, from a fifth to four fifths of it;
tokens are those of the requests sent then, in and out; how long the device is busy is simulated by the measured
profile. c1, p8 and p22 are fitted on, c16 and p16 are not.
"""

from __future__ import annotations

import gzip
import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import parser_of, run_one_of
from simbatch import Scenario, simulate
from simbatch.profiler.fit.streams.runs import engine_of
from simbatch.profiler.records.recorded import Recorded, read_recorded
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.cost.sections import GpuPower
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.json_values import json_object
from simbatch.sim.metrics.latencies import PooledGaps, describe, describe_gaps, latencies_ms

RECORDED = Path(__file__).parents[2] / "shared" / "gpu" / "h100-vllm-0.32"
HOST_FILE = Path(__file__).with_name("h100-host.json")
PROFILE, MEASURED = "h100-llama-3.1-8b-bf16", "h100-llama-3.1-8b-bf16-measured"
# As the server was started, and the KV blocks that it then logged.
ENGINE = {
    **{"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 16384},
    **{"num_gpu_blocks_override": 28588, "max_cudagraph_capture_size": 512, "async_scheduling": True},
}
SEEDS = 5  # the host's noise is drawn anew; figures are the means
HASH_TOKENS = 16
FILL_S = 60.0  # before a run whose first prompts had been sent before, those are sent
FIGURES = [f"{statistic} {name}" for name in ("TTFT", "TPOT", "E2EL", "ITL") for statistic in ("mean", "p99")]


@dataclass(frozen=True)
class Run:
    """A recorded run, and which profile it had a say in."""

    name: str
    seen: str
    num_known: int = 0  # its first prompts had been sent before
    is_replay: bool = False  # within one process, without a front end


SERVED = (
    Run("c1", "measured"),
    Run("c16", "nothing", num_known=12),
    Run("p8", "measured"),
    Run("p16", "measured"),
    Run("p22", "measured"),
)
REPLAYED = tuple(Run(name, "nothing", is_replay=True) for name in ("heavy", "bursty", "light"))


def require(folder: Path) -> Path:
    """The folder, if the recorded runs are there; else says so and exits with 2."""
    if not (folder / "serve").is_dir():
        print(f"{folder}: the recorded runs are not here; --recorded names their folder", file=sys.stderr)
        sys.exit(2)
    return folder


def parser_of_recorded(text: str | None) -> ArgumentParser:
    """A script's parser with --recorded."""
    parser = parser_of(text)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    return parser


def recorded_run(run: Run, folder: Path) -> Recorded:
    """What the file of a run says of its requests."""
    if run.is_replay:
        return _replayed(folder / "replays" / run.name / "requests.parquet")
    with TemporaryDirectory() as temporary:
        return read_recorded(*unpacked([run.name], folder, Path(temporary)))


def unpacked(names: Iterable[str], folder: Path, target: Path) -> list[Path]:
    """Results of the server as files of its client's."""
    paths = [target / f"{name}.json" for name in names]
    for path in paths:
        path.write_bytes(gzip.decompress((folder / "serve" / f"{path.name}.gz").read_bytes()))
    return paths


def _replayed(path: Path) -> Recorded:
    import pyarrow.parquet as pq

    columns = pq.read_table(path).to_pydict()
    names = ("arrival_s", "first_token_s", "finish_s", "num_prompt_tokens", "num_output_tokens")
    sent, first, finish, prompts, outputs = (np.array(columns[name]) for name in names)
    gaps = np.empty(len(sent), dtype=np.object_)
    gaps[:] = [np.array(gap, dtype=np.float64) for gap in columns["itl_s"]]
    times = (time - sent[0] for time in (sent, first, finish))
    no_error = np.full(len(sent), "", dtype=np.object_)
    return Recorded("simbatch validate", None, *times, prompts, outputs, no_error, gaps_s=gaps)


def simulated_run(
    run: Run,
    recorded: Recorded,
    folder: Path,
    seed: int,
    profile: str | dict[str, Any],
    *,
    steps: bool = False,
) -> tuple[RunRecord, NDArray[np.bool_]]:
    """Simulate it by a profile, with its trace in `folder`.

    Also returns which of the requests are the run's: before them come those that fill the cache, of a token each.
    """
    workload = written_trace(run, recorded, folder)
    engine = {**ENGINE, "front_end": not run.is_replay}
    content = {"profile": profile, "engine": engine, "workload": workload, "seed": seed}
    record = simulate(Scenario.from_dict(content), steps=steps).record
    return record, np.arange(len(record.requests)) >= run.num_known


def written_trace(run: Run, recorded: Recorded, folder: Path) -> dict[str, Any]:
    """The workload that sends a run's requests as they were sent, its trace in `folder`."""
    path = folder / f"{run.name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _trace(run, recorded)), encoding="utf-8")
    workload: dict[str, Any] = {"trace": {"path": str(path), "format": "jsonl"}}
    if recorded.max_concurrency is not None:
        workload["max_concurrency"] = recorded.max_concurrency
    return workload


def _trace(run: Run, recorded: Recorded) -> Iterator[dict[str, Any]]:
    """Those that fill the cache a second apart, and the run's requests after them."""
    begin_s = FILL_S if run.num_known else 0.0
    prompts = recorded.num_prompt_tokens.tolist()
    for i in range(run.num_known):
        yield _row(i, float(i), prompts[i], 1)
    is_loop = recorded.max_concurrency is not None
    for i, (sent_s, outputs) in enumerate(zip(recorded.sent_s, recorded.num_output_tokens.tolist(), strict=True)):
        yield _row(i, begin_s + (0.0 if is_loop else float(sent_s)), prompts[i], outputs)


def _row(prompt: int, arrival_s: float, num_prompt: int, num_output: int) -> dict[str, Any]:
    """A request, its blocks named by its prompt: nobody else has them."""
    first = prompt << 16
    hashes = list(range(first, first + num_prompt // HASH_TOKENS))
    lengths = {"num_prompt_tokens": num_prompt, "num_output_tokens": num_output}
    return {"arrival_s": arrival_s, **lengths, "hash_ids": hashes}


def without_host() -> dict[str, Any]:
    """The shipped kernel tables alone."""
    content = json_object(shipped_text(PROFILE), PROFILE)
    return {key: value for key, value in content.items() if key not in ("host", "front_end")}


def figures(record: RunRecord, chosen: NDArray[np.bool_]) -> dict[str, float]:
    """Latencies of the chosen requests in ms, and their output tokens per second."""
    described = {name: describe(values) for name, values in latencies_ms(record, chosen).items()}
    described["itl"] = describe_gaps(PooledGaps.of(record))
    latencies = {figure: described[figure.split()[1].lower()][figure.split()[0]] for figure in FIGURES}
    requests = record.requests
    span_ps = record.client_finish_ps[chosen].max() - requests.arrival_ps[chosen].min()
    latencies["tokens/s"] = requests.num_output_tokens[chosen].sum() / (span_ps / 1e12)
    return {figure: float(value or 0.0) for figure, value in latencies.items()}


def real_figures(recorded: Recorded) -> dict[str, float]:
    """Latencies in ms and output tokens per second of all that was recorded."""
    return figures(recorded.record(0.0, engine_of(PROFILE, {}).engine), np.full(len(recorded), True))


def errors(run: Run, recorded: Recorded, profile: str | dict[str, Any], seeds: int = SEEDS) -> dict[str, float]:
    """Simulated over recorded figures, less 1: of the means over so many seeds."""
    real = real_figures(recorded)
    with TemporaryDirectory() as temporary:
        drawn = [figures(*simulated_run(run, recorded, Path(temporary), seed, profile)) for seed in range(seeds)]
    return {figure: sum(each[figure] for each in drawn) / len(drawn) / real[figure] - 1 for figure in real}


def _compared() -> Iterator[tuple[str, str | dict[str, Any]]]:
    yield "tables alone", without_host()
    yield "tables, host assumed", PROFILE
    yield "measured", MEASURED


def main() -> None:
    """Print the table."""
    parser = parser_of_recorded(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of the host's noise")
    options = parser.parse_args()
    folder = require(options.recorded)
    columns = ["run", "had a say in", "simulated", *FIGURES, "tokens/s"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in (*SERVED, *REPLAYED):
        recorded = recorded_run(run, folder)
        for name, profile in _compared():
            found = errors(run, recorded, profile, options.seeds if profile == MEASURED else 1)  # others draw nothing
            cells = [run.name, run.seen, name, *(f"{100 * error:+.1f} %" for error in found.values())]
            print(f"| {' | '.join(cells)} |", flush=True)


FITTED_POWER = ("c1", "p8", "p22")
MIDDLE = (0.2, 0.8)
LOADED_MHZ = 1980.0  # the clock with a model loaded: below it stands before the server's start
SOURCE = "power.draw of one H100 80GB HBM3 serving Llama-3.1-8B with vLLM 0.32, runs c1, p8 and p22 of 2026-11-27; ours"


class Drawn(NamedTuple):
    """A run's middle: how busy the device was, tokens per second in and out, and watts."""

    busy_share: float
    tokens_per_s: float
    watts: float


def drawn(run: Run, folder: Path, profile: str | dict[str, Any]) -> Drawn:
    """Of one run of the server, simulated by that profile."""
    result = json.loads(gzip.decompress((folder / "serve" / f"{run.name}.json.gz").read_bytes()))
    end_s, duration_s = datetime.strptime(result["date"], "%Y%m%d-%H%M%S").timestamp(), result["duration"]
    times, _, watts = states(folder)
    begin, end = (end_s - (1 - share) * duration_s for share in MIDDLE)
    recorded = recorded_run(run, folder)
    tokens = recorded.num_prompt_tokens + recorded.num_output_tokens
    low, high = (share * recorded.sent_s.max() for share in MIDDLE)
    sent = tokens[(recorded.sent_s >= low) & (recorded.sent_s <= high)].sum() / (high - low)
    with TemporaryDirectory() as temporary:
        workload = written_trace(run, recorded, Path(temporary))
        content = {"profile": profile, "engine": ENGINE, "workload": workload}
        summary = simulate(Scenario.from_dict(content)).summary
    fill_s = FILL_S if run.num_known else 0.0
    busy = min(1.0, summary["simbatch"]["device_busy_share"] * summary["duration"] / (summary["duration"] - fill_s))
    return Drawn(busy, float(sent), float(watts[(times >= begin) & (times <= end)].mean()))


def states(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, clocks in MHz and watts of the GPU's readings."""
    lines = gzip.decompress((folder / "serve" / "gpu-state.csv.gz").read_bytes()).decode().splitlines()
    rows = [line.split(", ") for line in lines]
    times = [datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f").timestamp() for row in rows]
    return np.array(times), *np.array([[float(row[column]) for row in rows] for column in (1, 2)])


def idle_watts(folder: Path) -> float:
    """The median of the readings between runs, the model loaded: those below 150 W at the full clock."""
    _, mhz, watts = states(folder)
    return float(np.median(watts[(mhz == LOADED_MHZ) & (watts < 150)]))


def fitted_power(folder: Path, profile: str | dict[str, Any] = MEASURED) -> GpuPower:
    """Least squares, relative to what was drawn; the error is the largest of the runs that had no say."""
    idle_w = idle_watts(folder)
    found = {run.name: drawn(run, folder, profile) for run in SERVED}
    known = [found[name] for name in FITTED_POWER]
    columns = np.array([[each.busy_share / each.watts, each.tokens_per_s / each.watts] for each in known])
    busy_w, per_token_j = np.linalg.lstsq(columns, np.array([1 - idle_w / each.watts for each in known]), rcond=None)[0]
    line = GpuPower(
        idle_w=round(idle_w, 1),
        busy_w=round(float(busy_w), 1),
        per_token_j=round(float(per_token_j), 5),
        error=0,
        source=SOURCE,
    )
    errors = {name: line.watts(each.busy_share, each.tokens_per_s) / each.watts - 1 for name, each in found.items()}
    for name, error in errors.items():
        said = " (fitted on)" if name in FITTED_POWER else ""
        print(f"{name}: {found[name].watts:.0f} W, predicted {100 * error:+.1f} %{said}")
    largest = max(abs(error) for name, error in errors.items() if name not in FITTED_POWER)
    return line.model_copy(update={"error": round(largest, 3)})


def power() -> None:
    """Print the line and its errors."""
    print(fitted_power(require(parser_of_recorded(__doc__).parse_args().recorded)).model_dump_json(indent=2))


if __name__ == "__main__":
    run_one_of(main, power=power)
