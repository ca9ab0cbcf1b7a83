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

from pydantic import ValidationError

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.results.runs import Settings
from simbatch.sim.scenario import Resolved, Scenario, resolve
from simbatch.sim.scenario.policy import Range
from simbatch.sim.tuning.goal import SEQS, TOKENS, Limit

Point = tuple[int, ...]

POLICY = "policy.name"
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


SECTIONS = ("engine", "policy", "cluster", "profile")
MIN_TOKENS, MORE_TOKENS = 256, 4  # times the default of the GPU
TARGET_SHARES = (0.5, 0.75, 1.0)  # of the latency that is asked for
DEFAULT_TPOT_MS = 50.0
AGEING_S = (5.0, 30.0, 120.0)


def seat_counts(limit: int) -> Iterator[int]:
    """Powers of two and what lies halfway between them: 1, 2, 3, 4, 6, 8, 12, ... up to `limit`."""
    power = 1
    while power <= limit:
        yield power
        if power >= 2 and power * 3 // 2 <= limit:
            yield power * 3 // 2
        power *= 2


def seats_axis(resolved: Resolved) -> Axis:
    """`max_num_seqs` from 1 to vLLM's default on this GPU, or to the scenario's own when that is more."""
    own = resolved.engine.max_num_seqs
    return Axis(SEQS, _ascending([*seat_counts(max(resolved.profile.default_max_num_seqs, own)), own]))


def default_axes(resolved: Resolved, limits: Sequence[Limit] = ()) -> list[Axis]:
    """Seats, token budget and the policies that go with the scenario's kind of batching, with their parameters."""
    own = resolved.engine.max_num_batched_tokens
    most = MORE_TOKENS * resolved.profile.default_max_num_batched_tokens
    tokens = [MIN_TOKENS * 2**i for i in range((most // MIN_TOKENS).bit_length())]
    axes = [seats_axis(resolved), Axis(TOKENS, _ascending([*tokens, own]))]
    policies = _policies(resolved)
    axes.append(Axis(POLICY, tuple(policies)))
    params = resolved.policy.parameters()
    if "adaptive" in policies:
        wanted = _wanted_tpot_ms(resolved, limits)
        targets = [float(f"{share * wanted:.3g}") for share in TARGET_SHARES]
        targets += [float(params["target_tpot_ms"])] if params.get("target_tpot_ms") else []
        axes.append(Axis("policy.target_tpot_ms", _ascending(targets)))
    if "priority" in policies:
        ages = [*AGEING_S, *([params["ageing_s"]] if "ageing_s" in params else [])]
        axes.append(Axis("policy.ageing_s", _ascending(ages)))
    return [axis for axis in axes if len(axis.values) > 1]


def _policies(resolved: Resolved) -> list[str]:
    """The scenario's own first, then those that ship and go with it."""
    scenario = resolved.scenario
    others = ["vllm", "adaptive"] if scenario.engine.batching == "continuous" else ["fixed", "adaptive"]
    if scenario.workload.priorities:
        others.append("priority")
    if scenario.engine.scheduling_policy == "priority":  # the order is vLLM's own
        others = ["vllm"]
    for name in others:
        POLICIES.find(name, folder=scenario.folder)
    return list(dict.fromkeys([scenario.policy.name, *others]))


def _wanted_tpot_ms(resolved: Resolved, limits: Sequence[Limit]) -> float:
    """What a limit says, else the SLO, else the policy's default."""
    asked = [limit.bound for limit in limits if limit.metric.key.endswith("_tpot_ms") and limit.bound > 0]
    return min(asked, default=resolved.scenario.slo.tpot_ms or DEFAULT_TPOT_MS)


def axes_of(block: Mapping[str, Any], origin: str) -> list[Axis]:
    """Axes from keys and their values, as a `tune:` block or --over says them; UserError at a key."""
    problems = []
    axes = []
    for key, given in block.items():
        place = f"{origin} {key}"
        values = _values(given, place)
        if str(key).partition(".")[0] not in SECTIONS or key in ("engine", "policy", "cluster"):
            mend = f"for example {SEQS}, {TOKENS}, {POLICY} or policy.target_tpot_ms"
            problems.append(Problem(place, "tune searches keys of engine, policy and cluster, and profile", mend=mend))
        elif not values or any(value is None or isinstance(value, (list, dict)) for value in values):
            mend = f"write {key}: [8, 16, 32], or {{from: 8, to: 64, steps: 8}}"
            problems.append(Problem(place, "must be a list of values", given, mend))
        else:
            axes.append(Axis(str(key), _ascending(values)))
    if problems:
        raise UserError(*problems)
    return axes


def _values(given: Any, place: str) -> list[Any]:
    """A list as it is, a range as its numbers: whole ones when it goes from one whole number to another."""
    if not isinstance(given, dict):
        return given if isinstance(given, list) else [given]
    try:
        numbers = Range.model_validate(given).numbers()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        rule = f"is no range: {'.'.join(map(str, first['loc']))} {first['msg']}".replace("  ", " ")
        raise UserError(Problem(place, rule, given, "write {from: 8, to: 64, steps: 8}")) from None
    is_whole = isinstance(given["from"], int) and isinstance(given["to"], int)
    return [round(number) for number in numbers] if is_whole else numbers


def _ascending(values: Sequence[Any]) -> tuple[Any, ...]:
    """Each once; numbers in order, names as they were given."""
    once = tuple(dict.fromkeys(values))
    return tuple(sorted(once)) if Axis("", once).is_ordered else once


def values_of(scenario: Scenario) -> dict[str, Any]:
    """What every key that can be searched has in a scenario, by dotted key, defaults resolved."""
    resolved = resolve(scenario)
    policy = {f"policy.{key}": value for key, value in resolved.policy.parameters().items()}
    engine = {f"engine.{key}": value for key, value in resolved.engine_settings().items()}
    return {**engine, **policy, POLICY: resolved.policy_name, "profile": scenario.profile}
