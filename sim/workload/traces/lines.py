"""Traces as JSON lines: mooncake, vLLM's timed_trace, and ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
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
from simbatch.sim.workload.traces.values import BadValueError

Row = dict[str, Any]

TIMED_TRACE = Columns("timestamp", "input_length", "output_length", hash_ids="hash_ids")


def _no_constants(name: str) -> None:
    raise BadValueError(f"{name} is not a JSON number", "write a finite number")


def once(pairs: list[tuple[str, Any]]) -> Row:
    """An object whose keys stand once; BadValueError for one that stands twice."""
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadValueError(f"the key {twice!r} stands twice", "keep one of them")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=once, parse_constant=_no_constants)


def decode_json(text: str, place: str) -> Any:
    """A JSON text's value; UserError with line and column, from `place` (file:line) on."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        shown = text[max(error.pos - 20, 0) : error.pos + 20]
        mend = "complete or remove the line if the file was cut off, or check the format"
        raise UserError(Problem(f"{place}:{error.colno}", f"not valid JSON: {error.msg}", shown, mend)) from None
    except BadValueError as error:
        raise UserError(Problem(place, error.rule, mend=error.mend)) from None
    except RecursionError:
        raise UserError(Problem(place, "JSON is nested too deeply", mend="one flat object a line")) from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(Problem(place, f"not valid JSON: {error}", mend="check the line")) from None


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
                row = decode_json(stripped, f"{self._path}:{number}")
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
