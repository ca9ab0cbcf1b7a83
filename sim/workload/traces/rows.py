"""What every trace format comes down to: batches of checked columns, and one way to refuse a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.traces import values
from simbatch.sim.workload.traces.values import Kind

BATCH_ROWS = 16_384
BATCH_HASHES = 1 << 18  # a batch ends early when its rows have so many hash_ids
T = TypeVar("T")


class Columns(NamedTuple):
    """What a format calls its columns; None: it has none of that kind."""

    arrival: str
    num_prompt_tokens: str
    num_output_tokens: str
    request_id: str | None = None
    priority: str | None = None
    tenant: str | None = None
    hash_ids: str | None = None
    predicted_output_tokens: str | None = None

    @property
    def required(self) -> tuple[str, str, str]:
        """The columns that no file may lack."""
        return self[:3]


@dataclass(slots=True)
class Batch:
    """Rows with checked types and ranges, in the file's order; all lists have the same length."""

    lines: Sequence[int]  # where each row stands
    arrival_ps: list[int]
    num_prompt_tokens: list[int]
    num_output_tokens: list[int]
    request_id: list[str] | None = None
    priority: list[int] | None = None
    tenant: list[str | None] | None = None
    hash_ids: list[tuple[int, ...] | None] | None = None  # None: the row says nothing about its prefix
    predicted_output_tokens: list[float] | None = None

    def keep(self, indices: list[int]) -> Batch:
        """Only these rows."""

        def pick(values: Sequence[T] | None) -> list[T] | None:
            return None if values is None else [values[i] for i in indices]

        lists = (pick(getattr(self, name)) for name in self.__slots__)
        return Batch(*lists)  # type: ignore[arg-type]  # the three required ones are never None


class Reader(Protocol):
    """One format's way to read a file."""

    columns: Columns
    hash_block_tokens: int  # 0: the file has no hashes
    present: set[str]  # columns that mean something and stand in the file, by its first row or header
    ignored: set[str]  # columns that stand in the file and mean nothing here; filled while reading

    def batches(self) -> Iterator[Batch]:
        """Read the file from its start."""
        ...

    def place(self, line: int, column: str) -> str:
        """Say where a row's value stands."""
        ...


def line_place(path: Path) -> Callable[[int, str], str]:
    """Places of a file that is read by lines: `trace.csv:17 ContextTokens`."""
    return lambda line, column: f"{path}:{line} {column}".rstrip()


def check_header(header: Sequence[str], columns: Columns, place: str) -> dict[str, int]:
    """Where each of the format's columns stands; UserError when a required one is missing or one stands twice."""
    names = [name.strip() for name in header]
    problems = [
        Problem(f"{place} {name}", "the column stands twice", mend="remove or rename one of them")
        for name in dict.fromkeys(names)
        if name in columns and names.count(name) > 1
    ]
    for name in columns.required:
        if name not in names:
            free = {other.lower(): other for other in names if other not in columns}
            near = get_close_matches(name.lower(), free, n=1)
            found = ", ".join(names) or "nothing"
            mend = f"is it {free[near[0]]!r}? Rename it" if near else "check the format, or name another one"
            problems.append(Problem(f"{place} {name}", f"the column is missing; the file has {found}", mend=mend))
    if problems:
        raise UserError(*problems)
    return {name: names.index(name) for name in columns if name in names}


Find = Callable[[str], Sequence[object] | None]


def assemble(
    columns: Columns,
    place: Callable[[int, str], str],
    times: Kind[int],
    lines: Sequence[int],
    find: Find,
    *,
    typed: bool = False,
) -> Batch:
    """Parse what `find` gives for each column's name (None: not there); UserError at `place(line, column)`.

    `typed`: the values come with their types, so that text is never a number.
    """

    def optional(name: str | None, kind: Kind[T]) -> list[T] | None:
        found = find(name) if name is not None else None
        return None if name is None or found is None else kind.parse(found, lambda i: place(lines[i], name))

    def required(name: str, kind: Kind[T]) -> list[T]:
        found = optional(name, kind.typed() if typed else kind)
        assert found is not None, "check_header sees to it"
        return found

    return Batch(
        lines,
        arrival_ps=required(columns.arrival, times),
        num_prompt_tokens=required(columns.num_prompt_tokens, values.TOKENS),
        num_output_tokens=required(columns.num_output_tokens, values.TOKENS),
        request_id=optional(columns.request_id, values.REQUEST_IDS),
        priority=optional(columns.priority, values.PRIORITIES),
        tenant=optional(columns.tenant, values.TEXTS),
        hash_ids=optional(columns.hash_ids, values.HASH_IDS),
        predicted_output_tokens=optional(columns.predicted_output_tokens, values.PREDICTIONS),
    )
