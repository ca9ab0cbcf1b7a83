"""Differential fuzz: fresh random cases through vLLM's real scheduler and through ours, decision by decision.

`python -m parity.fuzz --vllm-python PYTHON [--cases 200] [--timing 100] [--sessions 60] [--seed N]`: PYTHON is the
interpreter of an environment with vLLM (its CPU build will do). Half of the cases are short of memory; those of
`--timing` drive vLLM's own engine loop on a virtual clock, with times of host and device, half of them asynchronous; in
those of `--sessions` a client sends each turn when others have ended, half of them with times. Cases that differ are
kept with vLLM's recording in `parity/failures`, where `make parity CASES=parity/failures` finds them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from parity.check import first_difference, load
from parity.random_cases import random_case, session_case, timed_session_case, timing_case

HERE = Path(__file__).parent
PROBE = HERE / "probe.py"
START_LIMIT_S, CASE_LIMIT_S = 120, 5  # a case takes 0.2 s, and 3 s where requests rotate until they are cut


def record(vllm_python: str, folder: Path, num_cases: int) -> None:
    """Let the real scheduler decide every case of the folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    limit_s = START_LIMIT_S + CASE_LIMIT_S * num_cases
    command = [vllm_python, str(PROBE), str(folder)]
    try:
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=limit_s)
        how, said = f"ended with {done.returncode}", done.stderr
    except subprocess.TimeoutExpired:
        how, said = f"did not end within {limit_s} s", ""
    missing = [path.stem for path in sorted(folder.glob("*.json")) if not path.with_suffix(".jsonl.gz").is_file()]
    if missing:
        sys.exit(f"vLLM's scheduler, driven by {vllm_python}, {how} at case {missing[0]}:\n{said[-3000:]}")


def main() -> int:
    """Make cases, record, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python"))
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--timing", type=int, default=100, help="cases with times of host and device beside them")
    parser.add_argument("--sessions", type=int, default=60, help="cases in which turns wait for the ends of others")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="printed, so that a failure can be repeated")
    options = parser.parse_args()
    kinds = f"{options.cases} cases of decisions, {options.timing} of times and {options.sessions} of sessions"
    print(f"{kinds} from seed {options.seed}, half of them short of memory", flush=True)
    failures, num_steps, num_preemptions = HERE / "failures", 0, 0
    num_same = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for kind, make, count in (
            ("case", random_case, options.cases),
            ("timed", timing_case, options.timing),
            ("sessions", session_case, options.sessions - options.sessions // 2),
            ("timed_sessions", timed_session_case, options.sessions // 2),
        ):
            for i in range(count):
                path = Path(folder) / f"{kind}{options.seed + i}.json"
                path.write_text(json.dumps(make(path.stem, options.seed + i)))
                paths.append(path)
        record(options.vllm_python, Path(folder), len(paths))
        for path in paths:
            recording = path.with_suffix(".jsonl.gz")
            lines = load(recording)
            case = json.loads(path.read_text()) | {"vllm_version": lines[0]["vllm"]}
            difference = first_difference(case, lines)
            num_same += difference is None
            num_steps += sum("i" in line for line in lines)
            num_preemptions += sum(len(line.get("pre", ())) for line in lines)
            if difference is not None:
                print(f"{path.stem}: the first step that differs\n{difference}")
                failures.mkdir(exist_ok=True)
                (failures / path.name).write_text(json.dumps(case))
                shutil.copy(recording, failures)
    print(f"{num_same} of {len(paths)} identical ({num_steps} steps, {num_preemptions} preemptions)")
    return 0 if num_same == len(paths) else 1


if __name__ == "__main__":
    sys.exit(main())
