"""Traces as JSON lines: mooncake, vLLM's timed_trace, and ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_value
from simbatch.sim.workload.traces import values
from simbatch.sim.workload.traces.rows import (
    BATCH_HASHES,
    BATCH_ROWS,
    Batch,
    Columns,
    assemble,
    check_header,
    line_place,
)
from simbatch.sim.workload.traces.text import text_errors

Row = dict[str, Any]
MEND = "complete or remove the line if the file was cut off, or check the format"

TIMED_TRACE = Columns("timestamp", "input_length", "output_length", hash_ids="hash_ids")


class LinesReader:
    """One JSON object a line; blank lines are passed over."""

    def __init__(self, path: Path, columns: Columns, ps_per_unit: int, hash_block_tokens: int) -> None:
        self._path, self.columns, self._ps_per_unit = path, columns, ps_per_unit
        self.place = line_place(path)
        self.hash_block_tokens = hash_block_tokens
        self.ignored: set[str] = set()
        with text_errors(path):
            _, first = next(self._rows(), (0, {}))  # its mistakes before anything is simulated
        self.present = {name for name in columns if name is not None and first.get(name) is not None}

    def _rows(self) -> Iterator[tuple[int, Row]]:
        required = self.columns.required
        known = set(self.columns)
        with self._path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                stripped = line.strip()
                if not stripped:
                    continue
                row = json_value(stripped, self._path, line=number, mend=MEND)
                if not isinstance(row, dict):
                    rule = "must be one JSON object a line: {...}"
                    raise UserError(Problem(self.place(number, ""), rule, row, "check the format"))
                if not all(name in row for name in required):
                    check_header(list(row), self.columns, f"{self._path}:{number}")
                if not row.keys() <= known:
                    self.ignored |= row.keys() - known
                yield number, row

    def batches(self) -> Iterator[Batch]:
        """Read the file from its start."""
        lines: list[int] = []
        rows: list[Row] = []
        num_hashes = 0
        hash_name = self.columns.hash_ids
        with text_errors(self._path):
            for line, row in self._rows():
                lines.append(line)
                rows.append(row)
                hashes = row.get(hash_name) if hash_name else None
                num_hashes += len(hashes) if isinstance(hashes, list) else 0
                if len(rows) == BATCH_ROWS or num_hashes > BATCH_HASHES:
                    yield self._batch(lines, rows)
                    lines, rows, num_hashes = [], [], 0
        if rows:
            yield self._batch(lines, rows)

    def _batch(self, lines: list[int], rows: list[Row]) -> Batch:
        def find(name: str) -> Sequence[object] | None:
            found = [row.get(name) for row in rows]
            return None if found.count(None) == len(found) and name not in self.columns.required else found

        times = values.times(self._ps_per_unit)
        return assemble(self.columns, self.place, times, lines, find, typed=True)
