"""A real server beside its simulation, by three profiles: `python -m benchmarks.first_look`.

vLLM 0.32 on one H100: five runs of `vllm bench serve` and three replays within one process, which lie in
../shared/gpu/h100-vllm-0.32 (--recorded) and are no part of the project; exit code 2 where they are not there. Requests
are sent as recorded, or in a closed loop as large as the recorded one. The profiles are the shipped kernel tables
without host and front end, as they ship (both assumed), and the measured one, which c1, p8, p16 and p22 had a say in.
docs/accuracy.md has the table. Nothing is written.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch import Scenario, simulate
from simbatch.profiler.records.recorded import Recorded, read_recorded
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.json_values import json_object
from simbatch.sim.metrics.latencies import PooledGaps, describe, describe_gaps, latencies_ms
from simbatch.sim.scenario import resolve

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


def recorded_run(run: Run, folder: Path) -> Recorded:
    """What the file of a run says of its requests."""
    if run.is_replay:
        return _replayed(folder / "replays" / run.name / "requests.parquet")
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{run.name}.json"
        path.write_bytes(gzip.decompress((folder / "serve" / f"{run.name}.json.gz").read_bytes()))
        return read_recorded(path)


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
    engine = resolve(Scenario.from_dict({"profile": PROFILE, "workload": _NOTHING})).engine
    return figures(recorded.record(0.0, engine), np.full(len(recorded), True))


_NOTHING = {
    **{"num_prompts": 1, "request_rate": 1},
    **{f"{name}_len": {"distribution": "fixed", "mean": 1} for name in ("prompt", "output")},
}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
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


if __name__ == "__main__":
    main()
