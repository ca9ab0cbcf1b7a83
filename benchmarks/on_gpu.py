"""A GPU for half an hour: `python3 benchmarks/on_gpu.py MODEL DIR [--minutes 7] [-- FLAGS of simbatch profile]`.

Two commands of the product, and nothing else: `simbatch profile` of MODEL (a folder with a config.json and a
tokenizer), then `simbatch validate --engine` of seven workloads that the profile has not seen, one start of the server
for all. Lengths follow the model's length, rates are shares of what the profile says the server does. `--only profile`
and `--only validate` are the halves, for where one command may take ten minutes; what is there already is gone on with.
At the end all that is needed to judge it lies in DIR/campaign.tar.xz: profile, steps, streams, results, pictures, log.

Run by its path (in a checkout `-m` would take the folder simbatch/ for the package); simbatch and vLLM are installed.
docs/profiling.md says how they come to a machine that has no network.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from simbatch import Scenario, simulate

ENGINE = ("--max-num-seqs", "256", "--max-num-batched-tokens", "8192", "--max-model-len", "16384")
OF_BOTH = ("--quantization", "--tensor-parallel-size", "--engine-arg")  # of validate too
SETTINGS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "async_scheduling", "enforce_eager")
SECONDS = 25  # of each workload's arrivals
OPEN = {"p25": (0.25, 1.0), "p50": (0.5, 1.0), "p75": (0.75, 1.0), "bursty": (0.4, 0.25)}  # share, burstiness
LOOPS = {"c1": (1, 12), "c16": (16, 96)}  # users, requests
LONG_SHARE = 0.4  # of what the server does of prompts of a third of the model's length
KEPT = ("*.json", "*.jsonl", "*.jsonl.*", "*.png", "*.log", "*.yaml", "*.csv")
KEPT += ("runs/*.jsonl*", "runs/*.log", "runs/**/*.json", "runs/**/*.png")
STATE = "timestamp,clocks.sm,power.draw,temperature.gpu,memory.used,utilization.gpu"


def simbatch(*words: object) -> None:
    """A command of the product; 1 says that a figure is outside its bound, and is no failure."""
    program = [sys.executable, "-m", "simbatch", *map(str, words)]
    print("$", *program[1:], flush=True)
    began_s = time.monotonic()
    code = subprocess.run(program, check=False).returncode
    print(f"({time.monotonic() - began_s:.0f} s)", flush=True)
    if code not in (0, 1):
        sys.exit(code)


def measured(folder: Path) -> dict[str, Any]:
    """The engine as vLLM resolved it: the first line of its recorder's file."""
    with (folder / "profile.steps.jsonl").open(encoding="utf-8") as file:
        return dict(json.loads(file.readline()))


def lengths(most: int, share: float, *, least: float = 0.1) -> dict[str, Any]:
    """Uniform lengths up to a share of the model's."""
    return {"distribution": "uniform", "min": max(1, round(least * share * most)), "max": max(2, round(share * most))}


def scenarios(folder: Path) -> list[Path]:
    """The workloads' files, beside the profile; made once, so that going on sends the same requests."""
    engine = measured(folder)
    most = engine["max_model_len"]
    settings = {key: engine[key] for key in SETTINGS} | {"num_gpu_blocks_override": engine["num_gpu_blocks"]}
    usual = {"prompt_len": lengths(most, 0.09), "output_len": lengths(most, 0.022)}
    fixed = {
        f"{name}_len": {"distribution": "fixed", "mean": max(2, most // share)}
        for name, share in (("prompt", 16), ("output", 128))
    }
    long = {"prompt_len": lengths(most, 0.4, least=0.8), "output_len": lengths(most, 0.006, least=1)}
    base = {"profile": str((folder / "profile.json").absolute()), "engine": settings, "seed": 1}

    def capacity(workload: dict[str, Any]) -> float:
        """Requests a second when all are there from the start."""
        all_there = {**workload, "num_prompts": 1000, "arrival": {"process": "all_at_once"}}
        found = simulate(Scenario.from_dict({**base, "workload": all_there})).summary["request_throughput"]
        return float(found)

    workloads = {
        name: {**fixed, "num_prompts": number, "arrival": {"process": "closed_loop", "max_concurrency": users}}
        for name, (users, number) in LOOPS.items()
    }
    rate = capacity(usual)
    for name, (share, burstiness) in OPEN.items():
        number = max(20, round(share * rate * SECONDS))
        workloads[name] = {**usual, "num_prompts": number, "request_rate": share * rate, "burstiness": burstiness}
    long_rate = LONG_SHARE * capacity(long)
    workloads["long"] = {**long, "num_prompts": max(10, round(long_rate * SECONDS)), "request_rate": long_rate}
    paths = []
    for seed, (name, workload) in enumerate(workloads.items(), 1):  # one seed would send the same prompts again
        paths.append(folder / f"{name}.yaml")
        if not paths[-1].exists():
            paths[-1].write_text(yaml.safe_dump({**base, "seed": seed, "workload": workload}), encoding="utf-8")
    return paths


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Clock, power and temperature of the GPU twice a second, in gpu-state.csv; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    query = ["nvidia-smi", f"--query-gpu={STATE}", "--format=csv,noheader,nounits", "-lms", "500"]
    with (folder / "gpu-state.csv").open("a", encoding="utf-8") as file:
        watching = subprocess.Popen(query, stdout=file)
        try:
            yield
        finally:
            watching.terminate()


def pack(folder: Path) -> Path:
    """All that is needed to judge it, compressed."""
    target = folder / "campaign.tar.xz"
    with tarfile.open(target, "w:xz", preset=3) as archive:
        for path in sorted({path for pattern in KEPT for path in folder.glob(pattern)}):
            archive.add(path, path.relative_to(folder))
    return target


def profile(model: str, folder: Path, flags: Sequence[str], minutes: float) -> None:
    """Measure, or go on with it."""
    going_on = ("--resume",) if (folder / "profile.samples.jsonl").exists() else ()
    simbatch("profile", model, *flags, *going_on, "--budget-minutes", minutes, "-o", folder / "profile.json")


def validate(model: str, folder: Path, flags: Sequence[str]) -> None:
    """Real runs beside simulations, or what is missing of them."""
    going_on = ("--resume",) if (folder / "runs").exists() else ()
    pairs = [pair for pair in pairwise(flags) if pair[0] in OF_BOTH and pair[1].split("=")[0] not in SETTINGS]
    of_both = [word for pair in pairs for word in pair]
    simbatch("validate", *scenarios(folder), "--engine", model, *of_both, *going_on, "-o", folder / "runs")


def main() -> None:
    """Profile, validate, pack."""
    words = sys.argv[1:]
    own, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [*ENGINE])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with a config.json and a tokenizer, or a name")
    parser.add_argument("folder", type=Path, help="where everything goes")
    parser.add_argument("--minutes", type=float, default=7.0, help="of measuring")
    parser.add_argument("--only", choices=("profile", "validate"), help="one half")
    given = parser.parse_args(own)
    folder = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    with watched(folder):
        if given.only != "validate":
            profile(given.model, folder, flags, given.minutes)
        if given.only != "profile":
            validate(given.model, folder, flags)
    print(pack(folder))


if __name__ == "__main__":
    main()
