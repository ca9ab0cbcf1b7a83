"""A simulation beside `simbatch serve`, whose vLLM is real and whose GPU is not: `python -m benchmarks.serve_truth`.

    .venv-vllm/bin/python -m benchmarks.serve_truth run FOLDER [RUN ...]     # real requests to a real server, minutes
    .venv/bin/python -m benchmarks.serve_truth compare FOLDER                # the tables of docs/accuracy.md, seconds

The device's times are the same on both sides, so what differs is how host and front end are modelled, and the machine.
Their constants come from the runs in FITTED (`benchmarks/serve_constants.py`), from no other. `run` keeps what each
client saw and each step of the engine in FOLDER; it wants a machine that does nothing else, and notes what it had.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import parser_of
from benchmarks.serve_constants import constants, first_updates, requests_taken_in
from benchmarks.serve_decisions import PROFILE, differences
from simbatch import Scenario, simulate
from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.json_values import json_object
from simbatch.sim.metrics.columns import queued_ps
from simbatch.sim.metrics.latencies import latencies_ms

FITTED = ("c1", "bursts")
PAUSE_S = 1.5  # the log of steps is written once a second


@dataclass(frozen=True)
class Run:
    """One workload: a closed loop (`concurrency`), Poisson (`rate_per_s`), or so many at once every so many seconds."""

    name: str
    seed: int
    num_requests: int
    prompts: tuple[int, int]
    outputs: tuple[int, int]
    concurrency: int | None = None
    rate_per_s: float | None = None
    burst: tuple[int, float] | None = None
    is_tight: bool = False  # a server of its own, short of memory

    def requests(self) -> Iterator[tuple[float | None, int, int]]:
        """When to send each (None: when a place is free), and its lengths."""
        rng, at_s = random.Random(self.seed), 0.0
        for i in range(self.num_requests):
            if self.rate_per_s is not None:
                at_s += rng.expovariate(self.rate_per_s)
            elif self.burst is not None:
                at_s = i // self.burst[0] * self.burst[1]
            yield None if self.concurrency else at_s, rng.randint(*self.prompts), rng.randint(*self.outputs)


MIXED = {"prompts": (160, 1440), "outputs": (40, 360)}
RUNS = (
    Run("c1", 101, 24, (256, 4096), (48, 80), concurrency=1),
    Run("c16", 102, 160, (1024, 1024), (128, 128), concurrency=16),
    Run("c64", 103, 512, (512, 512), (128, 128), concurrency=64),
    Run("p8", 104, 160, **MIXED, rate_per_s=8),
    Run("p16", 105, 320, **MIXED, rate_per_s=16),
    Run("bursts", 106, 140, **MIXED, burst=(20, 3.0)),
    Run("long", 107, 40, (6000, 12000), (50, 150), rate_per_s=2),
    Run("tight", 108, 240, **MIXED, rate_per_s=16, is_tight=True),
)
ENGINE = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 16384}
TIGHT = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 4096, "num_gpu_blocks_override": 900}


def engine_of(run: Run) -> dict[str, int]:
    """The settings of its server."""
    return TIGHT if run.is_tight else ENGINE


def busy_s() -> float:
    """Seconds of all cores in which anything ran, since the machine was started."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(runs: Sequence[Run], folder: Path) -> None:
    """All runs of one server, one after the other; each into a file of its own."""
    from benchmarks.gateway_sessions import Sent, served, stream

    folder.mkdir(parents=True, exist_ok=True)
    steps = folder / f"steps-{runs[0].name}.jsonl"
    steps.unlink(missing_ok=True)
    flags = [word for key, value in engine_of(runs[0]).items() for word in (f"--{key.replace('_', '-')}", value)]
    with served(PROFILE, "--steps", steps, flags=flags) as url:
        stream(url, PROFILE, [Sent(None, 500, 20)] * 30, concurrency=4, seed=1)  # first requests find cold code
        time.sleep(PAUSE_S)
        for run in runs:
            size, begin_s, busy = steps.stat().st_size, time.monotonic(), busy_s()
            requests = [Sent(*request) for request in run.requests()]
            rows = stream(url, PROFILE, requests, concurrency=run.concurrency, seed=run.seed)
            span_s = time.monotonic() - begin_s
            load = (busy_s() - busy) / span_s
            time.sleep(PAUSE_S)
            with steps.open("rb") as file:
                file.seek(size)
                lines = [json.loads(line) for line in file]
            content = {"load": load, "cores": os.cpu_count(), "rows": [row._asdict() for row in rows], "steps": lines}
            (folder / f"{run.name}.json").write_text(json.dumps(content), encoding="utf-8")
            print(f"{run.name}: {len(rows)} requests in {span_s:.0f} s, {load:.2f} cores busy", flush=True)


def read(run: Run, folder: Path) -> dict[str, Any]:
    """What was kept of a run."""
    content: dict[str, Any] = json.loads((folder / f"{run.name}.json").read_text(encoding="utf-8"))
    return content


