"""Values of traces: token counts, times, priorities and prefix hashes, from text or JSON.

Each kind has a fast way for a whole column, which gives up (None) as soon as one value is unusual, and a slow one for
a single value, which says what is wrong with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.workload.model import priority_of
from simbatch.sim.workload.section import MAX_TOKENS
from simbatch.sim.workload.trace_model import TimeUnit

T = TypeVar("T")


class BadValueError(ValueError):
    """A value that breaks a rule."""

    def __init__(self, rule: str, mend: str = "") -> None:
        super().__init__(rule)
        self.rule, self.mend = rule, mend


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


PS_PER_UNIT: dict[TimeUnit, int] = {"s": PS_PER_S, "ms": 10**9, "us": 10**6, "ns": 10**3}
MAX_PS = 2**63 - 1

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_NUMBERS = {"nan", "inf", "infinity"}


def _tokens_fast(values: Sequence[object]) -> list[int] | None:
    kinds = set(map(type, values))
    if kinds == {str}:
        joined = "".join(values)  # type: ignore[arg-type]  # all are str
        if not (joined.isascii() and joined.isdigit()):
            return None
        try:
            numbers = [int(text) for text in values if isinstance(text, str)]
        except ValueError:  # an empty one, or thousands of digits
            return None
    elif kinds == {int}:
        numbers = list(values)  # type: ignore[arg-type]  # all are int
    else:
        return None
    return numbers if min(numbers) >= 0 and max(numbers) <= MAX_TOKENS else None


def _tokens(value: object) -> int:
    number = _number(value, "a whole number of tokens")
    if number < 0:
        raise BadValueError("must not be negative", "give a number of tokens")
    if number != int(number):
        raise BadValueError("must be a whole number of tokens", "round it")
    if number > MAX_TOKENS:
        raise BadValueError(f"must be at most {MAX_TOKENS} tokens", "check the column")
    return int(number)


def _prediction(value: object) -> float:
    number = _number(value, "a predicted number of tokens")
    if not 0 < number <= MAX_TOKENS:
        raise BadValueError(f"a prediction must be above 0 and at most {MAX_TOKENS} tokens", "check the column")
    return float(number)


def times(ps_per_unit: int) -> Kind[int]:
    """Times in plain numbers of a unit, finite and not negative, to ps."""
    return Kind(_times_fast(ps_per_unit), _time(ps_per_unit))


def _times_fast(ps_per_unit: int) -> Callable[[Sequence[object]], list[int] | None]:
    def fast(values: Sequence[object]) -> list[int] | None:
        kinds = set(map(type, values))
        if not (kinds == {str} and "_" not in "".join(values)) and not kinds <= {int, float}:  # type: ignore[arg-type]
            return None
        try:
            numbers = np.fromiter(map(float, values), np.float64, len(values))  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            return None
        if not (numbers.min() >= 0 and numbers.max() < MAX_PS / ps_per_unit):  # NaN is neither
            return None
        whole: list[int] = np.rint(numbers * ps_per_unit).astype(np.int64).tolist()
        return whole

    return fast


def _time(ps_per_unit: int) -> Callable[[object], int]:
    def slow(value: object) -> int:
        number = _number(value, "a time in plain numbers")
        if number < 0:
            raise BadValueError("a time must not be negative", "count times from the start of the trace")
        if number * ps_per_unit >= MAX_PS:
            rule = f"a time must be at most {MAX_PS / PS_PER_S:.0f} s (106 days), which is all that the clock holds"
            raise BadValueError(rule, "count times from the start of the trace, check time_unit, or use limit")
        return round(number * ps_per_unit)

    return slow


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


def _number(value: object, what: str) -> float:
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
PRIORITIES = Kind(never, _priority)
PREDICTIONS = Kind(never, _prediction)
TEXTS = Kind(never, _text)
REQUEST_IDS = Kind(never, _request_id)
HASH_IDS = Kind(never, _hash_ids)


_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,12}))?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII)
_PS_BY_DIGITS: list[int] = [10**zeros for zeros in range(12, -1, -1)]  # what the last of so many decimals is worth
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimestampParser:
    """Timestamps to ps since 1970, in UTC unless they say otherwise, exact to all their digits.

    Rows of the same minute share its conversion, which makes a parser several times faster than none.
    """

    def __init__(self) -> None:
        self._minutes: dict[str, int] = {}

    def __call__(self, value: object) -> int:
        """One timestamp; BadValueError when it is none."""
        text = str(value)
        body = text.removesuffix("+00:00")
        minute = self._minutes.get(body[:17])  # "2023-11-16 18:17:"
        if minute is not None:
            seconds = body[17:19]
            fraction = body[20:]
            digits = seconds + fraction
            plain = digits.isascii() and digits.isdigit() and len(seconds) == 2 and 0 < len(fraction) <= 12
            if plain and body[19] == "." and seconds < "60":
                return minute + int(digits) * _PS_BY_DIGITS[len(fraction)]
        return self._parse(text.strip())

    def _parse(self, text: str) -> int:
        match = _FORM.fullmatch(text)
        if match is None:
            raise BadValueError("must be a timestamp", "such as 2023-11-16 18:17:03.9799600")
        day, clock, fraction, _, sign, hours, minutes = match.groups()
        try:
            zone = (
                timezone(timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1))
                if sign
                else UTC
            )
            moment = datetime.fromisoformat(f"{day} {clock}").replace(tzinfo=zone)
        except ValueError as error:
            raise BadValueError(f"is no date or time: {error}", "check day, month and time") from None
        since = moment - _EPOCH
        whole_s = since.days * 86_400 + since.seconds
        if zone is UTC or not zone.utcoffset(None):
            if len(self._minutes) > 100_000:
                self._minutes.clear()
            self._minutes[text[:17]] = (whole_s - moment.second) * PS_PER_S
        return whole_s * PS_PER_S + int((fraction or "0").ljust(12, "0"))
