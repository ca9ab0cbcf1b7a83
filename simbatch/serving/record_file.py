"""A recorder's file: where it is, and that it does not grow without end.

Full, it becomes FILE.1, FILE.1 becomes FILE.2, and the oldest goes. Each part begins with the same line, the server's,
so each can be read alone. Lines are handed to the operating system one by one: a process that is killed loses none that
were written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.paths import user_path

RECORD = "record"  # the key of --additional-config '{"simbatch": {"record": FILE}}'
VARIABLE = "SIMBATCH_RECORD"


def record_file(additional_config: object, data_parallel_rank: int = 0) -> Path:
    """The file of this engine; UserError where none is named.

    --additional-config goes before the environment. A further engine of data parallelism has its rank in the name.
    """
    ours = additional_config.get("simbatch") if isinstance(additional_config, Mapping) else None
    given = ours.get(RECORD) if isinstance(ours, Mapping) else None
    place = f"--additional-config simbatch.{RECORD}" if given is not None else VARIABLE
    name = os.environ.get(VARIABLE) if given is None else given
    if not isinstance(name, str) or not name:
        rule = "must name the file that the steps are written to"
        raise UserError(Problem(place, rule, NOTHING if name is None else name, f"set {VARIABLE}=steps.jsonl"))
    path = user_path(Path.cwd(), name)
    return path.with_name(f"{path.stem}.dp{data_parallel_rank}{path.suffix}") if data_parallel_rank else path


PART_BYTES = 64 * 2**20  # some 300,000 steps
NUM_PARTS = 16
FORMAT = 1


class RotatingFile:
    """Where lines go; what an earlier server left there becomes the first older part.

    `facts` is plain data for the first line of each part. Raises UserError when the file cannot be written.
    """

    def __init__(
        self, path: Path, facts: Mapping[str, Any], *, part_bytes: int = PART_BYTES, num_parts: int = NUM_PARTS
    ) -> None:
        self.path, self._part_bytes, self._num_parts = path, part_bytes, num_parts
        stamp = {"recorder": FORMAT, "pid": os.getpid(), "t": time.monotonic(), "wall": time.time()}
        self._first_line = json.dumps({**stamp, **facts}).encode() + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                self._shift()
            self._open()
        except OSError as error:
            rule = f"the steps cannot be written there: {error.strerror or error}"
            raise UserError(Problem(str(path), rule, mend="name another file")) from None

    def write(self, line: str) -> None:
        """Add a line; OSError where the disk is full."""
        data = line.encode() + b"\n"
        if self._num_bytes + len(data) > self._part_bytes:
            self._file.close()
            self._shift()
            self._open()
        self._num_bytes += self._file.write(data)

    def close(self) -> None:
        """No more lines come."""
        self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("wb", buffering=0)
        self._num_bytes = self._file.write(self._first_line)

    def _shift(self) -> None:
        for number in range(self._num_parts - 1, 0, -1):
            older = self.path if number == 1 else part(self.path, number - 1)
            if older.exists():
                older.replace(part(self.path, number))


def part(path: Path, number: int) -> Path:
    """The `number`-th older part of a file."""
    return path.with_name(f"{path.name}.{number}")
