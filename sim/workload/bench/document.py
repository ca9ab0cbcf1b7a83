"""The JSON values of a file: one, or several one after the other, as lines of JSON or as `--append-result` leaves them.

NaN and infinities are read as Python's JSON writes them; whoever reads a column checks its numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.section import MAX_TOKENS
from simbatch.sim.workload.traces.lines import once
from simbatch.sim.workload.traces.text import compression_of, text_errors
from simbatch.sim.workload.traces.values import BadValueError

_DECODER = json.JSONDecoder(object_pairs_hook=once)
_SPACE = re.compile(r"\s*")  # between two values
MAX_TOLD = 5  # mistakes of one value: the others are of the same kind
MAX_KEYS = 8  # of an unknown file

Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Time = Annotated[float, Field(ge=-1e12, le=1e12)]
Lasted = Annotated[float, Field(ge=0, le=MAX_TIME_S)]


class Document(NamedTuple):
    """A JSON value and where it begins."""

    place: str
    value: Any


class Model(BaseModel):
    """Part of a result: what is read is checked, what is not read may be anything."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)


def read_text(path: Path) -> str:
    """The file as text; UserError when it cannot be read, is packed or is not UTF-8."""
    try:
        packed = compression_of(path)
        if packed:
            raise packed
        with text_errors(path):
            return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", mend="check the path")) from None


def documents(path: Path, text: str) -> Iterator[Document]:
    """Every JSON value of the text; UserError with line and column at what is none."""
    position, line, counted = _skipped(text, 0), 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            place, shown = f"{path}:{error.lineno}:{error.colno}", text[max(error.pos - 20, 0) : error.pos + 20]
            mend = "write the file again if it was cut off"
            raise UserError(Problem(place, f"not valid JSON: {error.msg}", shown, mend)) from None
        except BadValueError as error:
            raise UserError(Problem(f"{path}:{line}", error.rule, mend=error.mend)) from None
        except RecursionError:
            raise UserError(Problem(f"{path}:{line}", "JSON is nested too deeply")) from None
        except ValueError as error:  # an integer of thousands of digits
            raise UserError(Problem(f"{path}:{line}", f"not valid JSON: {error}")) from None
        position = _skipped(text, end)
        is_alone = not counted and position == len(text)
        yield Document(str(path) if is_alone else f"{path}:{line}", value)


def _skipped(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def checked(model: type[Model], value: object, place: str) -> Any:
    """`value` as the model; UserError that names place and key."""
    from simbatch.sim.cost.load import problems_of

    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(*problems_of(error, place, model.model_fields).problems[:MAX_TOLD]) from None


def keys_of(value: object) -> str:
    """What an unknown value has, cut short."""
    if not isinstance(value, dict):
        return f"a {'list' if isinstance(value, list) else 'single value'}"
    shown = ", ".join(str(key)[:30] for key in list(value)[:MAX_KEYS])
    more = len(value) - MAX_KEYS
    return f"the keys {shown or '(none)'}" + (f" and {more:,} more" if more > 0 else "")