FIGURES = [(statistic, name) for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99")]
OLDER = ("request_overhead_s", "client_overhead_s")


def compare(runs: Sequence[Run], folder: Path) -> None:
    """Print all tables."""
    alone, bursts = (read(next(run for run in RUNS if run.name == name), folder) for name in FITTED)
    sections = constants(alone, bursts)
    print(json.dumps(sections, indent=1))
    parts = ["| run | way in: real, simulated | in the engine | way out |\n|---|---|---|---|"]
    queued = ["| run | mean, queue to first token | p99 | mean TPOT |\n|---|---|---|---|"]
    columns = ["run", "fitted", "cores busy", *(f"{statistic} {name.upper()}" for statistic, name in FIGURES), "steps"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in runs:
        kept = read(run, folder)
        record = simulated_run(run, kept["rows"], sections)
        real, simulated = real_ms(kept["rows"]), latencies_ms(record, np.full(len(kept["rows"]), True))
        cells = [run.name, "yes" if run.name in FITTED else "", f"{kept['load']:.1f} of {kept['cores']}"]
        for statistic, name in FIGURES:
            one, other = (_statistic(side[name], statistic) for side in (real, simulated))
            cells.append(f"{one:.1f}, {100 * (other / one - 1):+.1f} %")
        found = differences(kept["steps"], engine_of(run))
        cells.append(f"{found.num_equal} of {found.num_steps}")
        print(f"| {' | '.join(cells)} |", flush=True)
        if found.first:
            print(f"  {found.first}")
        pairs = zip(real_parts_ms(kept), simulated_parts_ms(record), strict=True)
        parts.append(f"| {run.name} | {' | '.join(f'{one:.1f}, {other:.1f}' for one, other in pairs)} |")
        queued.append(f"| {run.name} | {' | '.join(from_queue(run, kept, sections))} |")
    print("\nWhere the time to the first token goes, means in ms:\n\n" + "\n".join(parts))
    print("\nGiven when each request reached the engine's queue:\n\n" + "\n".join(queued))


def real_ms(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """What clients saw, as `vllm bench serve` counts it."""
    first = np.array([1e3 * (row["chunk_s"][0] - row["sent_s"]) for row in rows])
    last = np.array([1e3 * (row["chunk_s"][-1] - row["sent_s"]) for row in rows])
    outputs = np.array([row["num_output_tokens"] for row in rows])
    return {"ttft": first, "tpot": (last - first) / (outputs - 1), "e2el": last}


def simulated_run(run: Run, rows: Sequence[dict[str, Any]], sections: dict[str, Any]) -> RunRecord:
    """A simulation of the run's requests: sent when they really were, or in a closed loop."""
    begin_s = min(row["sent_s"] for row in rows)
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{run.name}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in sorted(rows, key=lambda row: row["sent_s"]):
                sent_s = 0.0 if run.concurrency else row["sent_s"] - begin_s
                keys = ("num_prompt_tokens", "num_output_tokens")
                file.write(json.dumps({"arrival_s": sent_s, **{key: row[key] for key in keys}}) + "\n")
        workload: dict[str, Any] = {"trace": {"path": str(path), "format": "jsonl"}}
        if run.concurrency:
            workload["max_concurrency"] = run.concurrency
        content = {"profile": profile_with(sections), "engine": {**engine_of(run), "async_scheduling": True}}
        record: RunRecord = simulate(Scenario.from_dict({**content, "workload": workload})).record
    return record


def from_queue(run: Run, kept: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Errors of the engine alone: requests come to the simulation when they came to the real engine's queue."""
    adds, firsts = requests_taken_in(kept), first_updates(kept)
    rows = sorted(({**row, "sent_s": adds[row["name"]]["q"]} for row in kept["rows"]), key=lambda row: row["sent_s"])
    out_alone = {"front_end": {"per_chunk_s": sections["front_end"]["per_chunk_s"]}}
    record = simulated_run(replace(run, concurrency=None), rows, sections | out_alone)
    real = np.array([1e3 * (firsts[row["name"]]["u1"] - row["sent_s"]) for row in rows])
    simulated = (record.requests.first_token_ps - record.requests.arrival_ps) / PS_PER_MS
    found = [_statistic(simulated, name) / _statistic(real, name) - 1 for name in ("mean", "p99")]
    tpot_ms = latencies_ms(record, np.full(len(rows), True))["tpot"].mean()
    return [f"{100 * error:+.1f} %" for error in (*found, tpot_ms / real_ms(rows)["tpot"].mean() - 1)]


def real_parts_ms(kept: dict[str, Any]) -> list[float]:
    """Means: from being sent to being taken in by the engine, from there to the update, from there to the client."""
    adds, firsts = requests_taken_in(kept), first_updates(kept)
    found = [
        (row["sent_s"], adds[row["name"]]["t"], firsts[row["name"]]["u1"], row["chunk_s"][0]) for row in kept["rows"]
    ]
    return [float(value) for value in 1e3 * np.diff(np.array(found)).mean(axis=0)]


def simulated_parts_ms(record: RunRecord) -> list[float]:
    """Those three parts of a simulation, whose delays that hold up nobody are all on the way to the client."""
    requests = record.requests
    moments = [requests.arrival_ps, queued_ps(requests), requests.first_token_ps, record.client_first_token_ps]
    return [float((after - before).mean() / PS_PER_MS) for before, after in pairwise(moments)]


def profile_with(sections: dict[str, Any]) -> dict[str, Any]:
    """The profile that was served, with host and front end."""
    content = json_object(shipped_text(PROFILE), PROFILE)
    return {key: value for key, value in content.items() if key not in OLDER} | sections


def _statistic(values: np.ndarray[Any, Any], name: str) -> float:
    return float(values.mean() if name == "mean" else np.percentile(values, 99))


def main() -> None:
    """Run or compare."""
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=["run", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*", help="default: all")
    options = parser.parse_args()
    chosen = [run for run in RUNS if not options.runs or run.name in options.runs]
    if options.what == "run":
        for is_tight in (False, True):
            if group := [run for run in chosen if run.is_tight == is_tight]:
                measure(group, options.folder)
        return

    compare([run for run in chosen if (options.folder / f"{run.name}.json").is_file()], options.folder)


if __name__ == "__main__":
    main()
