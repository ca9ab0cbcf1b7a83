"""The log of a server's steps: JSON lines, written beside the engine's thread.

A line a step, times in s of `time.monotonic`: s0 and s1 schedule(), x0 and x1 the launch, m0 and m1 that of sampling,
d0 and d1 the device's begin and end, u0 and u1 the update. So S is s0, L is m1, D is d1, U is u1. Of the batch: nd
decodes with ctx computed tokens, pre [[computed, tokens], ...] of prefills, batch [[request, tokens, computed], ...].
After schedule(): run, wait and pree count running, waiting and preempted requests, free is of blocks. preempted and
finished name requests. A line for each request taken in: add names it, q is when it had reached the engine's queue, t
and t1 are the begin and the end of taking it in, n counts its prompt's tokens.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from pathlib import Path
from typing import Any

EVERY_S = 0.1


class StepLog:
    """Lines to a file, ten times a second."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - open as long as the engine is
        self._lines = deque[dict[str, Any]]()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name="simbatch-steps", daemon=True)
        self._thread.start()

    def note(self, line: dict[str, Any]) -> None:
        """Keep a line; nothing is written on the caller's thread."""
        self._lines.append(line)

    def close(self) -> None:
        """Write the rest."""
        self._is_closed.set()
        self._thread.join()
        self._write()
        self._file.close()

    def _write_often(self) -> None:
        while not self._is_closed.wait(EVERY_S):
            self._write()

    def _write(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
            self._file.write(json.dumps(rounded) + "\n")
            self._is_closed.wait(0.0003)  # the engine's thread goes first
        self._file.flush()
