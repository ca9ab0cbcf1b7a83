"""Values of traces: token counts, priorities, labels and prefix hashes, from text or JSON.

Each kind has a fast way for a whole column, which gives up (None) as soon as one value is unusual, and a slow one for
a single value, which says what is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS, priority_of
from simbatch.sim.workload.files import BadValueError

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


def never(_: Sequence[object]) -> None:
    """No fast way."""
    return


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_GROUPED = re.compile(r"\d{1,3}(,\d{3})+", re.ASCII)  # 12,345
_NOT_NUMBERS = {"nan", "inf", "infinity"}
_NOTHING = {"", "-", "null", "none", "nan", "n/a", "na", "\\n"}  # as databases, gateways and pandas write it


def numbers_of(values: Sequence[object]) -> NDArray[Any] | None:
    """A column of plain numbers, or of their texts, as int64 or float64; None when one is something else."""
    kinds = set(map(type, values))
    try:
        if kinds == {int}:
            return np.array(values, dtype=np.int64)
        if kinds == {str}:
            joined = "".join(values)  # type: ignore[arg-type]  # all are str
            if joined.isascii() and joined.isdigit():
                return np.array(list(map(int, values)), dtype=np.int64)  # type: ignore[arg-type]
            return None if "_" in joined else np.array(list(map(float, values)))  # type: ignore[arg-type]
        return np.array(values, dtype=np.float64) if kinds <= {int, float} else None
    except (ValueError, OverflowError):
        return None


def _tokens_fast(values: Sequence[object]) -> list[int] | None:
    numbers = numbers_of(values)
    if numbers is None or numbers.dtype != np.int64 or numbers.min() < 0 or numbers.max() > MAX_TOKENS:
        return None
    counts: list[int] = numbers.tolist()
    return counts


def is_nothing(value: object) -> bool:
    """Whether a value says that there is none."""
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or (isinstance(value, float) and math.isnan(value))


def _tokens(value: object) -> int:
    """A count; nothing is 0, which no request can have: what to do about it is for its reader to say."""
    if is_nothing(value):
        return 0
    number = number_of(value, "a whole number of tokens")
    if number < 0:
        raise BadValueError("must not be negative", "give a number of tokens")
    if number != int(number):
        raise BadValueError("must be a whole number of tokens", "round it")
    if number > MAX_TOKENS:
        raise BadValueError(f"must be at most {MAX_TOKENS} tokens", "check the column")
    return int(number)


def _grouped_tokens(value: object) -> int:
    is_grouped = isinstance(value, str) and _GROUPED.fullmatch(value.strip())
    return _tokens(value.replace(",", "") if is_grouped and isinstance(value, str) else value)


def _prediction(value: object) -> float:
    number = number_of(value, "a predicted number of tokens")
    if not 0 < number <= MAX_TOKENS:
        raise BadValueError(f"a prediction must be above 0 and at most {MAX_TOKENS} tokens", "check the column")
    return float(number)


def _priority(value: object) -> int:
    """A priority as an integer or high, normal, low; nothing means 0."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    level = priority_of(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None
    if level is None:
        raise BadValueError("a priority must be an integer, or high, normal or low", "lower goes first")
    return level


def _text(value: object) -> str | None:
    """A label; nothing means none."""
    if value is None or value == "":
        return None
    if isinstance(value, (dict, list, bool, float)):
        raise BadValueError("must be text or a whole number", "quote it")
    text = str(value)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise BadValueError("is not text: half of a UTF-16 pair stands alone", "write the whole character")
    return text


def _request_id(value: object) -> str:
    """A request's label, not empty."""
    label = _text(value)
    if label is None:
        raise BadValueError("a request_id must not be empty", "give every row one, or leave the column out")
    return label


def _plain_texts(values: Sequence[object]) -> list[str] | None:
    if set(map(type, values)) != {str} or "" in values or not "".join(values).isascii():  # type: ignore[arg-type]
        return None
    return list(values)  # type: ignore[arg-type]  # all are str


