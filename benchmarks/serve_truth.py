"""A simulation beside `simbatch serve`, whose vLLM is real and whose GPU is not: `python -m benchmarks.serve_truth`.

    .venv-vllm/bin/python -m benchmarks.serve_truth run FOLDER [RUN ...]     # real requests to a real server, minutes
    .venv/bin/python -m benchmarks.serve_truth compare FOLDER                # the tables of docs/accuracy.md, seconds

The device's times are the same on both sides, so what differs is how host and front end are modelled, and the machine.
Their constants come from the runs in FITTED (`benchmarks/serve_constants.py`), from no other. `run` keeps what each
client saw and each step of the engine in FOLDER; it wants a machine that does nothing else, and notes what it had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILE = "h100-llama-3.1-8b-bf16"
FITTED = ("c1", "bursts")
START_S, PAUSE_S = 90, 1.5  # the log of steps is written once a second


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


@contextmanager
def server(engine: dict[str, int], steps: Path) -> Iterator[str]:
    """`simbatch serve` on a free port; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [word for key, value in engine.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "simbatch", "serve", PROFILE, "--port", str(port), "--steps", str(steps)]
    process = subprocess.Popen([*command, "--", *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if not any(line.startswith("ready") for line in iter(process.stdout.readline, "")):
            sys.exit("the server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def busy_s() -> float:
    """Seconds of all cores in which anything ran, since the machine was started."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure(runs: Sequence[Run], folder: Path) -> None:
    """All runs of one server, one after the other; each into a file of its own."""
    from benchmarks.stream_client import Sent, stream

    folder.mkdir(parents=True, exist_ok=True)
    steps = folder / f"steps-{runs[0].name}.jsonl"
    steps.unlink(missing_ok=True)
    with server(engine_of(runs[0]), steps) as url:
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


def main() -> None:
    """Run or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    from benchmarks.serve_compare import compare

    compare([run for run in chosen if (options.folder / f"{run.name}.json").is_file()], options.folder)


if __name__ == "__main__":
    main()
