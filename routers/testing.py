"""The contract test: what no router may break, tried on random clusters and requests.

>>> from simbatch.routers.testing import check_router
>>> check_router("least_requests", num_cases=5).num_cases
5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.routers.base import Router
from simbatch.routers.random_clusters import ClusterCase, random_cluster
from simbatch.routers.registry import ROUTERS
from simbatch.sim.engine.record import UNFINISHED, RunRecord, differences
from simbatch.sim.errors import UserError
from simbatch.sim.plugins import parameters_fault


class RouterError(AssertionError):
    """A router breaks a rule; says which, on which of the random cases, and how."""


@dataclass(frozen=True)
class Checked:
    """What was tried, and how much of it."""

    num_cases: int
    num_requests: int
    num_replicas: int
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """A router on one random cluster, simulated step by step."""

    router: Router
    case: ClusterCase
    record: RunRecord


def check_router(
    router: Router | type[Router] | str,
    *,
    num_cases: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Checked:
    """Run a router (an object, a class, or a name as in YAML, with `parameters`) through random clusters.

    Raises RouterError at the first rule that it breaks. `seed` numbers the first case; a fault names the seed of its
    own.
    """
    made = _made(router, parameters)
    name = type(made).__name__
    if (fault := parameters_fault(made)) is not None:
        raise RouterError(f"{type(made).__name__} breaks the rule 'parameters': {fault}")
    num_requests = num_replicas = 0
    for number in range(seed, seed + num_cases):
        case = random_cluster(number)
        try:
            record = case.run(made, spans=False)
        except UserError as error:
            raise RouterError(f"{name} breaks the rule 'answers' in case {number}: {error}") from error
        num_requests, num_replicas = num_requests + len(record.requests), num_replicas + len(case.members)
        for rule, check in RULES.items():
            if (fault := next(check(Trial(made, case, record)), None)) is not None:
                raise RouterError(f"{name} breaks the rule {rule!r} in case {number}: {fault}")
        if progress is not None:
            progress(number - seed + 1)
    return Checked(num_cases, num_requests, num_replicas, ("parameters", "answers", *RULES))


def _made(router: Router | type[Router] | str, parameters: dict[str, Any]) -> Router:
    if isinstance(router, str):
        return ROUTERS.load(router, parameters, folder=Path())
    return router(**parameters) if isinstance(router, type) else router


def _conservation(trial: Trial) -> Iterator[str]:
    """Every request ends once, on one replica."""
    requests = trial.record.requests
    assert requests.replica is not None
    for i in np.flatnonzero(requests.status == UNFINISHED):
        yield f"request {i} never ends, on replica {requests.replica[i]}"
    parts = sum(len(part.requests) for part in trial.record.parts())
    if parts != len(requests):
        yield f"{parts} requests on all replicas, of {len(requests)}"


def _determinism(trial: Trial) -> Iterator[str]:
    """The same object does the same again: its state is made in `start`."""
    again = trial.case.run(trial.router, spans=False)
    yield from differences(trial.record, again, "run again, the same object does otherwise")


def _spans(trial: Trial) -> Iterator[str]:
    """Leaping over steps in which nothing changes gives the same: what is shown does not depend on it."""
    yield from differences(trial.record, trial.case.run(trial.router), "leaping over steps differs")


def _draws(trial: Trial) -> Iterator[str]:
    """A router that says that it never draws does the same under another seed."""
    if not trial.router.draws:
        other = replace(trial.case, seed=trial.case.seed + 1)
        yield from differences(trial.record, other.run(trial.router, spans=False), "draws is False, and it draws")


RULES: dict[str, Callable[[Trial], Iterator[str]]] = {
    "conservation": _conservation,
    "determinism": _determinism,
    "spans": _spans,
    "draws": _draws,
}
