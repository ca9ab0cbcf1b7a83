"""What the models of a workload have in common: strict values, and errors that stand at the key they are about."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

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
