"""What results of benchmarks have in common: numbers in their bounds, files as text, keys in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.files import cut_short, open_text, text_errors
from simbatch.sim.workload.section import MAX_TOKENS

Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Time = Annotated[float, Field(ge=-1e12, le=1e12)]
Lasted = Annotated[float, Field(ge=0, le=MAX_TIME_S)]


def read_text(path: Path) -> str:
    """The file as text; UserError when it cannot be read, is packed or is not UTF-8."""
    try:
        with text_errors(path), open_text(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror}", mend="check the path")) from None


def keys_of(value: object) -> str:
    """What an unknown value has, cut short."""
    if not isinstance(value, dict):
        return f"a {'list' if isinstance(value, list) else 'single value'}"
    return f"the keys {cut_short(value)}"
