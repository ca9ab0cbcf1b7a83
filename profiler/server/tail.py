"""A recorder's file while it is being written: what has come since the last look."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import IO, Any

from simbatch.profiler.records.lines import MEND, RecordedRequest, RecordedStep, item_of
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_object

WAIT_S = 10.0  # for the first lines: they are there before the server is
QUIET_S = 0.15  # the recorder looks 20 times a second for lines to write


class Tail:
    """Follows one server's file across its rotations; `facts` are what its first line says."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path, self._rest = path, b""
        self._first, self._kept = b"", list[bytes]()
        self.facts: dict[str, Any] = {}
        self._file = self._open()
        if from_end:
            try:
                self.new()
            except UserError:
                self.close()
                raise
            self._kept.clear()

    def new(self) -> list[RecordedStep | RecordedRequest]:
        """Steps and requests, in the order of the file."""
        lines = self._lines()
        found: list[RecordedStep | RecordedRequest] = []
        for line in lines:
            content = json_object(line.decode(errors="replace"), self._path, mend=MEND, what="a line")
            if "recorder" in content:
                self._first = line
                self.facts = content | {key: value for key, value in self.facts.items() if key not in content}
            elif "memory" in content:
                self.facts |= content["memory"]
            else:
                self._kept.append(line)
                found.append(item_of(content, str(self._path)))
        return found

    def cut(self) -> bytes:
        """The lines that came since the last cut, below the server's first one: a file of their own."""
        kept, self._kept = self._kept, []
        return b"\n".join([self._first, *kept, b""])

    async def settled(self) -> list[RecordedStep | RecordedRequest]:
        """The same, once nothing more comes: what a client has just received is in the file a moment later."""
        found, last_s = self.new(), time.monotonic()
        while time.monotonic() - last_s < QUIET_S:
            await asyncio.sleep(QUIET_S / 5)
            if more := self.new():
                found += more
                last_s = time.monotonic()
        return found

    def close(self) -> None:
        """No more looks."""
        self._file.close()

    def _open(self) -> IO[bytes]:
        end_s = time.monotonic() + WAIT_S
        while not (self._path.exists() and self._path.stat().st_size):
            if time.monotonic() > end_s:
                rule = "no steps are written there"
                mend = "start the server with the recorder, or `simbatch serve` with --steps, and name its file"
                raise UserError(Problem(str(self._path), rule, mend=mend))
            time.sleep(0.1)
        return self._path.open("rb")

    def _lines(self) -> list[bytes]:
        data = self._rest + self._file.read()
        if os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino:  # it has become FILE.1
            data += self._file.read()
            self._file.close()
            self._file = self._path.open("rb")
            data += self._file.read()
        *lines, self._rest = data.split(b"\n")
        return [line for line in lines if line]
