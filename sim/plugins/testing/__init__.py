"""The contract test of policies and routers alike: their rules, tried on random cases until one is broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from simbatch.sim.engine.record import RunRecord, differences
from simbatch.sim.errors import UserError
from simbatch.sim.plugins import Plugin


class BrokenRuleError(AssertionError):
    """A policy or a router breaks a rule; says which, on which of the random cases, and how."""


class Case(Protocol):
    """An engine or a cluster, with its requests."""

    def run(self, made: Any, /, *, spans: bool) -> RunRecord:
        """Simulate it under a policy, behind a router."""


C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class TriedCase(Generic[C]):
    """What happened in one random case, simulated step by step; `again(spans=...)` is the same case and object."""

    made: Any
    case: C
    record: RunRecord
    again: Callable[..., RunRecord]


Rule = Callable[[TriedCase[C]], Iterator[str]]


@dataclass(frozen=True)
class Checked:
    """What was tried, and how much of it; `skipped` are rules that it is free of, with the reason."""

    num_cases: int
    num_requests: int
    num_steps: int
    num_replicas: int
    rules: tuple[str, ...]
    skipped: dict[str, str]


def check(
    made: Plugin,
    random_case: Callable[[int], C],
    rules: Mapping[str, Rule[C]],
    broken: type[BrokenRuleError],
    *,
    skipped: Mapping[str, str],
    num_cases: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Checked:
    """Try every rule on so many random cases from number `seed` on; raises `broken` at the first that does not hold."""
    says = f"{type(made).__name__} breaks the rule"
    if (fault := parameters_fault(made)) is not None:
        raise broken(f"{says} 'parameters': {fault}")
    asked = {name: rule for name, rule in rules.items() if name not in skipped}
    num_requests = num_steps = num_replicas = 0
    for number in range(seed, seed + num_cases):
        case = random_case(number)
        try:
            record = case.run(made, spans=False)
        except UserError as error:
            raise broken(f"{says} 'answers' in case {number}: {error}") from error
        num_requests, num_steps = num_requests + len(record.requests), num_steps + record.num_steps
        num_replicas += record.num_replicas
        for name, rule in asked.items():
            if fault := next(rule(TriedCase(made, case, record, partial(case.run, made))), None):
                raise broken(f"{says} {name!r} in case {number}: {fault}")
        if progress is not None:
            progress(number - seed + 1)
    names = ("parameters", "answers", *asked)
    return Checked(num_cases, num_requests, num_steps, num_replicas, names, dict(skipped))


def parameters_fault(made: Plugin) -> str | None:
    """Why what YAML and JSON give back does not make the same plugin; None where it does."""
    parameters = made.parameters()
    try:
        again = type(made)(**json.loads(json.dumps(parameters)))
    except (TypeError, ValueError) as error:
        return str(error)
    return None if again.parameters() == parameters else f"{again.parameters()} of {parameters}"


def determinism(trial: TriedCase[C]) -> Iterator[str]:
    """An object does what it did when it is run again: its state is made in `start`."""
    yield from differences(trial.record, trial.again(spans=False), "run again, the same object does otherwise")


def spans(trial: TriedCase[C]) -> Iterator[str]:
    """Leaping over steps in which nothing changes gives the same: nothing hangs on being asked at each of them."""
    yield from differences(trial.record, trial.again(spans=True), "leaping over steps differs")
