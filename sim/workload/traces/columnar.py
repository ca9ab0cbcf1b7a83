"""Traces as parquet, of any format's columns; `usage.prompt_tokens` is a field of a struct."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Head, Reading, RowBatch, assemble, line_place
from simbatch.sim.workload.traces.times import Times

_BATCH_ROWS_WITH_HASHES = 1024  # a row of a long prompt has hundreds


def head_of_parquet(path: Path) -> Head:
    """The columns and the first row; UserError for what is no parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            first = next(file.iter_batches(batch_size=1), None) or pa.RecordBatch.from_pylist([], file.schema_arrow)
            columns = _flat(first)
            row = {name: column[0].as_py() for name, column in columns.items()} if first.num_rows else {}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        mend = "check the format; a file that was cut off looks like this"
        raise UserError(Problem(str(path), f"not valid parquet: {error}", mend=mend)) from None
    return Head("parquet", list(columns), row, str(path))


def _flat(record: Any) -> dict[str, Any]:
    """The columns by name, those within a struct behind a point; decimals as numbers."""
    import pyarrow as pa

    found: dict[str, Any] = {}
    for name, column in zip(record.schema.names, record.columns, strict=True):
        if pa.types.is_struct(column.type) and column.type.num_fields:
            inner = pa.RecordBatch.from_arrays(column.flatten(), [field.name for field in column.type])
            found |= {f"{name}.{key}": one for key, one in _flat(inner).items()}
        else:
            found[name] = column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
    return found


class ParquetReader:
    """A parquet file; its rows count from 1 in messages."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading
        self.columns, self.clock = reading.columns, reading.clock
        self.place = line_place(path)
        self._names = [name for name in self.columns if name is not None and name in reading.head.names]
        self.present = set(self._names)
        self.ignored = set(reading.head.names) - self.present
        self.hash_block_tokens = reading.hash_block_tokens if self.columns.hash_ids in self._names else 0

    def batches(self) -> Iterator[RowBatch]:
        """Read the file from its start."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = _BATCH_ROWS_WITH_HASHES if self.hash_block_tokens else BATCH_ROWS
        line = 1
        try:
            with pq.ParquetFile(self._path) as file:
                for record in file.iter_batches(batch_size=size, columns=self._names):
                    yield self._batch(record, line)
                    line += record.num_rows
        except (pa.ArrowException, OSError) as error:
            mend = "the file is damaged: write it again"
            raise UserError(Problem(self.place(line, ""), f"not valid parquet: {error}", mend=mend)) from None

    def count(self) -> int:
        """All rows of the file, whose values are not looked at."""
        import pyarrow.parquet as pq

        return int(pq.read_metadata(self._path).num_rows)

    def _batch(self, record: Any, line: int) -> RowBatch:
        columns = _flat(record)
        lengths = (self.columns.prompt, self.columns.output)

        def find(name: str) -> Sequence[object] | None:
            found = columns.get(name)
            if found is None:
                return None
            listed: Sequence[object] = _whole(found) if name in lengths and _is_whole(found) else found.to_pylist()
            return listed

        times = None if self.columns.arrival is None else self._times(columns[self.columns.arrival])
        lines = range(line, line + record.num_rows)
        return assemble(self._reading, self.place, lines, find, times=times)

    def _times(self, column: Any) -> Times | None:
        """Those of a typed column; None where they are to be looked at one by one."""
        import pyarrow as pa

        if column.null_count or not len(column):
            return None
        if pa.types.is_timestamp(column.type):
            self.clock.unit = "iso"
            return self.clock.from_ns(column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy())
        if self.clock.tell_unit(column[0].as_py()) == "iso":
            return None
        if pa.types.is_floating(column.type):
            return self.clock.from_numbers(column.to_numpy(zero_copy_only=False).astype(np.float64))
        return self.clock.from_numbers(_whole(column)) if _is_whole(column) else None


def _is_whole(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(column.type) and not column.null_count and len(column) > 0


def _whole(column: Any) -> Any:
    import pyarrow as pa

    return column.cast(pa.int64()).to_numpy()
