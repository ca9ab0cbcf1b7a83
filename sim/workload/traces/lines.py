"""Traces as JSON: an object a line, or a list of objects, read whole; `usage.prompt_tokens` is a key within.

A row with a list `turns` (aiperf's multi_turn) is as many rows, each with what stands beside the list. A list may stand
in an object, alone among its values (`{"data": [...], "meta": {...}}`, as pages of an API have it).

Results of benchmarks are whole JSON documents, so they are loaded whole. `vllm bench serve` and SGLang's client need
their lengths and times of sending alone; the others, and results without times of sending, are read as `simbatch
validate --recorded` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, json_value, json_values
from simbatch.sim.text import cut_short
from simbatch.sim.workload.bench import is_result, results_of, sending_of
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals, read_text
from simbatch.sim.workload.files import open_binary, open_text, text_errors
from simbatch.sim.workload.formats import Columns
from simbatch.sim.workload.traces.rows import BATCH_HASHES, BATCH_ROWS, Head, Reading, RowBatch, assemble, line_place
from simbatch.sim.workload.traces.texts import Texts
from simbatch.sim.workload.traces.times import Clock

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
        found: dict[str, list[object]] = {}
        for name in filter(None, self.columns):
            values = [row.get(name) for row in rows]
            if "." in name and None in values:
                values = [_within(row, name) for row in rows]
            if name in self.columns[:3] or values.count(None) < len(values):
                found[name] = values
        return assemble(self._reading, self.place, lines, found)


def _within(row: JsonRow, name: str) -> object:
    """What stands in objects within: `usage.prompt_tokens`; a key may have points of its own."""
    if name in row:
        return row[name]
    inner = ((key, value) for key, value in row.items() if isinstance(value, dict) and name.startswith(f"{key}."))
    return next((found for key, value in inner if (found := _within(value, name[len(key) + 1 :])) is not None), None)


class BenchReader:
    """The requests of a real run, ordered by their start and counted from the first one's.

    `max_concurrency` and `notes` are of a run whose times of sending are not in the file: it is sent as it was then.
    `run` chooses one of several, from 0. Raises UserError for several when none is chosen, and for totals.
    """

    hash_block_tokens = 0

    def __init__(self, path: Path, columns: Columns, clock: Clock, run: int | None, *, lengths_only: bool) -> None:
        self._path, self.columns, self.clock = path, columns, clock
        self.present = set(filter(None, columns))
        self.ignored: set[str] = set()  # the rest are a run's results, not its requests
        self.max_concurrency: int | None = None
        self.has_times = True
        self.notes: tuple[str, ...] = ()
        read = list(json_values(path, read_text(path)))
        if len(read) == 1 and run is None and self._has_lists(read[0]):
            self._batch = self._ordered(read[0].value)
        else:
            self._batch = self._of_run(_chosen(path, read, run), lengths_only=lengths_only)

    def _has_lists(self, document: JsonValue) -> bool:
        """Whether it is vLLM's or SGLang's with times of sending, or a malformed one, which is explained by column."""
        value = document.value
        if not isinstance(value, dict):
            return False
        if self.columns.arrival not in value and is_result([document]):
            return False
        missing = [name for name in self.columns[:3] if name not in value]
        if missing:
            rule = f"the list is missing; the file has {cut_short(value)}"
            mend = "record with --save-result --save-detailed, or check the format"
            raise UserError(*(Problem(f"{self._path} {name}", rule, mend=mend) for name in missing))
        return True

    def place(self, line: int, column: str) -> str:
        """`bench.json input_lens[17]`: lists, counted from 0."""
        return f"{self._path} {column}[{line}]"

    def _ordered(self, document: dict[str, Any]) -> RowBatch:
        lists = {name: document[name] for name in self.columns[:3] if name}
        for name, found in lists.items():
            if not isinstance(found, list):
                raise UserError(Problem(f"{self._path} {name}", "must be a list", found, "check the format"))
        lengths = {name: len(found) for name, found in lists.items()}
        if len(set(lengths.values())) > 1:
            rule = "the lists must have the same length"
            raise UserError(
                Problem(f"{self._path} {', '.join(lists)}", rule, list(lengths.values()), "write the file again")
            )

        n = lengths[self.columns.arrival or ""]
        head = Head("list", list(lists), {}, str(self._path))
        reading = Reading(head, self.columns, self.clock, 0)
        return _ordered(assemble(reading, self.place, range(n), lists))

    def _of_run(self, run: BenchRun, *, lengths_only: bool) -> RowBatch:
        self.notes = run.notes
        times_s = run.sent_s
        if times_s is None and not lengths_only:
            sending = sending_of(run)
            self.max_concurrency, self.notes = sending.max_concurrency, (*run.notes, *sending.notes)
            self.has_times, times_s = sending.planned_s is not None, sending.planned_s
        arrival_s = np.zeros(len(run)) if times_s is None else times_s - times_s.min()
        return _ordered(
            RowBatch(
                lines=range(len(run)),
                arrival=np.round(arrival_s * PS_PER_S).astype(np.int64),
                num_prompt_tokens=run.num_prompt_tokens,
                num_output_tokens=run.num_output_tokens,
            )
        )

    def count(self) -> int:
        """All requests of the run."""
        return len(self._batch)

    def batches(self) -> Iterator[RowBatch]:
        """The loaded requests, in batches."""
        yield from self._batch.parts(BATCH_ROWS)


def _ordered(batch: RowBatch) -> RowBatch:
    batch.lines = np.array(batch.lines)
    return batch.keep(np.argsort(batch.arrival, kind="stable"))


def _chosen(path: Path, read: Sequence[JsonValue], run: int | None) -> BenchRun:
    found = results_of(path, read)
    if run is None and len(found) > 1:
        rule = f"has {len(found)} runs, and a trace is one"
        raise UserError(Problem(str(path), rule, mend="write the one you mean to a file of its own"))
    chosen = found[run or 0]
    if isinstance(chosen, BenchTotals):
        rule = "has a run's totals only, not its requests"
        mend = "run vllm bench serve with --save-result --save-detailed"
        raise UserError(Problem(chosen.place, rule, mend=mend))
    return chosen
