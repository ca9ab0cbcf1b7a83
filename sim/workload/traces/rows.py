"""What every trace format comes down to: batches of checked columns, and one way to refuse a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

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


class BadValueError(ValueError):
    """A value that breaks a rule."""

    def __init__(self, rule: str, mend: str = "") -> None:
        super().__init__(rule)
        self.rule, self.mend = rule, mend


def line_place(path: Path) -> Callable[[int, str], str]:
    """Places of a file that is read by lines: `trace.csv:17 ContextTokens`."""
    return lambda line, column: f"{path}:{line} {column}".rstrip()
