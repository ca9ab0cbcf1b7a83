"""Parallel efficiency of a 1,000-cell sweep: time on one process / (n x time on n), everything included.

    .venv/bin/python -m benchmarks.sweep_efficiency [--processes 2] [--cells 1000] [--requests 1000]

The cells are those of scenarios/bursty.yaml with 10 numbers of seats under 100 seeds. Each time is that of the whole
command as a user starts it: reading, checking, starting workers, simulating, writing every cell and the summary (which
must be the same to the byte). On one process there is no worker: the cells run in the command itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENARIO = Path(__file__).parents[1] / "scenarios" / "bursty.yaml"
NUM_SEATS = 10
SETTINGS = f"engine.max_num_seqs={','.join(str(12 + 4 * i) for i in range(NUM_SEATS))}"


def seconds(folder: Path, jobs: int, replications: int, num_prompts: int) -> float:
    """Of one whole command."""
    command = [sys.executable, "-m", "simbatch", "sweep", str(SCENARIO), "--over", SETTINGS]
    command += ["--replications", str(replications), "--set", f"workload.num_prompts={num_prompts}"]
    begin_s = time.perf_counter()
    subprocess.run([*command, "--jobs", str(jobs), "-o", str(folder), "--quiet"], check=True)
    return time.perf_counter() - begin_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    given = parser.parse_args()
    replications = given.cells // NUM_SEATS
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        one_s = seconds(one, 1, replications, given.requests)
        many_s = seconds(many, given.processes, replications, given.requests)
        files = [path.relative_to(one) for path in one.rglob("*") if path.suffix in (".json", ".csv", ".parquet")]
        assert len(files) == NUM_SEATS * replications + 3
        assert all((one / file).read_bytes() == (many / file).read_bytes() for file in files)
    efficiency = one_s / (given.processes * many_s)
    print(
        f"{NUM_SEATS * replications:,} cells of {given.requests:,} requests: {one_s:.1f} s on one process, "
        f"{many_s:.1f} s on {given.processes}, parallel efficiency {efficiency:.2f}"
    )


if __name__ == "__main__":
    main()
