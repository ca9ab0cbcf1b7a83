"""An SRE's question from an empty folder, timed: `python -m benchmarks.sre_question`.

How many H100, H200 or L40S for Qwen3-32B, questions about documents, 40 requests a second at peak, P99 TTFT 2 s and
P99 TPOT 60 ms? One command, bands included; exit code 1 when it takes longer than five minutes. docs/plan.md has the
time on a machine of two cores that did nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

MOST_S = 300.0
ASKED = "--model Qwen3-32B --preset rag --rate 40 --gpus h100,h200,l40s"
QUESTION = f"plan {ASKED} --limit p99_ttft_ms=2000 --limit p99_tpot_ms=60"


def main() -> None:
    """Ask, and print the answer, the simulations and the seconds."""
    with TemporaryDirectory() as empty:
        begin_s = time.monotonic()
        command = [sys.executable, "-m", "simbatch", *QUESTION.split(), "--quiet", "-o", empty]
        subprocess.run(command, cwd=empty, check=True)
        seconds = time.monotonic() - begin_s
        answer, run = (json.loads((Path(empty) / name).read_text()) for name in ("plan.json", "run.json"))
    print(answer["answer"])
    print(f"{run['simulations']} simulations, {seconds:.0f} s")
    sys.exit(seconds > MOST_S)


if __name__ == "__main__":
    main()
