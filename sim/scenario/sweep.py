"""The `sweep` section: which settings `simbatch sweep` varies, by dotted path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from simbatch.sim.strict import Mistake, Strict, refuse, rule_error

SECTIONS = ("profile", "host", "engine", "policy", "cluster", "workload", "slo")
MAX_STEPS = 10_000
DIGITS = 12  # of a number between two others: 0.3, not 0.30000000000000004


class Range(Strict):
    """Numbers from one to another, both included."""

    model_config = ConfigDict(serialize_by_alias=True)

    first: float = Field(alias="from", description="the first number")
    last: float = Field(alias="to", description="the last number")
    steps: Annotated[int, Field(ge=2, le=MAX_STEPS)] = Field(description="how many numbers, the ends included")
    scale: Literal["linear", "log"] = Field(
        default="linear", description="equal differences, or equal ratios; rounded where whole numbers are needed"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.first == self.last:
            raise rule_error("a range must start and end at different numbers", "or write a list of one value")
        if self.scale == "log" and (self.first <= 0 or self.last <= 0):
            raise rule_error("a logarithmic range must start and end above 0", "raise them, or take scale: linear")
        return self

    def numbers(self) -> list[float]:
        """All of them, in order."""
        shares = [i / (self.steps - 1) for i in range(self.steps)]
        if self.scale == "log":
            between = [self.first * (self.last / self.first) ** share for share in shares]
        else:
            between = [self.first + (self.last - self.first) * share for share in shares]
        return [self.first, *(float(f"{number:.{DIGITS}g}") for number in between[1:-1]), self.last]


def _values(value: object) -> object:
    if isinstance(value, dict) and not {"from", "to", "steps"} & value.keys():
        raise rule_error(
            "must be a list of values, or {from, to, steps}", "write dotted keys: engine.max_num_seqs: [8]"
        )
    if not isinstance(value, (list, dict)):
        raise rule_error("must be a list of values, or {from, to, steps}", f"write [{json.dumps(value)}]")
    if isinstance(value, list):
        texts = [json.dumps(item, sort_keys=True) for item in value]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise rule_error(f"{twice} stands twice", "keep one of them")
    return value


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "range"


Values = Annotated[list[Any], Field(min_length=1)]
Axis = Annotated[
    Annotated[Values, Tag("list")] | Annotated[Range, Tag("range")], Discriminator(_kind), BeforeValidator(_values)
]


class SweepSection(Strict):
    """Which settings `simbatch sweep` varies: every combination of what stands here."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"engine.max_num_seqs": [16, 32], "policy.name": ["vllm"]}]}
    )
    __pydantic_extra__: dict[str, Axis] = Field(init=False)

    cells: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = Field(
        default=None, description="settings that go together, one mapping of dotted keys a cell"
    )

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        keys = [("cells", key) for cell in self.cells or () for key in cell]
        keys += [(key, key) for key in self.axes()]
        refuse(self, [mistake for at, key in keys for mistake in _mistakes(at, key)])
        return self

    def axes(self) -> dict[str, list[Any] | Range]:
        """The settings beside `cells`."""
        return dict(self.__pydantic_extra__)


def _mistakes(at: str, key: str) -> Iterator[Mistake]:
    section = key.partition(".")[0]
    if section == "seed":
        yield Mistake(at, "seed cannot be varied here", "give --replications N: seeds from the scenario's on")
    elif section not in SECTIONS:
        yield Mistake(at, f"no section of a scenario is called {section!r}", f"there are {', '.join(SECTIONS)}")
