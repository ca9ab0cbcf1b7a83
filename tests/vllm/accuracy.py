"""The loop of docs/accuracy.md here: a small model is profiled on real vLLM and three workloads replayed, in turn.

    .venv-vllm/bin/python -m tests.vllm.accuracy -o build/accuracy

The machine's speed wanders, and every start of vLLM has a speed of its own. So a round profiles a bit (a further start
of the server, whose waves are added to the same samples) and does one more real run of each workload; after the last
round it profiles once more. All samples are then fitted together, and each workload is simulated from that profile,
beside the median of its real runs. The profile sees nothing of the workloads. Their rates are shares of the capacity
that the first two profiles say, so that all runs are of the same requests: 0.3 (light), 0.8 (heavy), 0.5 in bursts.
Prints a table in Markdown; ends with 1 when a figure is outside its bound.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simbatch import Scenario, simulate

HERE = Path(__file__).parent
MODEL = HERE / "models" / "tiny-llama"
# One thread, since two wait for each other whenever something else wants a core; not bound to a core, which it would
# share with every other thread of the process; and memory that is kept, since handing it back and forth with the
# system takes as long as a small model's step. Without these the same step took 3.3 or 4.8 ms, by chance.
STEADY = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
}
EAGER = ("--engine-arg", "enforce_eager=true")  # of profile, which has no scenario
EAGER_SCENARIO = ("--set", "engine.enforce_eager=true")
ENGINE = ("--max-num-seqs", "32", "--max-num-batched-tokens", "256", "--max-model-len", "1024")
SHARES = {"light": 0.3, "heavy": 0.8, "bursty": 0.5}
BOUNDS = "mean=5,mean_ttft=10,p90=10"
SHOWN = (
    "output_throughput",
    "mean_ttft_ms",
    "p90_ttft_ms",
    "mean_tpot_ms",
    "p90_tpot_ms",
    "mean_e2el_ms",
    "p90_e2el_ms",
)


@dataclass(frozen=True)
class Loop:
    """Profiling and replaying in turn; everything is in `folder`. `settings` are keys of the scenarios."""

    folder: Path
    names: Sequence[str] = tuple(SHARES)
    budget_minutes: float = 1.0  # of each round's profile
    engine: Sequence[str] = ENGINE
    settings: Mapping[str, object] = field(default_factory=dict)
    runs: int = 1  # of each workload in a round

    @property
    def target(self) -> Path:
        """The profile, fitted to all that was measured so far."""
        return self.folder / "profile.json"

    def round(self, number: int) -> None:
        """Profile, then further real runs of each workload."""
        self.profile()
        self.validate(number * self.runs)

    def finish(self, num_rounds: int, bounds: str = BOUNDS) -> int:
        """Profile, then simulate beside the real runs that are there: 1 when a figure is outside its bound."""
        self.profile()
        return self.validate(num_rounds * self.runs, "--bounds", bounds)

    def profile(self) -> None:
        """Add to the samples, in a further start of the server."""
        flags = (*self.engine, *EAGER, "--budget-minutes", str(self.budget_minutes), "--resume")
        simbatch("profile", str(MODEL), *flags, "-o", str(self.target))

    def validate(self, num_runs: int, *more: str) -> int:
        """Real runs of each workload until there are so many, on one start, and the simulations."""
        files = [str(self.file(name)) for name in self.names]
        flags = (
            "--repeat",
            str(num_runs),
            "--resume",
            "-o",
            str(self.results if len(files) > 1 else self.of(self.names[0])),
        )
        return simbatch("validate", *files, "--engine", str(MODEL), *EAGER_SCENARIO, *flags, *more)

    @property
    def results(self) -> Path:
        """Of all workloads."""
        return self.folder / "runs"

    def of(self, name: str) -> Path:
        """Of one."""
        return self.results / name

    def file(self, name: str) -> Path:
        """The workload at its rate, from the profile as it is."""
        content = yaml.safe_load(scenario_of(name).read_text())
        content["profile"] = str(self.target.absolute())
        content["workload"]["request_rate"] = self.rate_of(name)
        for key, value in self.settings.items():
            section, _, setting = key.partition(".")
            content[section][setting] = value
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def rate_of(self, name: str) -> float:
        """Requests per second: kept, since the profile changes and the real runs must not."""
        kept = self.folder / f"{name}.rate"
        if not kept.exists():
            kept.write_text(str(round(SHARES[name] * self.capacity(name), 3)))
        return float(kept.read_text())

    def capacity(self, name: str) -> float:
        """Requests per second that the profile's engine does when all are there from the start."""
        scenario = Scenario.load(scenario_of(name))
        content = scenario.override({"profile": str(self.target.absolute()), **self.settings}).dump()
        workload = {**content["workload"], "arrival": {"process": "all_at_once"}, "num_prompts": 2000}
        for key in ("request_rate", "burstiness"):
            workload.pop(key, None)
        saturated = simulate(Scenario.from_dict({**content, "workload": workload}))
        return saturated.summary["request_throughput"]

    def table(self) -> Iterator[str]:
        """Real median, spread, simulated, error and what it is within, in Markdown."""
        yield "| workload | figure | real, median | spread | simulated | error | within |"
        yield "|---|---|---|---|---|---|---|"
        for name in self.names:
            content = json.loads((self.of(name) / "validation.json").read_text())
            figures = {figure["key"]: figure for figure in content["figures"] if figure["clock"] == "client"}
            for key in SHOWN:
                figure = figures[key]
                spread = "-" if figure["spread"] is None else f"±{figure['spread']:.1%}"
                values = f"{figure['median']:,.1f} | {spread} | {figure['simulated']:,.1f} | {figure['error']:+.1%}"
                yield f"| {name} | {figure['label']} | {values} | {within(figure)} |"


def within(figure: Mapping[str, Any]) -> str:
    """Which of its two bounds a figure keeps to: its own, or twice the real runs' spread."""
    if not figure["is_within"]:
        return "**neither**"
    is_own = abs(figure["error"]) <= figure["bound"]
    return f"{figure['bound']:.0%}" if is_own else f"twice {figure['spread']:.1%}"


def scenario_of(name: str) -> Path:
    """The workload's file."""
    return HERE / "scenarios" / f"{name}.yaml"


def simbatch(*arguments: str) -> int:
    """Run a command, its output shown as it comes; 1 is a figure outside its bound."""
    program = [sys.executable, "-m", "simbatch", *arguments]
    code = subprocess.run(program, env={**STEADY, **os.environ}, check=False).returncode
    if code not in (0, 1):
        raise subprocess.CalledProcessError(code, program)
    return code


def main() -> None:
    """The whole loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("build", "accuracy"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--budget-minutes", type=float, default=1, help="of each round's profile")
    given = parser.parse_args()
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    loop = Loop(given.output, budget_minutes=given.budget_minutes)
    loop.profile()  # the rates rest on two starts: one may meet a slow minute
    for number in range(1, given.rounds + 1):
        loop.round(number)
    code = loop.finish(given.rounds)
    print("\n".join(loop.table()))
    sys.exit(code)


if __name__ == "__main__":
    main()
