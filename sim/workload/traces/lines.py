"""Traces as JSON: an object a line, or a list of objects, read whole; `usage.prompt_tokens` is a key within.

A row with a list `turns` (aiperf's multi_turn) is as many rows, each with what stands beside the list. A list may stand
in an object, alone among its values (`{"data": [...], "meta": {...}}`, as pages of an API have it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import json_value
from simbatch.sim.workload.files import open_binary, open_text, text_errors
from simbatch.sim.workload.traces.rows import BATCH_HASHES, BATCH_ROWS, Head, Reading, RowBatch, assemble, line_place
from simbatch.sim.workload.traces.texts import Texts

MEND = "complete or remove the line if the file was cut off, or check the format"
JsonRow = dict[str, Any]
_TURNS, _SESSION = "turns", "session_id"
_OF_FIRST = ("timestamp", "delay")  # what stands beside a list of turns and is not of all of them
_BLOCK = 1 << 20


def head_of_lines(path: Path, kind: str, texts: Texts | None = None) -> Head | None:
    """The keys of the first row, those of objects within it as `usage.prompt_tokens`; None for an empty file."""
    with text_errors(path):
        number, row = next(rows_of(path, kind, texts), (0, {}))
    flat = flattened(row)
    return Head(kind, list(flat), flat, f"{path}:{number}" if kind == "jsonl" else str(path)) if number else None


def flattened(row: JsonRow, depth: int = 3) -> JsonRow:
    """Objects within a row as keys with points."""
    flat: JsonRow = {}
    for key, value in row.items():
        inner = flattened(value, depth - 1) if isinstance(value, dict) and value and depth else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": found for name, found in inner.items()}
    return flat


def listed_in(value: object) -> list[Any] | None:
    """The list of objects that a document is, or the only one in it; None where there is none, or several."""
    if isinstance(value, dict):
        others = (one for key, one in value.items() if key != _TURNS)  # which are of one row
        lists = [one for one in others if isinstance(one, list) and one and isinstance(one[0], dict)]
        return lists[0] if len(lists) == 1 else None
    return value if isinstance(value, list) else None


def rows_of(path: Path, kind: str, texts: Texts | None = None) -> Iterator[tuple[int, JsonRow]]:
    """Each object with its number, from 1, and the turns that `texts` makes of it; UserError for what is none."""
    if kind == "list":
        with open_text(path) as file:
            found = json_value(file.read(), path, allow_nan=True)
        listed = listed_in(found)
        pairs: Iterator[tuple[int, Any]] = iter(enumerate([found] if listed is None else listed, 1))
    else:
        pairs = _lines(path)
    for number, row in pairs:
        place = f"{path}:{number}" if kind == "jsonl" else f"{path}[{number - 1}]"
        if not isinstance(row, dict):
            raise UserError(Problem(place, "must be one JSON object a line: {...}", row, "check the format"))
        turns = row.get(_TURNS)
        is_parted = isinstance(turns, list) and bool(turns) and all(isinstance(turn, dict) for turn in turns)
        parts = _parted(row, number) if is_parted else iter((row,))
        yield from ((number, part) for part in (parts if texts is None else texts.turns_of(list(parts), number, place)))


def _parted(row: JsonRow, number: int) -> Iterator[JsonRow]:
    """The turns of a row as rows of a session; one without a name has the row's number."""
    common = {_SESSION: f"#{number}"} | {key: value for key, value in row.items() if key != _TURNS}
    rest = {key: value for key, value in common.items() if key not in _OF_FIRST}
    for i, turn in enumerate(row[_TURNS]):
        yield (rest if i else common) | turn


def mentions(path: Path, names: Sequence[str]) -> bool:
    """Whether one of these keys stands anywhere in the file."""
    quoted = [f'"{name}"'.encode() for name in names]
    longest, rest = max(map(len, quoted)), b""
    with text_errors(path), open_binary(path) as file:
        while block := file.read(_BLOCK):
            rest = rest[-longest:] + block
            if any(name in rest for name in quoted):
                return True
    return False


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if stripped := line.strip():
                yield number, json_value(stripped, path, line=number, mend=MEND, allow_nan=True)


class LinesReader:
    """JSON objects; blank lines are passed over."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self._path, self._reading, self._kind = path, reading, reading.head.kind
        self.columns, self.clock = reading.columns, reading.clock
        self.hash_block_tokens = reading.hash_block_tokens if self.columns.hash_ids else 0
        first = reading.head.row
        self.present = {name for name in self.columns if name is not None and first.get(name) is not None}
        self.ignored = set(first) - set(self.columns)
        used = set(filter(None, self.columns))
        parts = (name.split(".") for name in (*first, *used))  # usage.prompt_tokens stands in usage
        self._top = used | {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}

    def place(self, line: int, column: str) -> str:
        """`trace.jsonl:17 input_length`, or `trace.json[16] input_length` in a list, counted from 0."""
        where = line_place(self._path) if self._kind == "jsonl" else None
        return where(line, column) if where else f"{self._path}[{line - 1}] {column}".rstrip()

    @property
    def notes(self) -> tuple[str, ...]:
        """How texts were counted; complete when all is read."""
        return () if self._reading.texts is None else self._reading.texts.notes

    def _rows(self) -> Iterator[tuple[int, JsonRow]]:
        return rows_of(self._path, self._kind, self._reading.texts)

    def count(self) -> int:
        """All rows of the file, whose values are not looked at."""
        if self._kind == "list" or self._reading.texts is not None:
            return sum(1 for _ in self._rows())
        with open_binary(self._path) as file:
            return sum(map(bool, map(bytes.strip, file)))

    def batches(self) -> Iterator[RowBatch]:
        """Read the file from its start."""
        lines: list[int] = []
        rows: list[JsonRow] = []
        num_hashes = 0
        hash_name = self.columns.hash_ids
        with text_errors(self._path):
            for line, row in self._rows():
                if not row.keys() <= self._top:
                    self.ignored |= row.keys() - self._top
                lines.append(line)
                rows.append(row)
                hashes = row.get(hash_name) if hash_name else None
                num_hashes += len(hashes) if isinstance(hashes, list) else 0
                if len(rows) == BATCH_ROWS or num_hashes > BATCH_HASHES:
                    yield self._batch(lines, rows)
                    lines, rows, num_hashes = [], [], 0
        if rows:
            yield self._batch(lines, rows)

    def _batch(self, lines: list[int], rows: list[JsonRow]) -> RowBatch:
        def find(name: str) -> Sequence[object] | None:
            found = [row.get(name) for row in rows]
            if "." in name and found.count(None):
                found = [_within(row, name) for row in rows]
            return None if found.count(None) == len(found) and name not in self.columns[:3] else found

        return assemble(self._reading, self.place, lines, find)


def _within(row: JsonRow, name: str) -> object:
    """What stands in objects within: `usage.prompt_tokens`; a key may have points of its own."""
    if name in row:
        return row[name]
    inner = ((key, value) for key, value in row.items() if isinstance(value, dict) and name.startswith(f"{key}."))
    return next((found for key, value in inner if (found := _within(value, name[len(key) + 1 :])) is not None), None)
