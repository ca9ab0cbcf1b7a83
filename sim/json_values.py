"""JSON that others wrote, read with places: what is wrong in it is said at its file, line and column.

A key that stands twice is a mistake, for one of the two would be lost. `NaN` and `Infinity`, which Python writes and
JSON does not know, are refused unless `allow_nan` says that whoever reads a column checks its numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from simbatch.sim.errors import Problem, UserError

_SPACE = re.compile(r"\s*")  # between two values
_SHOWN = 20  # characters on either side of a mistake
MEND = "mend the text there, or write the file again if it was cut off"


class JsonValue(NamedTuple):
    """A value and where it begins."""

    place: str
    value: Any


class _WrongJsonError(Exception):
    """What Python's decoder would let pass."""

    def __init__(self, rule: str, mend: str) -> None:
        super().__init__(rule)
        self.rule, self.mend = rule, mend


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _WrongJsonError(f"the key {twice!r} stands twice", "keep one of them")
    return found


def _no_constants(name: str) -> float:
    raise _WrongJsonError(f"{name} is not a JSON number", "write a finite number")


_DECODERS = {
    False: json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constants),
    True: json.JSONDecoder(object_pairs_hook=_once),
}


def json_value(text: str, place: object, *, line: int | None = None, mend: str = MEND, allow_nan: bool = False) -> Any:
    """The value that a text is; UserError at `place`, which is a file or its `line`: `a.jsonl:7:12`."""
    try:
        return _DECODERS[allow_nan].decode(text)
    except (ValueError, RecursionError, _WrongJsonError) as error:
        raise UserError(_problem(error, text, str(place), line, mend)) from None


def json_object(text: str, place: object, *, line: int | None = None, mend: str = MEND, what: str = "") -> Any:
    """The object that a text is; UserError, which says `what` should be there, where it is anything else."""
    value = json_value(text, place, line=line, mend=mend)
    if not isinstance(value, dict):
        where = str(place) if line is None else f"{place}:{line}"
        raise UserError(Problem(where, f"{what} must be an object with keys".lstrip(), value, "start it with {"))
    return value


def json_values(path: Path, text: str) -> Iterator[JsonValue]:
    """Every value of a text, one after the other, as lines of JSON or as `--append-result` leaves them."""
    position, line, counted = _skipped(text, 0), 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODERS[True].raw_decode(text, position)
        except (ValueError, RecursionError, _WrongJsonError) as error:
            where = f"{path}:{line}" if not isinstance(error, json.JSONDecodeError) else str(path)
            raise UserError(_problem(error, text, where, None, MEND)) from None
        position = _skipped(text, end)
        is_alone = not counted and position == len(text)
        yield JsonValue(str(path) if is_alone else f"{path}:{line}", value)


def _problem(error: Exception, text: str, place: str, line: int | None, mend: str) -> Problem:
    """A decoder counts lines from the text's begin: in line 7 of a file its line 1 is 7."""
    where = place if line is None else f"{place}:{line}"
    if isinstance(error, json.JSONDecodeError):
        at = f"{place}:{error.lineno + (line or 1) - 1}:{error.colno}"
        shown = text[max(error.pos - _SHOWN, 0) : error.pos + _SHOWN]
        return Problem(at, f"not valid JSON: {error.msg}", shown, mend)
    if isinstance(error, _WrongJsonError):
        return Problem(where, error.rule, mend=error.mend)
    if isinstance(error, RecursionError):
        return Problem(where, "JSON is nested too deeply", mend=mend)
    return Problem(where, "a number has thousands of digits", mend="shorten it")  # which Python refuses to read


def _skipped(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
