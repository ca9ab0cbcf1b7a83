"""Models of what others write, checked strictly by pydantic, and its errors as problems in plain words.

The types that the sections of a workload share stand here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from simbatch.sim.errors import NOTHING, Problem, UserError

Kind = TypeVar("Kind", bound=BaseModel)
MAX_TOLD = 5  # mistakes of one value of others' files: the rest are of the same kind
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
        found = [_problem(details, place, known, joint) for details in error.errors(include_url=False)]
        raise UserError(*found[: MAX_TOLD if issubclass(model, Lenient) else None]) from None


def _problem(details: Any, place: str, keys: list[str], joint: str) -> Problem:
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
