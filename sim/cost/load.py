"""Profiles as text: JSON with places, the names that ship, and pydantic's errors in plain words.

Nothing that executes is ever loaded: JSON is the only form.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.paths import read_at_most, shorten_path

MAX_BYTES = 16 * 2**20
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


def shipped_names() -> list[str]:
    """The profiles that ship, in alphabetical order."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def shipped_text(name: str) -> str:
    """The JSON of a shipped profile."""
    return (_folder() / f"{name}.json").read_text(encoding="utf-8")


def read_text(path: Path, place: str) -> str:
    """The text of a profile file, or a UserError that says why it cannot be read."""
    try:
        content = read_at_most(path, MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise UserError(
                Problem(place, f"a profile is at most {MAX_BYTES} bytes", mend="name a profile's JSON file")
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            Problem(place, "no such file", mend="check the path; it starts at the scenario's folder")
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            Problem(place, f"not UTF-8 text at byte {error.start}", mend="a profile is a JSON file")
        ) from None
    except (OSError, ValueError) as error:
        reason = "is a folder" if isinstance(error, IsADirectoryError) else getattr(error, "strerror", None) or error
        raise UserError(Problem(shorten_path(place), f"cannot be read: {reason}", mend="check the path")) from None


def parse_json(text: str, place: str) -> dict[str, Any]:
    """JSON to a dict; double keys, NaN and Infinity are errors."""
    try:
        value = json.loads(text, object_pairs_hook=_no_double_keys, parse_constant=_no_constants)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}:{error.colno}"
        raise UserError(Problem(where, f"not JSON: {error.msg}", mend="mend the text there")) from None
    except (_WrongJsonError, RecursionError) as error:
        raise UserError(Problem(place, str(error), mend="mend the text there")) from None
    except ValueError:  # Python refuses to read so many digits
        raise UserError(Problem(place, "a number has thousands of digits", mend="shorten it")) from None
    if not isinstance(value, dict):
        raise UserError(Problem(place, "a profile is an object with keys", value, "start it with {"))
    return value


def unknown_profile(reference: str) -> UserError:
    """What to say when nothing has this name."""
    near = get_close_matches(reference, shipped_names(), n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    all_of_them = (
        "`simbatch profiles list` shows what ships, `simbatch estimate CONFIG --gpu G -o FILE` makes one of any model"
    )
    rule = "neither a shipped profile nor a file"
    return UserError(Problem("profile", rule, reference, f"{guess}{all_of_them}, or give a path to a .json file"))


def problems_of(error: ValidationError, place: str, keys: Iterable[str], joint: str = " ") -> UserError:
    """Pydantic's errors as Problems at `place` + `joint` + the key's path; `keys` feeds the guesses."""
    known = sorted(set(keys))
    return UserError(*(_problem(details, place, known, joint) for details in error.errors(include_url=False)))


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


class _WrongJsonError(Exception):
    pass


def _no_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [key for key, _ in pairs]
        double = next(key for key in names if names.count(key) > 1)
        raise _WrongJsonError(f"key {double!r} stands twice in one object")
    return result


def _no_constants(name: str) -> float:
    raise _WrongJsonError(f"{name} is no number of JSON; every number must be finite")


def _folder() -> Traversable:
    return files("simbatch.profiles")
