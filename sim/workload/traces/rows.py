"""What every trace comes down to: batches of checked columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.json_values import MAX_TOKENS
from simbatch.sim.workload.formats import Columns, Row
from simbatch.sim.workload.traces import values
from simbatch.sim.workload.traces.texts import Texts
from simbatch.sim.workload.traces.values import Kind

if TYPE_CHECKING:
    from simbatch.sim.workload.traces.times import Clock, Times

BATCH_ROWS = 16_384
BATCH_HASHES = 1 << 18  # a batch ends early when its rows have so many hash_ids
Ints = NDArray[np.int64]
T = TypeVar("T")


class Head(NamedTuple):
    """How a file begins: what kind it is, its columns, its first row, and where these stand."""

    kind: str  # csv, jsonl, list (of JSON objects), parquet
    names: list[str]
    row: Row
    place: str
    delimiter: str = ","


@dataclass(frozen=True)
class Reading:
    """How a file is read: its columns and clock, and what one hash stands for.

    `delay_ps`: rows are turns of sessions, which may be without a time of their own, and a delay is in units of so many
    ps; 0: they are not. `texts` makes turns of rows of texts.
    """

    head: Head
    columns: Columns
    clock: Clock
    hash_block_tokens: int
    delay_ps: int = 0
    texts: Texts | None = None


@dataclass(slots=True)
class RowBatch:
    """Rows with checked types and ranges, in the file's order; all columns have the same length."""

    lines: Sequence[int] | Ints  # where each row stands
    arrival: Times  # ps since the file's first row
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    request_id: list[str] | None = None
    priority: list[int] | None = None
    tenant: list[str | None] | None = None
    hash_ids: list[tuple[int, ...] | None] | None = None  # None: the row says nothing about its prefix
    predicted_output_tokens: list[float] | None = None
    has_time: NDArray[np.bool_] | None = None  # None: all have one of their own
    session: list[str | None] | None = None
    parent: list[tuple[str, ...] | None] | None = None  # ids; None: the row says nothing about it
    delay_ps: list[int] | None = None
    system_prompt: list[str | None] | None = None
    num_system_tokens: list[int] | None = None

    def __len__(self) -> int:
        return len(self.arrival)

    def keep(self, indices: Ints) -> RowBatch:
        """Only these rows, in this order."""

        def pick(name: str) -> Any:
            column = getattr(self, name)
            if isinstance(column, range):
                column = np.arange(column.start, column.stop, column.step)
            if column is None or isinstance(column, np.ndarray):
                return column if column is None else column[indices]
            return [column[i] for i in indices.tolist()]

        return RowBatch(*(pick(name) for name in self.__slots__))

    def parts(self, size: int, order: Ints | None = None) -> Iterator[RowBatch]:
        """The rows, or these of them in this order, so many at a time."""
        whole = np.arange(len(self)) if order is None else order
        for first in range(0, len(whole), size):
            yield self if order is None and size >= len(self) else self.keep(whole[first : first + size])

    @classmethod
    def joined(cls, batches: Sequence[RowBatch]) -> RowBatch:
        """All rows as one; a column that only some have is blank in the others."""
        batches = [batch for batch in batches if len(batch)] or batches[:1]

        def join(name: str) -> Any:
            parts = [getattr(batch, name) for batch in batches]
            if name == "lines":
                return np.concatenate([np.asarray(part) for part in parts])
            if all(isinstance(part, np.ndarray) for part in parts):
                return np.concatenate(parts)
            blank = 0 if name in ("priority", "delay_ps", "num_system_tokens") else None
            whole = [value for part, b in zip(parts, batches, strict=True) for value in (part or [blank] * len(b))]
            return None if all(part is None for part in parts) else whole

        return cls(*(join(name) for name in cls.__slots__))


class Reader(Protocol):
    """One kind of file's way to read it."""

    columns: Columns
    clock: Clock
    hash_block_tokens: int  # 0: the file has no hashes
    present: set[str]  # columns that mean something and stand in the file, by its first row or header
    ignored: set[str]  # columns that stand in the file and mean nothing here; filled while reading

    def batches(self) -> Iterator[RowBatch]:
        """Read the file from its start."""
        ...

    def place(self, line: int, column: str) -> str:
        """Say where a row's value stands."""
        ...

    def count(self) -> int:
        """All rows of the file, whose values are not looked at."""
        ...


def line_place(path: Path) -> Callable[[int, str], str]:
    """Places of a file that is read by lines: `trace.csv:17 ContextTokens`."""
    return lambda line, column: f"{path}:{line} {column}".rstrip()


def assemble(
    reading: Reading,
    place: Callable[[int, str], str],
    lines: Sequence[int],
    found: Mapping[str, Any],
    *,
    times: Times | None = None,
) -> RowBatch:
    """Parse the columns that were `found`, by name; UserError at `place(line, column)`.

    Lists, or arrays of numbers where every value is known to be one. A number may be text, as BigQuery's JSON has it.
    `times`: they are known already. Without a column of arrivals all come at once, without one of lengths all are 1
    (`distribution: empirical` reads lengths alone).
    """
    columns, is_turn = reading.columns, reading.delay_ps > 0
    kind = values.TOKENS if reading.head.delimiter == ";" else values.GROUPED_TOKENS

    def optional(name: str | None, kind: Kind[T]) -> list[T] | None:
        return None if name is None or name not in found else kind.parse(found[name], lambda i: place(lines[i], name))

    def tokens(name: str | None) -> Ints:
        if name is None or name not in found:
            return np.ones(len(lines), dtype=np.int64)
        counts = found[name]
        if isinstance(counts, np.ndarray):
            if counts.min() >= 0 and counts.max() <= MAX_TOKENS:
                return counts
            counts = counts.tolist()
        return np.array(kind.parse(counts, lambda i: place(lines[i], name)), dtype=np.int64)

    has_time = np.full(len(lines), True) if is_turn else None
    if times is None:
        name, own = columns.arrival or "", found.get(columns.arrival or "")
        has_time = np.array([value not in (None, "") for value in own or [None] * len(lines)]) if is_turn else None
        there: Sequence[int] = range(len(lines)) if has_time is None else np.flatnonzero(has_time).tolist()
        times = np.zeros(len(lines), dtype=np.int64)
        if own is not None:
            timed = own if has_time is None else [own[i] for i in there]
            parsed = reading.clock.parse(timed, lambda i: place(lines[there[i]], name))
            times = parsed if has_time is None else _spread(parsed, has_time)
    return RowBatch(
        lines,
        times,
        tokens(columns.prompt),
        tokens(columns.output),
        request_id=optional(columns.request_id, values.REQUEST_IDS),
        priority=optional(columns.priority, values.PRIORITIES),
        tenant=optional(columns.tenant, values.TEXTS),
        hash_ids=optional(columns.hash_ids, values.HASH_IDS),
        predicted_output_tokens=optional(columns.predicted_output, values.PREDICTIONS),
        has_time=has_time,
        session=optional(columns.session, values.LABELS) if is_turn else None,
        parent=optional(columns.parent, values.PARENTS) if is_turn else None,
        delay_ps=optional(columns.delay, values.delays(reading.delay_ps)) if is_turn else None,
        system_prompt=optional(columns.system_prompt, values.LABELS) if is_turn else None,
        num_system_tokens=optional(columns.num_system_tokens, kind) if is_turn else None,
    )


def _spread(times: Times, there: NDArray[np.bool_]) -> Times:
    """The times at their rows, 0 at those that have none."""
    spread: Times = np.zeros(len(there), dtype=times.dtype)
    spread[there] = times
    return spread
