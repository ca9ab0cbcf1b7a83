"""A small scenario to sweep over, and policies that do to a worker what the world does.

Scenarios in which a policy's source is retold: profiles that ship, workloads near the paper's, scaled down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simbatch import Result, Scenario, simulate
from simbatch.sim.plugins.policy import POLICIES

WORKLOAD: dict[str, Any] = {
    "num_prompts": 30,
    "request_rate": 5,
    "prompt_len": {"distribution": "lognormal", "mean": 100, "cv": 0.5},
    "output_len": {"distribution": "lognormal", "mean": 20, "cv": 0.5},
}
DATA: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "workload": WORKLOAD,
    "slo": {"ttft_ms": 100},
    "seed": 3,
}
SEATS = [{"engine.max_num_seqs": n} for n in range(1, 13)]
YAML = """\
profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01, per_decode_seq_s: 0.001}}
workload:
  num_prompts: 30
  request_rate: 5
  prompt_len: {distribution: lognormal, mean: 100, cv: 0.5}
  output_len: {distribution: lognormal, mean: 20, cv: 0.5}
slo: {ttft_ms: 100}
seed: 3
"""

# Each simulation leaves a line in `runs`; the one with `seats` kills its process, every time or only the first.
POLICY = """
import os, signal
from pathlib import Path
from simbatch import Policy

HERE = Path(__file__).parent

class Watched(Policy):
    fatal_seats: int = 0
    again: bool = False

    def start(self, engine):
        super().start(engine)
        with (HERE / "runs").open("a") as file:
            file.write(f"{engine.max_num_seqs}\\n")
        if engine.max_num_seqs == self.fatal_seats:
            try:
                (HERE / "died").touch(exist_ok=self.again)  # of two at once only one dies
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

class Wrong(Policy):
    def seats(self, engine):
        return -1

class Exits(Policy):
    def start(self, engine):
        raise SystemExit(3)
"""


def toy(**changes: Any) -> Scenario:
    return Scenario.from_dict(DATA | changes, name="toy")


def watched(folder: Path, **params: Any) -> Scenario:
    (folder / "watched.py").write_text(POLICY)
    return Scenario.from_dict(DATA | {"policy": {"name": "watched.py:Watched", **params}}, folder=folder, name="toy")


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().splitlines())


Lengths = dict[str, Any]


def lognormal(mean: float, cv: float, longest: int) -> Lengths:
    return {"distribution": "lognormal", "mean": mean, "cv": cv, "max": longest}


def fixed(mean: int) -> Lengths:
    return {"distribution": "fixed", "mean": mean}


def uniform(low: int, high: int) -> Lengths:
    return {"distribution": "uniform", "min": low, "max": high}


# openchat_sharegpt4, the conversations of Sarathi-Serve's evaluation (table 2), as far as a lognormal tells them
CONVERSATIONS = {"prompt_len": lognormal(1730, 0.9, 8000), "output_len": lognormal(415, 0.5, 2000)}


def serving(
    profile: str, num_prompts: int, rate: float | None, *, seed: int = 0, engine: Any = None, **workload: Any
) -> Scenario:
    """`num_prompts` requests at `rate` a second, or all at once without one."""
    arrival = {"arrival": {"process": "all_at_once"}} if rate is None else {"request_rate": rate}
    return Scenario.from_dict(
        {
            "profile": profile,
            "engine": engine or {},
            "workload": {"num_prompts": num_prompts, **arrival, **workload},
            "seed": seed,
        }
    )


def under(scenario: Scenario, policy: str, **parameters: Any) -> Result:
    """The scenario under a policy that ships."""
    return simulate(scenario, POLICIES.load(policy, parameters, folder=Path()))
