"""Times of a trace: picoseconds since the first row, from plain numbers of any unit and from timestamps.

1. A time is whole picoseconds on the file's own clock, however large: 1,700,000,000.5 s of Unix time are 1.7e21 ps,
   more than 63 bits hold. What is kept is the distance from the first row, in int64 (106 days); beyond that in Python's
   integers, so that `rate_scale`, `between` and `limit` can still make the trace fit.
2. int64 arithmetic is modulo 2^64: a product and a difference that both leave its range give the right distance, as
   long as that one fits. For example (u + 2) * 10^12 - u * 10^12 is 2 * 10^12 for every u.
3. A number with a point holds 15 digits: 1700000000.123456 is read to the microsecond, 46.926808 to the picosecond.
   Rounded there, it is what the file says, and not what the next double makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import NOTHING, Nothing, Problem, UserError
from simbatch.sim.workload.files import BadValueError
from simbatch.sim.workload.formats import Unit
from simbatch.sim.workload.traces.values import number_of, numbers_of

Times = NDArray[Any]  # int64, or Python's integers where those do not fit
MAX_PS = 2**63 - 1

_EXPONENTS: dict[Unit, int] = {"s": 12, "ms": 9, "us": 6, "ns": 3, "iso": 0}  # ps in one: 10^
PS_PER_UNIT: dict[Unit, int] = {unit: 10**exponent for unit, exponent in _EXPONENTS.items()}
_TOO_LARGE = 1e25
_UNIX_S = (5e8, 5e9)  # 1985 to 2128: a number in it is Unix time in s, in a thousand times it in ms, ...
_EDGES = 9.0 * 10.0 ** np.arange(3, 16)  # below 9e3 twelve decimals are exact in a double, below 9e4 eleven, ...
_POWERS = np.array([10.0**k for k in range(13)])
_WHOLE_POWERS = np.array([10**k for k in range(13)], dtype=np.int64)


def too_late(since_ps: float) -> tuple[str, Nothing, str]:
    """Rule, value and mend of a time that no clock holds, ps since the first request; those of a `Problem`."""
    rule = f"is {since_ps / PS_PER_S:.0f} s after the trace's first request"
    rule += f", and the clock holds {MAX_PS / PS_PER_S:.0f} s (106 days)"
    return rule, NOTHING, "use between or limit, raise rate_scale, or check the column's unit"


class Clock:
    """The clock of one file; `unit` None is told by the first value, `assumed` when it says nothing either."""

    def __init__(self, unit: Unit | None, *, decimal_comma: bool = False) -> None:
        self.unit, self.decimal_comma = unit, decimal_comma
        self.assumed = False
        self.origin: int | None = None  # of the first row, ps
        self._timestamps = TimestampParser()

    def tell_unit(self, value: object) -> Unit:
        """The unit of the file's times by one of them: a timestamp, Unix time by its size, else seconds."""
        if self.unit is None:
            self.unit, self.assumed = _unit_of(self._plain(value))
        return self.unit

    def parse(self, values: Sequence[object], where: Callable[[int], str]) -> Times:
        """The times of a column; UserError at `where(i)`."""
        if not len(values):
            return np.zeros(0, dtype=np.int64)
        unit = self.tell_unit(values[0])
        numbers = None if unit == "iso" or self.decimal_comma else numbers_of(values)
        found = None if numbers is None else self.from_numbers(numbers)
        if found is not None:
            return found
        exact = [self._checked(value, i, where) for i, value in enumerate(values)]
        return self._since_origin(exact)

    def from_numbers(self, numbers: NDArray[Any]) -> Times | None:
        """Plain numbers of the unit, int64 or float64; None where one is negative, no number or out of reach."""
        exponent = _EXPONENTS[self.unit or "s"]
        lowest, highest = numbers.min(), numbers.max()
        if not (lowest >= 0 and highest < 9e18):  # NaN is neither
            return None
        if self.origin is None:
            self.origin = exact_ps(numbers[0].item(), exponent)
        if max(abs(float(end) * 10.0**exponent - self.origin) for end in (lowest, highest)) > 0.99 * MAX_PS:
            return None
        if numbers.dtype.kind == "f":
            decimals = np.minimum(12 - np.minimum(np.digitize(numbers, _EDGES), 12), exponent)
            whole = np.rint(numbers * _POWERS[decimals]).astype(np.int64)
            return _since(whole * _WHOLE_POWERS[exponent - decimals], self.origin)
        return _since(numbers * _WHOLE_POWERS[exponent], self.origin)

    def from_ns(self, ns: NDArray[np.int64]) -> Times | None:
        """Timestamps as ns since 1970; None where one is out of reach."""
        if self.origin is None:
            self.origin = int(ns[0]) * 1000
        if max(abs(int(end) * 1000 - self.origin) for end in (ns.min(), ns.max())) > MAX_PS:
            return None
        return _since(ns * 1000, self.origin)

    def exact(self, value: object) -> int:
        """One time in ps on the file's own clock; BadValueError when it is none."""
        value = self._plain(value)
        if self.unit == "iso":
            return self._timestamps(value)
        number = number_of(value, "a time in plain numbers")
        if number < 0:
            raise BadValueError("a time must not be negative", "count times from the start of the trace")
        if number > _TOO_LARGE:
            raise BadValueError("is too large for a time", "check the column and its unit")
        return exact_ps(number, _EXPONENTS[self.unit or "s"])

    def moment(self, value: object) -> int:
        """A bound of `between` in ps on the file's own clock; a timestamp too where that is Unix time."""
        if isinstance(value, str) and not re.fullmatch(r"[\d.]+", value.strip()):
            return TimestampParser()(value)
        return self.exact(value)

    def shown(self, ps: int) -> str | int | float:
        """The value of `between` that is this moment: a timestamp, or a number of the file's unit."""
        if self.unit == "iso":
            return f"{(_EPOCH + timedelta(microseconds=ps // 1_000_000)):%Y-%m-%dT%H:%M:%S.%f}Z"
        unit_ps: int = 10 ** _EXPONENTS[self.unit or "s"]
        return ps / unit_ps if ps % unit_ps else ps // unit_ps

    def _plain(self, value: object) -> object:
        return value.replace(",", ".") if self.decimal_comma and isinstance(value, str) else value

    def _checked(self, value: object, i: int, where: Callable[[int], str]) -> int:
        try:
            return self.exact(value)
        except BadValueError as error:
            raise UserError(Problem(where(i), error.rule, NOTHING if value is None else value, error.mend)) from None

    def _since_origin(self, exact: list[int]) -> Times:
        if self.origin is None:
            self.origin = exact[0]
        since = [ps - self.origin for ps in exact]
        fits = min(since) >= -MAX_PS and max(since) <= MAX_PS
        return np.array(since, dtype=np.int64 if fits else object)


