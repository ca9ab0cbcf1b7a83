"""JSON that others wrote, read with places and checked strictly: what is wrong is said at its file, line and column.

A key that stands twice is a mistake, for one of the two would be lost. `NaN` and `Infinity`, which Python writes and
JSON does not know, are refused unless `allow_nan` says that whoever reads a column checks its numbers. `Strict` is what
models inherit from, by pydantic, whose errors become problems in plain words; the types that the sections of a workload
share stand here too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from simbatch.sim.errors import NOTHING, Problem, UserError

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


def is_number(value: Any) -> bool:
    """A finite number of JSON's."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number_at(value: Any, *keys: str) -> float | None:
    """The finite number that stands below these keys, if one does."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return float(value) if is_number(value) else None


def count_of(value: Any) -> int | None:
    """A whole number above 0; None for anything else."""
    return value if type(value) is int and value > 0 else None


Kind = TypeVar("Kind", bound=BaseModel)
MAX_TOLD = 5  # mistakes of one value of others' files: the rest are of the same kind
_MEASURED = dict.fromkeys(("raise it", "lower it"), "nobody measures this: leave that request out, or run it again")
_UNION_TAGS = frozenset({"linear", "two_regime"})
_RULES = {
    "missing": ("required key is missing", "add it"),
    "extra_forbidden": ("unknown key", "remove it"),
    "int_type": ("must be a whole number", ""),
    "int_from_float": ("must be a whole number", ""),
    "float_type": ("must be a number", "write it without quotes"),
    "string_type": ("must be text", "put it in quotes"),
    "bool_type": ("must be true or false", ""),
    "greater_than": ("must be above {gt}", "raise it"),
    "greater_than_equal": ("must be at least {ge}", "raise it"),
    "less_than": ("must be below {lt}", "lower it"),
    "less_than_equal": ("must be at most {le}", "lower it"),
    "literal_error": ("must be one of {expected}", "write one of these"),
    "too_short": ("must have at least {min_length} entries", ""),
    "finite_number": ("must be a finite number", ""),
    "tuple_type": ("must be a list", ""),
    "model_type": ("must be an object with keys", ""),
    "dict_type": ("must be an object with keys", ""),
}


class Strict(BaseModel):
    """No unknown keys, no text or booleans for numbers, no NaN or infinity, no changes afterwards."""

    # most of a command's models check nothing in it: each is built when it is first needed, which is half the time
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class Lenient(BaseModel):
    """Part of what others write for themselves: what is read is checked, what is not read may be anything."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True, defer_build=True)


def checked(
    model: type[Kind],
    value: object,
    place: str,
    *,
    keys: Iterable[str] | None = None,
    joint: str = " ",
) -> Kind:
    """`value` as the model; UserError that names place, `joint` and key of each mistake, of others' files of a few.

    `keys` are those that a mistyped one is guessed from; None: the model's own.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        known = sorted(set(model.model_fields if keys is None else keys))
        found = [_broken_rule(details, place, known, joint) for details in error.errors(include_url=False)]
        if issubclass(model, Lenient):
            found = [replace(one, mend=_MEASURED.get(one.mend, one.mend)) for one in found[:MAX_TOLD]]
        raise UserError(*found) from None


def _broken_rule(details: Any, place: str, keys: list[str], joint: str) -> Problem:
    path = key_path(details["loc"])
    kind, value = details["type"], details["input"]
    rule, mend = _RULES.get(kind, (details["msg"].removeprefix("Value error, "), ""))
    if kind in _RULES:
        rule = rule.format_map({key: _plain(bound) for key, bound in details.get("ctx", {}).items()})
    if kind == "missing":
        value = NOTHING
    elif kind == "extra_forbidden":
        name = str(details["loc"][-1])
        near = get_close_matches(name, [key for key in keys if key != name], n=1, cutoff=0.6)
        mend = f"did you mean {near[0]}?" if near else mend
    elif isinstance(value, dict):
        value = NOTHING
    if kind == "float_type" and not isinstance(value, str):
        mend = "write a number"
    return Problem(f"{place}{joint}{path}" if path else place, rule, value, mend)


def _plain(bound: object) -> object:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def key_path(location: tuple[int | str, ...]) -> str:
    """`("step_time", "two_regime", "mixed", 3)` as `step_time.mixed[3]`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in _UNION_TAGS:
            text += f".{part}"
    return text.lstrip(".")


class Mistake(NamedTuple):
    """A broken rule that involves several keys, and the key to show it at; no rule: the key is missing."""

    key: str
    rule: str = ""
    mend: str = ""


def rule_error(rule: str, mend: str) -> PydanticCustomError:
    """A ValueError that carries what to do about it."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule, "mend": mend})


def refuse(model: BaseModel, mistakes: Iterable[Mistake]) -> None:
    """Raise pydantic's ValidationError with each mistake at its own key; nothing when there are none."""
    details = [_details(model, mistake) for mistake in mistakes]
    if details:
        raise ValidationError.from_exception_data(type(model).__name__, details)


def _details(model: BaseModel, mistake: Mistake) -> InitErrorDetails:
    value: Any = getattr(model, mistake.key, None)
    kind = rule_error(mistake.rule, mistake.mend) if mistake.rule else "missing"
    return InitErrorDetails(type=kind, loc=(mistake.key,), input=value)


MAX_TOKENS = 2**31 - 1
MAX_REQUESTS = 10**9

Count = Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Rate = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(ge=0, le=9e6)]
Duration = Annotated[float, Field(ge=1e-6, le=9e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Burstiness = Annotated[float, Field(gt=0, le=1e6)]
PRIORITY_NAMES = {"high": 0, "normal": 1, "low": 2}


def priority_of(key: str | int) -> int | None:
    """The level that a class name or an integer (also as text) means; None when it means none."""
    if isinstance(key, str):
        text = key.strip()
        if text in PRIORITY_NAMES:
            return PRIORITY_NAMES[text]
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 11):
            return None
        key = int(text)
    return key if -(2**31) <= key < 2**31 else None
