"""Traces as tables: CSV, separated by commas, semicolons, tabs or bars, and parquet, of any format's columns.

A CSV is read in blocks of whole lines. pyarrow parses a block at once; one that it does not take whole is parsed field
by field, which says where and what is wrong with it, or takes what pyarrow does not (`374.0` for a whole number). In
parquet `usage.prompt_tokens` is a field of a struct.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS
from simbatch.sim.workload.chunk import CHUNK_SIZE
from simbatch.sim.workload.files import open_binary, text_errors
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Head, Reading, RowBatch, assemble, line_place
from simbatch.sim.workload.traces.times import Times

_FIELD_LIMIT = 1 << 24  # characters; a long prompt's hash_ids are one field
_BLOCK_BYTES = 1 << 21
_LONGEST = 1 << 26  # bytes of a block that a quote holds open
_SEPARATORS = ",;\t|"
_BATCH_ROWS_WITH_HASHES = 1024  # of parquet: a row of a long prompt has hundreds
_BIG_DIGITS = 16  # an integer of so many digits (Unix time in ns) is more than a double holds

Lines = tuple[int, bytes]  # number of the first line, whole lines


def head_of_table(path: Path) -> Head | None:
    """The header and the first row; None for an empty file."""
    with text_errors(path):
        texts = ((line, block.decode()) for line, block in _blocks(path))
        line, text = next(texts, (1, ""))
        start = next((row for row in text.splitlines() if row.strip()), "")
        delimiter = max(_SEPARATORS, key=start.count)
        rows = (row for at, part in chain([(line, text)], texts) for row in _fields(path, at, part, delimiter))
        number, header = next(rows, (1, []))
        _, first = next(rows, (0, [])) if header else (0, [])
    if not header:
        return None
    names = [name.strip() for name in header]
    return Head("csv", names, dict(zip(names, map(str.strip, first), strict=False)), f"{path}:{number}", delimiter)


def _blocks(path: Path) -> Iterator[Lines]:
    """Whole lines in blocks, with the number of their first; a quoted field is never cut."""
    line, rest = 1, b""
    with open_binary(path) as file:
        while read := file.read(_BLOCK_BYTES):
            data = (rest + read).removeprefix(b"\xef\xbb\xbf") if line == 1 else rest + read
            cut = data.rfind(b"\n") + 1
            block, rest = data[:cut], data[cut:]
            if not cut or (block.count(b'"') % 2 and len(data) < _LONGEST):
                rest = data
                continue
            yield line, block
            line += block.count(b"\n")
    if rest:
        yield line, rest.removeprefix(b"\xef\xbb\xbf") if line == 1 else rest


def _fields(path: Path, line: int, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank."""
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield line + reader.line_num - 1, row
    except csv.Error as error:
        place, mend = f"{path}:{line + reader.line_num - 1}", "check the quotes here and above, or the format"
        raise UserError(Problem(place, f"not valid CSV: {error}", mend=mend)) from None


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


