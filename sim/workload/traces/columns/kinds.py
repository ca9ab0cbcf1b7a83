"""How a column's values are parsed: all at once where they are plain, one by one where one is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.workload.traces.rows import BadValueError

T = TypeVar("T")


class Kind(NamedTuple, Generic[T]):
    """Two parsers of the same values.

    `fast` takes a whole column and returns None when it is not sure of every value; `slow` takes one value and raises
    BadValueError for a bad one.
    """

    fast: Callable[[Sequence[object]], list[T] | None]
    slow: Callable[[object], T]

    def parse(self, values: Sequence[object], where: Callable[[int], str]) -> list[T]:
        """All values, if any; `where` gives the place of the i-th for the UserError of a bad one."""
        parsed = self.fast(values) if values else []
        return [self._one(value, i, where) for i, value in enumerate(values)] if parsed is None else parsed

    def _one(self, value: object, i: int, where: Callable[[int], str]) -> T:
        try:
            return self.slow(value)
        except BadValueError as error:
            shown = NOTHING if value is None else value
            raise UserError(Problem(where(i), error.rule, shown, error.mend)) from None

    def typed(self) -> Kind[T]:
        """The same for JSON, where a number in quotes is text and not a number."""

        def fast(values: Sequence[object]) -> list[T] | None:
            return None if str in set(map(type, values)) else self.fast(values)

        def slow(value: object) -> T:
            if isinstance(value, str):
                raise BadValueError("must be a number, and is text", "write it without quotes")
            return self.slow(value)

        return Kind(fast, slow)


def never(_: Sequence[object]) -> None:
    """No fast way."""
    return
