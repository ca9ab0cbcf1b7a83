"""Scenarios in a line, as wide as a paper's or small enough to sweep over, and runs of an engine by hand.

Also policies that do to a worker what the world does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simbatch import Policy, Result, Scenario, simulate
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.plugins.testing import MS, ListSource, Row
from simbatch.sim.scheduler.config import EngineConfig

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


INLINE = {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}}
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
    profile: Any,
    num_prompts: int,
    rate: float | None,
    *,
    seed: int = 0,
    engine: Any = None,
    slo: Any = None,
    **more: Any,
) -> Scenario:
    """`num_prompts` requests at `rate` a second, or all at once without one; what is `more` is of the workload."""
    arrival = {"arrival": {"process": "all_at_once"}} if rate is None else {"request_rate": rate}
    workload = {"num_prompts": num_prompts, **arrival, **more}
    sections = {"engine": engine or {}, "workload": workload, "slo": slo or {}, "seed": seed}
    return Scenario.from_dict({"profile": profile, **sections})


def under(scenario: Scenario, policy: str, **parameters: Any) -> Result:
    """The scenario under a policy that ships."""
    return simulate(scenario, POLICIES.load(policy, parameters, folder=Path()))


STEPS = LinearCost(10 * MS, 0, MS, 0)


def serve(
    policy: Policy, rows: list[Row], *, cost: LinearCost = STEPS, tenants: list[str] | None = None, **settings: Any
) -> RunRecord:
    """Steps of 10 ms plus 1 ms a decode; 16 seats."""
    limits = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "max_model_len": 256, "num_gpu_blocks": 1000}
    config = EngineConfig(**{**limits, "enable_prefix_caching": False, **settings})
    return run(config, cost, policy, ListSource(rows, tenants=tenants), steps=True)


def all_at_once(n: int, output: int = 5) -> list[Row]:
    return [(0, 4, output, 0, ()) for _ in range(n)]


def batch_sizes(record: RunRecord) -> list[int]:
    return [len(row.scheduled) for row in record.steps or []]


def in_steps(record: RunRecord) -> list[list[int]]:
    """Who is in each step."""
    return [[index for index, _, _ in row.scheduled] for row in record.steps or []]


def tokens(record: RunRecord) -> list[dict[int, int]]:
    """By request, step by step."""
    return [{index: n for index, n, _ in row.scheduled} for row in record.steps or []]


def in_order(record: RunRecord) -> list[int]:
    """Requests as they get their seats."""
    return record.requests.scheduled_ps.argsort(kind="stable").tolist()
