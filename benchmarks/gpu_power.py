"""What our H100 drew, a line through three runs of a server, two others predicted: `python -m benchmarks.gpu_power`.

Watts are read twice a second (gpu-state.csv.gz in ../shared/gpu/h100-vllm-0.32/serve; --recorded) and averaged over
the middle of each run, from a fifth to four fifths of it; tokens are those of the requests sent then, in and out; how
long the device is busy is simulated by the measured profile. c1, p8 and p22 are fitted on, c16 and p16 are not.
"""

from __future__ import annotations

import argparse
import gzip
import json
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from benchmarks.first_look import ENGINE, FILL_S, MEASURED, RECORDED, SERVED, Run, recorded_run, require, written_trace
from simbatch import Scenario, simulate
from simbatch.sim.cost.sections import GpuPower

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
    times, watts = states(folder)
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


def states(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and watts of the GPU's readings."""
    lines = gzip.decompress((folder / "serve" / "gpu-state.csv.gz").read_bytes()).decode().splitlines()
    rows = [line.split(", ") for line in lines]
    times = [datetime.strptime(row[0], "%Y/%m/%d %H:%M:%S.%f").timestamp() for row in rows]
    return np.array(times), np.array([float(row[2]) for row in rows])


def idle_watts(folder: Path) -> float:
    """The median of the readings between runs, the model loaded: those below 150 W at the full clock."""
    lines = gzip.decompress((folder / "serve" / "gpu-state.csv.gz").read_bytes()).decode().splitlines()
    rows = [line.split(", ") for line in lines]
    return float(np.median([float(row[2]) for row in rows if float(row[1]) == LOADED_MHZ and float(row[2]) < 150]))


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


def main() -> None:
    """Print the line and its errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="the folder of the recorded runs")
    print(fitted_power(require(parser.parse_args().recorded)).model_dump_json(indent=2))


if __name__ == "__main__":
    main()