def exact_ps(number: float, exponent: int) -> int:
    """A number of 10^`exponent` ps in whole ps, to the 15 digits that a double holds."""
    if isinstance(number, int):
        return int(number * 10**exponent)
    decimals = min(12 - min(int(np.digitize(number, _EDGES)), 12), exponent)
    return int(round(number * float(_POWERS[decimals])) * 10 ** (exponent - decimals))


def _since(ps: NDArray[np.int64], origin: int) -> Times:
    """The distance from `origin`, both modulo 2^64, as int64 has it."""
    since: Times = ps - np.int64((origin + 2**63) % 2**64 - 2**63)
    return since


def _unit_of(value: object) -> tuple[Unit, bool]:
    try:
        number = float(value)  # type: ignore[arg-type]  # what is none is seen next
    except (TypeError, ValueError, OverflowError):
        return ("iso", False) if isinstance(value, str) and any(map(str.isdigit, value)) else ("s", True)
    units: tuple[Unit, ...] = ("s", "ms", "us", "ns")
    low, high = _UNIX_S
    found = next((unit for i, unit in enumerate(units) if low <= number / 1000**i < high), None)
    return (found or "s", found is None)


_FORM = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,12}))?)? ?(?:(Z|UTC|GMT)|([+-])(\d\d)(?::?(\d\d))?)?",
    re.ASCII,
)
_OF_A_LOG = re.compile(r"\[?(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d{4})\]?", re.ASCII)  # nginx, Apache
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
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
        if (logged := _OF_A_LOG.fullmatch(text)) is not None and logged[2] in _MONTHS:
            text = f"{logged[3]}-{_MONTHS.index(logged[2]) + 1:02}-{logged[1]} {logged[4]}{logged[5]}"
        match = _FORM.fullmatch(text)
        if match is None:
            raise BadValueError("must be a timestamp", "such as 2023-11-16 18:17:03.9799600 or 2023-11-16T18:17:03Z")
        day, clock, fraction, _, sign, hours, minutes = match.groups()
        try:
            ahead = timedelta(hours=int(hours), minutes=int(minutes or 0)) if sign else timedelta()
            zone = timezone(-ahead if sign == "-" else ahead)
            moment = datetime.fromisoformat(f"{day} {clock or '00:00'}").replace(tzinfo=zone)
        except ValueError as error:
            raise BadValueError(f"is no date or time: {error}", "check day, month and time") from None
        since = moment - _EPOCH
        whole_s = since.days * 86_400 + since.seconds
        if not ahead and clock and len(clock) == 8:
            if len(self._minutes) > 100_000:
                self._minutes.clear()
            self._minutes[text[:17]] = (whole_s - moment.second) * PS_PER_S
        return whole_s * PS_PER_S + int((fraction or "0").ljust(12, "0"))
