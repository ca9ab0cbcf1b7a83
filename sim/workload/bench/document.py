"""What results of benchmarks have in common: numbers in their bounds, files as text, keys in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.section import MAX_TOKENS
from simbatch.sim.workload.traces.text import compression_of, text_errors

MAX_KEYS = 8  # of an unknown file

Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Time = Annotated[float, Field(ge=-1e12, le=1e12)]
Lasted = Annotated[float, Field(ge=0, le=MAX_TIME_S)]


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


def keys_of(value: object) -> str:
    """What an unknown value has, cut short."""
    if not isinstance(value, dict):
        return f"a {'list' if isinstance(value, list) else 'single value'}"
    shown = ", ".join(str(key)[:30] for key in list(value)[:MAX_KEYS])
    more = len(value) - MAX_KEYS
    return f"the keys {shown or '(none)'}" + (f" and {more:,} more" if more > 0 else "")
