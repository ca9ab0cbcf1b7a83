"""Traces as CSV: azure, burstgpt, and ours."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

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
from simbatch.sim.workload.traces.values import Kind, TimestampParser, never

_FIELD_LIMIT = 1 << 24  # characters; a long prompt's hash_ids are one field

AZURE = Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = Columns("Timestamp", "Request tokens", "Response tokens")
OURS = Columns(
    "arrival_s",
    "num_prompt_tokens",
    "num_output_tokens",
    request_id="request_id",
    priority="priority",
    tenant="tenant",
    hash_ids="hash_ids",
    predicted_output_tokens="predicted_output_tokens",
)


class TableReader:
    """A CSV file with a header line; `ps_per_unit` None means that times are timestamps.

    Tolerates a byte order mark, any line ends, blank lines and quotes.
    """

    def __init__(self, path: Path, columns: Columns, ps_per_unit: int | None, hash_block_tokens: int) -> None:
        self._path, self.columns, self._ps_per_unit = path, columns, ps_per_unit
        self.place = line_place(path)
        with text_errors(path):
            line, self._header = next(self._rows(), (1, []))
        if not self._header:
            raise UserError(
                Problem(str(path), "the trace has no requests: the file is empty", mend="name another file")
            )
        self._index = check_header(self._header, columns, self.place(line, ""))
        self.present = set(self._index)
        self.ignored = set(self._header) - self.present
        self.hash_block_tokens = hash_block_tokens if columns.hash_ids in self._index else 0

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each row that is not blank, the header first."""
        csv.field_size_limit(_FIELD_LIMIT)
        with self._path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                mend = "check the quotes here and above, or the format"
                raise UserError(
                    Problem(self.place(reader.line_num, ""), f"not valid CSV: {error}", mend=mend)
                ) from None

    def batches(self) -> Iterator[Batch]:
        """Read the file from its start."""
        times = Kind(never, TimestampParser()) if self._ps_per_unit is None else values.times(self._ps_per_unit)
        with text_errors(self._path):
            rows = self._rows()
            next(rows)
            while taken := self._take(rows):
                yield self._batch([line for line, _ in taken], [row for _, row in taken], times)

    def _take(self, rows: Iterator[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
        if not self.hash_block_tokens:
            return list(itertools.islice(rows, BATCH_ROWS))
        taken, num_characters = [], 0
        for line, row in rows:
            taken.append((line, row))
            num_characters += sum(map(len, row))
            if len(taken) == BATCH_ROWS or num_characters > 4 * BATCH_HASHES:
                break
        return taken

    def _batch(self, lines: list[int], rows: list[list[str]], times: Kind[int]) -> Batch:
        width = len(self._header)
        if set(map(len, rows)) != {width}:
            i = next(i for i, row in enumerate(rows) if len(row) != width)
            rule = f"has {len(rows[i])} fields, and the header has {width}"
            raise UserError(Problem(self.place(lines[i], "row"), rule, ",".join(rows[i]), "complete or remove the row"))
        fields = list(zip(*rows, strict=True))

        def find(name: str) -> Sequence[object] | None:
            return fields[self._index[name]] if name in self._index else None

        return assemble(self.columns, self.place, times, lines, find)
