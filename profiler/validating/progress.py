"""How far the replays are, on stderr; a line now and then, since anything livelier would take time from the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable

EVERY_S = {True: 2.0, False: 15.0}  # a person looks; a file


def progress(num_runs: int, num_requests: int, run_s: float, *, quiet: bool) -> Callable[[int, int, float], None]:
    """What to tell the run's number, its ended requests and its time (s); `run_s` is how long a run should last."""
    is_person = sys.stderr.isatty()
    last_s = float("-inf")
    last_run = 0

    def tell(number: int, num_ended: int, elapsed_s: float) -> None:
        nonlocal last_s, last_run
        is_due = number != last_run or elapsed_s - last_s >= EVERY_S[is_person] or num_ended == num_requests
        if quiet or not is_due:
            return
        last_run, last_s = number, elapsed_s
        left_s = max(0.0, run_s - elapsed_s) + (num_runs - number) * run_s
        minutes, seconds = divmod(round(left_s), 60)
        run = f"run {number} of {num_runs}"
        text = f"{run}: {num_ended:,} of {num_requests:,} requests, about {minutes}:{seconds:02d} left"
        end = "\n" if not is_person or num_ended == num_requests else ""
        print(f"\r{text:<78}" if is_person else text, end=end, file=sys.stderr, flush=True)

    return tell
