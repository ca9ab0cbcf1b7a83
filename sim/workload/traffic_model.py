"""Synthetic requests as pydantic models: what a workload may say itself, and each part of a `mix`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from simbatch.sim.workload.arrival_model import Arrival, ClosedLoop, Gamma
from simbatch.sim.workload.length_model import Length
from simbatch.sim.workload.section import Burstiness, Count, Mistake, Rate, Section, refuse, rule_error

PRIORITY_NAMES = {"high": 0, "normal": 1, "low": 2}
MAX_NAME = 100
REQUIRED = ("num_prompts", "prompt_len", "output_len")
SHARED = ("request_rate", "burstiness", "rescale", "max_concurrency")  # may stand in `arrival` or beside it


class Traffic(Section):
    """How many requests arrive, when, and how long they are."""

    num_prompts: Count | None = Field(default=None, description="how many requests arrive")
    request_rate: Rate | None = Field(
        default=None, description="requests per second, as in vllm bench serve; or give `arrival`"
    )
    burstiness: Burstiness | None = Field(
        default=None, description="shape of the gamma gaps between arrivals: 1 is Poisson, less is burstier (default 1)"
    )
    rescale: bool | None = Field(
        default=None,
        description="put the last arrival at num_prompts / request_rate, as vLLM does (default true); theory: false",
    )
    arrival: Arrival | None = Field(default=None, description="another arrival process than gamma gaps, by `process`")
    prompt_len: Length | None = Field(default=None, description="distribution of the prompts' lengths, tokens")
    output_len: Length | None = Field(default=None, description="distribution of the outputs' lengths, tokens")

    def _synthetic_mistakes(self) -> list[Mistake]:
        missing = [Mistake(key) for key in REQUIRED if getattr(self, key) is None]
        return missing + self._arrival_mistakes()

    def _arrival_mistakes(self) -> list[Mistake]:
        if self.arrival is None:
            return [] if self.request_rate is not None else [Mistake("request_rate")]
        fields, name = type(self.arrival).model_fields, f"arrival process {self.arrival.process}"
        mistakes = []
        for key in SHARED:
            beside = getattr(self, key, None)
            if key in fields and getattr(self.arrival, key) is not None and beside is not None:
                mistakes.append(Mistake(key, f"stands both here and in arrival.{key}", "keep one of them"))
            elif key not in fields and beside is not None and key != "max_concurrency":
                mistakes.append(Mistake(key, f"{name} has no {key}", "leave it out"))
        needed = "max_concurrency" if isinstance(self.arrival, ClosedLoop) else "request_rate"
        if needed in fields and getattr(self.arrival, needed) is None and getattr(self, needed, None) is None:
            mistakes.append(Mistake("arrival", f"{name} needs {needed}", f"add arrival.{needed}"))
        return mistakes

    def resolved_arrival(self) -> Arrival:
        """The arrival process with what stands beside it (`request_rate`, ...) filled in; gamma when none is named."""
        arrival = self.arrival or Gamma(process="gamma")
        given = {key: getattr(self, key, None) for key in SHARED if key in type(arrival).model_fields}
        return arrival.model_copy(update={key: value for key, value in given.items() if value is not None})


class Part(Traffic):
    """One tenant's requests among those of a `mix`."""

    tenant: Annotated[str, Field(max_length=MAX_NAME)] = Field(description="whose requests these are")
    priority: str | int | None = Field(
        default=None, description="of all of them: high, normal, low, or an integer (lower goes first)"
    )

    @field_validator("tenant")
    @classmethod
    def _check_tenant(cls, name: str) -> str:
        return checked_name(name)

    @field_validator("priority")
    @classmethod
    def _check_priority(cls, priority: str | int | None) -> str | int | None:
        if priority is not None and priority_of(priority) is None:
            raise rule_error("must be high, normal, low or an integer", "lower goes first; leave it out for 0")
        return priority

    @model_validator(mode="after")
    def _check(self) -> Self:
        mistakes = self._synthetic_mistakes()
        if isinstance(self.arrival, ClosedLoop):
            rule = "a closed loop cannot be part of a mix: its arrivals depend on the answers"
            mistakes = [Mistake("arrival", rule, "take a process with times of its own: gamma, constant, on_off")]
        refuse(self, mistakes)
        return self


def checked_name(name: str) -> str:
    """A tenant's name, when it can be one."""
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise rule_error(f"the tenant {name!r} has no name to show", "give it letters, without spaces round them")
    return name


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
