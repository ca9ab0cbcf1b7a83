"""What the models of a workload have in common: strict values, and errors that stand at the key they are about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_TOKENS = 2**31 - 1
MAX_REQUESTS = 10**9

Count = Annotated[int, Field(ge=1, le=MAX_REQUESTS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Rate = Annotated[float, Field(gt=0, le=1e9)]
Seconds = Annotated[float, Field(ge=0, le=9e6)]
Duration = Annotated[float, Field(ge=1e-6, le=9e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Burstiness = Annotated[float, Field(gt=0, le=1e6)]


class Section(BaseModel):
    """No unknown keys, no text or booleans for numbers, no NaN or infinity, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
