"""The contract test: what no router may break, tried on random clusters and requests.

>>> from simbatch.routers.testing import check_router
>>> check_router("least_requests", num_cases=5).num_cases
5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from simbatch.sim.engine.record import UNFINISHED, differences
from simbatch.sim.plugins.router import ROUTERS, Router
from simbatch.sim.plugins.testing import BrokenRuleError, Checked, Rule, TriedCase, check, determinism, spans
from simbatch.sim.plugins.testing.cases import ClusterCase, random_cluster

Trial = TriedCase[ClusterCase]


class RouterError(BrokenRuleError):
    """A router breaks a rule; says which, on which of the random cases, and how."""


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
    made = ROUTERS.made(router, parameters)
    return check(
        made, random_cluster, RULES, RouterError, skipped={}, num_cases=num_cases, seed=seed, progress=progress
    )


def _conservation(trial: Trial) -> Iterator[str]:
    """Every request ends once, on one replica."""
    requests = trial.record.requests
    assert requests.replica is not None
    for i in np.flatnonzero(requests.status == UNFINISHED):
        yield f"request {i} never ends, on replica {requests.replica[i]}"
    parts = sum(len(part.requests) for part in trial.record.parts())
    if parts != len(requests):
        yield f"{parts} requests on all replicas, of {len(requests)}"


def _draws(trial: Trial) -> Iterator[str]:
    """A router that says that it never draws does the same under another seed."""
    if not trial.made.draws:
        other = replace(trial.case, seed=trial.case.seed + 1)
        yield from differences(trial.record, other.run(trial.made, spans=False), "draws is False, and it draws")


RULES: dict[str, Rule[ClusterCase]] = {
    "conservation": _conservation,
    "determinism": determinism,
    "spans": spans,
    "draws": _draws,
}
