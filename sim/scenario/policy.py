"""The scenario's policy and router as objects, who predicts output lengths for them, and what a sweep varies.

A stated error predicts, the trace or a function; one that is ignored is an error:

- A policy asks when it has a parameter `predictor_error`, or reads `predicted_output_tokens` somewhere in its class.
- Without anything else its `predictor_error` draws them. A trace's column, or a function, takes the default's place.
- A `predictor_error` that somebody wrote beside a column or a function is an error: one of them would be ignored.
- So are a column beside a function, and a function under a policy that never asks. A column under such a policy is not:
  it is data of the trace, as a tenant is, and `compare` puts that policy beside others that read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from inspect import isfunction
from types import CodeType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import Mistake, Strict, refuse, rule_error
from simbatch.sim.plugins import Plugins, place_of
from simbatch.sim.plugins.policy import POLICIES, Policy
from simbatch.sim.plugins.router import ROUTERS, Router
from simbatch.sim.scenario.reading import Source
from simbatch.sim.workload.chunk import Predictor, name_of

T = TypeVar("T")


def build_policy(name: str, params: dict[str, Any], source: Source) -> Policy:
    """Make the policy `name` with `params`; UserError at the parameters that it does not take."""
    return _build(POLICIES, name, params, source)


def build_router(name: str, params: dict[str, Any], source: Source) -> Router:
    """Make the router `name` with `params`; UserError at the parameters that it does not take."""
    return _build(ROUTERS, name, params, source)


def _build(plugins: Plugins[T], name: str, params: dict[str, Any], source: Source) -> T:
    from simbatch.sim.scenario.problems import Hints, problems_of

    try:
        return plugins.load(name, params, folder=source.folder)
    except ValidationError as error:
        kind: Any = plugins.find(name, folder=source.folder)
        path = tuple(plugins.key.split("."))
        known: dict[str, Any] = {"properties": {field.name: {} for field in fields(kind)}}
        for part in reversed(path):
            known = {"properties": {part: known}}
        raise UserError(*problems_of(error, source, Hints(known), prefix=path)) from None
    except UserError as error:
        raise UserError(*(_at_parameter(plugins.key, problem, params) for problem in error.problems)) from None
    except Exception as error:  # whatever a user's own class does when it is made
        place, mend = place_of(error, plugins.find(name, folder=source.folder))
        rule = f"the {plugins.word} cannot be made: {type(error).__name__}: {error}"
        raise UserError(Problem(place, rule, name, mend)) from error


def _at_parameter(place: str, problem: Problem, params: dict[str, Any]) -> Problem:
    """What parameters do wrong together: at the one that the rule begins with, if any, with what the user wrote."""
    key = problem.rule.partition(" ")[0]
    if problem.place != place:
        return problem
    if key not in params:
        return replace(problem, value=params)
    return replace(problem, place=f"{place}.{key}", rule=problem.rule.removeprefix(key).strip(), value=params[key])


ERROR, READ, COLUMN = "predictor_error", "predicted_output_tokens", "predicted_output_tokens"
STATED, OF_TRACE = "stated_error", "trace"


def asks(policy: Policy) -> bool:
    """Whether the policy can have a use for predictions."""
    kinds = type(policy).__mro__[: type(policy).__mro__.index(Policy)]
    functions = (member for kind in kinds for member in vars(kind).values() if isfunction(member))
    return hasattr(policy, ERROR) or any(_reads(function.__code__) for function in functions)


def prediction_problems(
    policy: Policy, name: str, predictor: Predictor | None, *, foretold: bool, is_written: bool
) -> Iterator[Problem]:
    """What is wrong with who predicts; `is_written`: whether somebody wrote the policy's `predictor_error`."""
    if predictor is not None and not asks(policy):
        rule = f"policy {name} never asks for predictions, so the predictor would be ignored"
        yield Problem("predictor", rule, name_of(predictor), f"leave it out, or take a policy that reads {READ}")
    if predictor is not None and foretold:
        rule = f"the trace has a column {COLUMN} of its own, and only one of them can be meant"
        yield Problem("predictor", rule, name_of(predictor), "leave one of them out")
    if is_written and (foretold or predictor is not None):
        who = f"the trace's column {COLUMN}" if foretold else f"the predictor {name_of(predictor)}" if predictor else ""
        rule = f"{who} says what is predicted, so this error would be ignored"
        yield Problem(f"policy.{ERROR}", rule, getattr(policy, ERROR), "leave one of them out")


def is_own(policy: Policy) -> bool:
    """Of a policy that was made in Python: whether its `predictor_error` is another than the default."""
    default = next((field.default for field in fields(policy) if field.name == ERROR), None)
    return getattr(policy, ERROR, default) != default


def _reads(code: CodeType) -> bool:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return READ in code.co_names or any(map(_reads, inner))


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