def _hash_ids(value: object) -> tuple[int, ...] | None:
    """A list of integers, or the same as text: `1 2 3` or `[1, 2, 3]`; nothing means that nothing is known."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        value = [_hash_of(part) for part in value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()]
    if not isinstance(value, (list, tuple)):
        raise BadValueError("hash_ids must be a list of integers", "one for every block of the prompt")
    if not set(map(type, value)) <= {int}:
        bad = next(item for item in value if type(item) is not int)
        raise BadValueError(f"hash_ids must be integers, and {bad!r} is none", "give each block's hash as an integer")
    return tuple(value)


def _hash_of(part: str) -> object:
    return int(part) if part.isascii() and part.removeprefix("-").isdigit() and len(part) <= 40 else part


def _parents(value: object) -> tuple[str, ...] | None:
    """Ids of requests: one, a list, or `[3, 4]` as text; -1 and an empty list are nobody, nothing says nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and value.strip().startswith("["):
        value = [part.strip().strip("\"'") for part in value.strip().strip("[]").split(",") if part.strip()]
    listed = value if isinstance(value, (list, tuple)) else [value]
    ids = [_text(int(item) if isinstance(item, float) and item.is_integer() else item) for item in listed]
    if None in ids:
        raise BadValueError("a parent must be the id of a request, or a list of them", "write -1 for none")
    if len(set(ids)) < len(ids):
        raise BadValueError("a parent is given twice", "keep one of them")
    return tuple(name for name in ids if name not in (None, "-1"))


def _label(value: object) -> str | None:
    """A label; a whole number of a column with gaps (parquet's 3.0) is the number."""
    return _text(int(value) if isinstance(value, float) and value.is_integer() else value)


def delays(ps_per_unit: int) -> Kind[int]:
    """Waits of a unit of so many ps, in ps; nothing means 0."""

    def slow(value: object) -> int:
        if value is None or (isinstance(value, str) and not value.strip()):
            return 0
        number = number_of(value, "a time in plain numbers")
        if number < 0:
            raise BadValueError("a delay must not be negative", "it counts from the end of the turn before")
        if number * ps_per_unit >= 2**62:
            raise BadValueError("is too long for a delay", "check the column and its unit")
        return number * ps_per_unit if isinstance(number, int) else round(number * ps_per_unit)

    return Kind(never, slow)


def number_of(value: object, what: str) -> float:
    """A finite number, from JSON or plain digits; BadValueError that says `what` it must be."""
    if value is None or value == "":
        raise BadValueError(f"must be {what}, and is empty", "fill it in, or remove the row")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise BadValueError(f"must be {what}", "write a number")
    if isinstance(value, str):
        stripped = value.strip()
        if stripped.lower().lstrip("+-") in _NOT_NUMBERS:
            raise BadValueError(f"must be {what}, not NaN or infinite", "fill it in, or remove the row")
        if not _NUMBER.fullmatch(stripped):
            raise BadValueError(f"must be {what}", "write plain digits, without units or separators")
        value = int(stripped) if stripped.isdigit() and len(stripped) < 400 else float(stripped)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValueError(f"must be {what}, not NaN or infinite", "fill it in, or remove the row")
    return min(value, 10**300) if isinstance(value, int) else value


TOKENS = Kind(_tokens_fast, _tokens)
GROUPED_TOKENS = Kind(_tokens_fast, _grouped_tokens)  # also 12,345, where a comma is not the decimal point
PRIORITIES = Kind(never, _priority)
PREDICTIONS = Kind(never, _prediction)
TEXTS = Kind(never, _text)
REQUEST_IDS = Kind(_plain_texts, _request_id)
LABELS = Kind(never, _label)
PARENTS = Kind(never, _parents)
HASH_IDS = Kind(never, _hash_ids)