class _Table:
    """A file whose columns have names of their own; `_index`: where those that mean something stand."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading = path, reading
        self.columns, self.clock = reading.columns, reading.clock
        self.place = line_place(path)
        names = reading.head.names
        self._index = {name: names.index(name) for name in self.columns if name is not None and name in names}
        self.present = set(self._index)
        self.ignored = set(names) - self.present - {""}  # pandas' index has no name
        self.hash_block_tokens = reading.hash_block_tokens if self.columns.hash_ids in self._index else 0


class CsvReader(_Table):
    """A CSV file with a header line; tolerates a byte order mark, any line ends, blank lines and quotes."""

    def __init__(self, path: Path, reading: Reading) -> None:
        super().__init__(path, reading)
        self._width = len(reading.head.names)
        arrival = str(reading.head.row.get(self.columns.arrival or "", ""))
        self.clock.decimal_comma = reading.head.delimiter != "," and "," in arrival
        if arrival:
            self.clock.tell_unit(arrival)
        self._arrival_type = self._type_of(arrival)

    def batches(self) -> Iterator[RowBatch]:
        """Read the file from its start."""
        header_line = int(self._reading.head.place.rpartition(":")[2])
        with text_errors(self._path):
            for first, block in _blocks(self._path):
                line, data = first, block
                if first <= header_line:
                    skipped = header_line - first + 1
                    data = block.split(b"\n", skipped)[-1] if block.count(b"\n") >= skipped else b""
                    line = header_line + 1
                if not data.isascii():
                    block.decode()  # what is not UTF-8 is said, wherever it stands
                if not data.strip():
                    continue
                fast = self._by_arrow(line, data)
                yield from self._by_fields(line, data.decode()) if fast is None else fast.parts(CHUNK_SIZE)

    def count(self) -> int:
        """All rows of the file, whose values are not looked at."""
        delimiter = self._reading.head.delimiter
        return sum(_num_rows(self._path, block, delimiter) for _, block in _blocks(self._path)) - 1  # the header's

    def _type_of(self, arrival: str) -> Any:
        import pyarrow as pa

        if self.clock.unit == "iso":
            has_zone = arrival.endswith(("Z", "z")) or arrival[-6:-5] in "+-" or arrival[-3:-2] in "+-"
            return pa.timestamp("ns", tz="UTC" if has_zone and len(arrival) > 11 else None)
        return pa.int64() if arrival.isdigit() and len(arrival) >= _BIG_DIGITS else pa.float64()

    def _by_arrow(self, line: int, data: bytes) -> RowBatch | None:
        """A block at once; None where a value, a row or a line is not plain."""
        import pyarrow as pa
        import pyarrow.csv as pc

        columns = self.columns
        kinds = {columns.arrival: self._arrival_type, columns.prompt: pa.int64(), columns.output: pa.int64()}
        types = {str(i): kinds.get(name, pa.string()) for name, i in self._index.items()}
        is_unclear = columns.arrival is not None and self.clock.unit is None  # the first row has no time
        if is_unclear or b"0x" in data or b"0X" in data:  # a number to pyarrow
            return None
        names = list(map(str, range(self._width)))
        try:
            table = pc.read_csv(
                io.BytesIO(data),
                pc.ReadOptions(column_names=names, use_threads=False, block_size=len(data)),
                pc.ParseOptions(delimiter=self._reading.head.delimiter, newlines_in_values=b'"' in data),
                pc.ConvertOptions(
                    column_types=types,
                    include_columns=list(types),
                    null_values=[],
                    strings_can_be_null=False,
                    decimal_point="," if self.clock.decimal_comma else ".",
                ),
            )
        except pa.ArrowException:
            return None
        if table.num_rows != data.count(b"\n") + (not data.endswith(b"\n")) or not table.num_rows:
            return None
        lengths = {name: _array(table.column(str(self._index[name]))) for name in columns[1:3] if name is not None}
        if any(tokens.min() < 0 or tokens.max() > MAX_TOKENS for tokens in lengths.values()):
            return None
        times: Times | None = None
        if columns.arrival is not None:
            moments = _array(table.column(str(self._index[columns.arrival])))
            times = (self.clock.from_ns if self.clock.unit == "iso" else self.clock.from_numbers)(moments)
            if times is None:
                return None

        rest = {
            name: table.column(str(i)) for name, i in self._index.items() if name not in (*lengths, columns.arrival)
        }
        found = lengths | {name: column.to_pylist() for name, column in rest.items()}
        return assemble(self._reading, self.place, range(line, line + table.num_rows), found, times=times)

    def _by_fields(self, line: int, text: str) -> Iterator[RowBatch]:
        rows = list(_fields(self._path, line, text, self._reading.head.delimiter))
        for first in range(0, len(rows), BATCH_ROWS):
            part = rows[first : first + BATCH_ROWS]
            yield self._batch([number for number, _ in part], [row for _, row in part])

    def _batch(self, lines: list[int], rows: list[list[str]]) -> RowBatch:
        if set(map(len, rows)) != {self._width}:
            i = next(i for i, row in enumerate(rows) if len(row) != self._width)
            rule = f"has {len(rows[i])} fields, and the header has {self._width}"
            raise UserError(Problem(self.place(lines[i], "row"), rule, ",".join(rows[i]), "complete or remove the row"))
        fields = list(zip(*rows, strict=True))
        return assemble(self._reading, self.place, lines, {name: fields[i] for name, i in self._index.items()})


class ParquetReader(_Table):
    """A parquet file; its rows count from 1 in messages."""

    def batches(self) -> Iterator[RowBatch]:
        """Read the file from its start."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = _BATCH_ROWS_WITH_HASHES if self.hash_block_tokens else BATCH_ROWS
        line = 1
        try:
            with pq.ParquetFile(self._path) as file:
                for record in file.iter_batches(batch_size=size, columns=list(self._index)):
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
        arrival, *lengths = self.columns[:3]
        columns = {name: column for name, column in _flat(record).items() if name in self._index}
        times = None if arrival is None else self._times(columns[arrival])
        whole = {name: _whole(columns[name]) for name in lengths if name in columns}
        found = {name: column.to_pylist() for name, column in columns.items() if whole.get(name) is None}
        found |= {name: numbers for name, numbers in whole.items() if numbers is not None}
        return assemble(self._reading, self.place, range(line, line + record.num_rows), found, times=times)

    def _times(self, column: Any) -> Times | None:
        """Those of a typed column; None where they are to be looked at one by one."""
        import pyarrow as pa

        if column.null_count or not len(column):
            return None
        if pa.types.is_timestamp(column.type):
            self.clock.unit = "iso"
            return self.clock.from_ns(_array(column.cast(pa.timestamp("ns"))))
        if self.clock.tell_unit(column[0].as_py()) == "iso":
            return None
        numbers = _array(column.cast(pa.float64())) if pa.types.is_floating(column.type) else _whole(column)
        return None if numbers is None else self.clock.from_numbers(numbers)


def _whole(column: Any) -> NDArray[Any] | None:
    """Integers as 64 bits; None where it has others, or none."""
    import pyarrow as pa

    is_whole = pa.types.is_integer(column.type) and not column.null_count and len(column) > 0
    return _array(column.cast(pa.int64())) if is_whole else None


def _array(column: Any) -> NDArray[Any]:
    """Numbers or times of 64 bits, as they lie in memory; pyarrow's `to_numpy` would import pandas, 0.2 s."""
    import pyarrow as pa

    kind = np.float64 if column.type == pa.float64() else np.int64
    chunks: Any = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = (np.frombuffer(part.buffers()[1], kind, len(part), 8 * part.offset) for part in chunks)
    return np.concatenate([*parts])


def _num_rows(path: Path, block: bytes, delimiter: str) -> int:
    if b'"' in block:  # a field may hold line ends
        return sum(1 for _ in _fields(path, 1, block.decode(), delimiter))
    return sum(map(bool, map(bytes.strip, block.splitlines())))
