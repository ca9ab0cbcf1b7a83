"""Traces as parquet: ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.traces import values
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Batch, Columns, assemble, check_header, line_place

_BATCH_ROWS_WITH_HASHES = 1024  # a row of a long prompt has hundreds


class ParquetReader:
    """A parquet file; its rows count from 1 in messages."""

    def __init__(self, path: Path, columns: Columns, ps_per_unit: int, hash_block_tokens: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self.columns, self._ps_per_unit = path, columns, ps_per_unit
        self.place = line_place(path)
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            mend = "check the format; a file that was cut off looks like this"
            raise UserError(Problem(str(path), f"not valid parquet: {error}", mend=mend)) from None
        self._names = list(check_header(names, columns, str(path)))
        self.present = set(self._names)
        self.ignored = set(names) - self.present
        self.hash_block_tokens = hash_block_tokens if columns.hash_ids in self._names else 0

    def batches(self) -> Iterator[Batch]:
        """Read the file from its start."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        times = values.times(self._ps_per_unit)
        size = _BATCH_ROWS_WITH_HASHES if self.hash_block_tokens else BATCH_ROWS
        line = 1
        try:
            with pq.ParquetFile(self._path) as file:
                for record in file.iter_batches(batch_size=size, columns=self._names):
                    found = dict(
                        zip(record.schema.names, (column.to_pylist() for column in record.columns), strict=True)
                    )
                    lines = range(line, line + record.num_rows)
                    line += record.num_rows

                    def find(name: str, found: dict[str, list[object]] = found) -> Sequence[object] | None:
                        return found.get(name)

                    yield assemble(self.columns, self.place, times, lines, find, typed=True)
        except (pa.ArrowException, OSError) as error:
            mend = "the file is damaged: write it again"
            raise UserError(Problem(self.place(line, ""), f"not valid parquet: {error}", mend=mend)) from None
