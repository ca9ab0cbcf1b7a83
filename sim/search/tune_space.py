"""What a search may set: axes of values by dotted key, and the settings that their combinations make.

A point is one index per axis. A parameter that its policy does not have stands at index 0, so that equal settings are
one point. Neighbouring indices are neighbouring values, which the search makes use of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import prod
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.scenario import Scenario, resolve

Point = tuple[int, ...]
Settings = dict[str, Any]  # by dotted key, as `Scenario.override` takes them

SEQS, TOKENS, POLICY = "engine.max_num_seqs", "engine.max_num_batched_tokens", "policy.name"
CAPS = ("batch_size", "max_batch_size")  # a policy's own bound on what runs
MAX_POINTS = 100_000


@dataclass(frozen=True)
class Axis:
    """A key and the values that it may take; numbers in ascending order."""

    key: str
    values: tuple[Any, ...]

    @property
    def is_ordered(self) -> bool:
        """Whether neighbours are alike: numbers, not names."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)

    @property
    def parameter(self) -> str | None:
        """The policy's parameter that this is, if any."""
        section, _, name = self.key.partition(".")
        return name if section == "policy" and name != "name" else None


class Space:
    """Every combination of the axes' values, as changes of one scenario.

    `origin` is where somebody named the values: a value with which no combination starts is then an error at its key.
    Without it, such values of the usual axes are left out like any combination that does not start.
    """

    def __init__(self, scenario: Scenario, axes: Sequence[Axis], origin: str | None = None) -> None:
        self.scenario, self.axes, self._origin = scenario, tuple(axes), origin or "tune"
        self._parameters = {name: self._parameters_of(name) for name in self.policies()}
        self._refused: dict[Point, UserError | None] = {}
        self._check_axes()
        self.points = list(dict.fromkeys(map(self.canonical, self._combinations())))
        if not any(self.is_allowed(point) for point in self.points):
            raise next(error for error in self._refused.values() if error is not None)
        for number in range(len(self.axes)) if origin else ():
            self._check_values(number)

    def policies(self) -> list[str]:
        """Every policy that is searched; the scenario's own where none is."""
        named = next((axis.values for axis in self.axes if axis.key == POLICY), None)
        return [str(name) for name in named] if named else [self.scenario.policy.name]

    def _parameters_of(self, name: str) -> set[str]:
        try:
            return {field.name for field in fields(POLICIES.find(name, folder=self.scenario.folder))}
        except UserError as error:
            raise UserError(*(replace(each, place=f"{self._origin} {each.place}") for each in error.problems)) from None

    def _check_axes(self) -> None:
        """UserError for far too many values, and for a parameter that no policy has."""
        size = prod(len(axis.values) for axis in self.axes)
        if size > MAX_POINTS:
            rule = f"the values make more than {MAX_POINTS:,} combinations"
            raise UserError(Problem(self._origin, rule, size, "leave out values, or keys"))
        for axis in self.axes:
            if axis.parameter and not any(axis.parameter in known for known in self._parameters.values()):
                rule = f"no policy that is searched ({', '.join(self._parameters)}) has this parameter"
                raise UserError(Problem(f"{self._origin} {axis.key}", rule, mend="see `simbatch policies`"))

    def _check_values(self, number: int) -> None:
        """UserError when nothing starts with some value of an axis: it would be left out without a word."""
        axis = self.axes[number]
        having: dict[int, list[Point]] = {}
        for point in self.points:
            if axis.parameter is None or axis.parameter in self._parameters[self.policy_of(point)]:
                having.setdefault(point[number], []).append(point)
        for points in having.values():
            if not any(self.is_allowed(point) for point in points):
                raise next(error for point in points if (error := self._refused[point]) is not None)

    def _combinations(self) -> Iterator[Point]:
        return product(*(range(len(axis.values)) for axis in self.axes))

    def policy_of(self, point: Point) -> str:
        """Which policy runs there."""
        return str(self._value(point, POLICY, self.scenario.policy.name))

    def canonical(self, point: Point) -> Point:
        """The one point of all with the same settings."""
        known = self._parameters[self.policy_of(point)]
        pairs = zip(point, self.axes, strict=True)
        return tuple(i if axis.parameter is None or axis.parameter in known else 0 for i, axis in pairs)

    def settings(self, point: Point) -> Settings:
        """The changes of the scenario; the policy, where it is searched, as one section."""
        settings = {
            axis.key: axis.values[i]
            for i, axis in zip(point, self.axes, strict=True)
            if axis.key != POLICY and axis.parameter is None
        }
        policy = self._policy(point)
        own = {"name": self.scenario.policy.name, **self.scenario.policy.params}
        return settings if policy == own else {**settings, "policy": policy}

    def _policy(self, point: Point) -> dict[str, Any]:
        """Name and parameters: what the scenario says of this policy, and on top what is searched.

        A policy's own bound follows `max_num_seqs` where nobody set it, since it would cut the search short.
        """
        name = self.policy_of(point)
        own = self.scenario.policy
        params = dict(own.params) if name == own.name else {}
        known = self._parameters[name]
        chosen = {
            axis.parameter: axis.values[i]
            for i, axis in zip(point, self.axes, strict=True)
            if axis.parameter is not None and axis.parameter in known
        }
        if any(key.startswith("target_") for key in chosen):  # a policy steers on one target
            params = {key: value for key, value in params.items() if not key.startswith("target_")}
        params |= chosen
        seats = self._value(point, SEQS, None)
        if seats is not None:
            params |= {cap: seats for cap in CAPS if cap in known and cap not in params}
        return {"name": name, **params}

    def _value(self, point: Point, key: str, default: Any) -> Any:
        pairs = zip(point, self.axes, strict=True)
        return next((axis.values[i] for i, axis in pairs if axis.key == key), default)

    def is_allowed(self, point: Point) -> bool:
        """Whether vLLM and the policy would start with these settings."""
        if point not in self._refused:
            try:
                resolve(self.scenario.override(self.settings(point), origin=self._origin))
                self._refused[point] = None
            except UserError as error:
                self._refused[point] = error
        return self._refused[point] is None

    @property
    def num_refused(self) -> int:
        """How many of the points that were looked at cannot start."""
        return sum(error is not None for error in self._refused.values())

    def neighbours(self, point: Point) -> list[Point]:
        """Where one number is the next one up or down, or one name is another."""
        found = []
        for number, axis in enumerate(self.axes):
            i, n = point[number], len(axis.values)
            others = (j for j in (i - 1, i + 1) if 0 <= j < n) if axis.is_ordered else (j for j in range(n) if j != i)
            found += [self.canonical((*point[:number], j, *point[number + 1 :])) for j in others]
        return [other for other in dict.fromkeys(found) if other != point]

    def nearest(self, wanted: Mapping[str, Any]) -> Point:
        """The point whose values are those of `wanted`, or next to them; index 0 where it says nothing."""
        return self.canonical(tuple(_nearest(axis, wanted.get(axis.key)) for axis in self.axes))


def _nearest(axis: Axis, value: Any) -> int:
    if value in axis.values:
        return axis.values.index(value)
    if value is None or isinstance(value, bool) or not (axis.is_ordered and isinstance(value, (int, float))):
        return 0
    return min(range(len(axis.values)), key=lambda i: abs(axis.values[i] - value))
