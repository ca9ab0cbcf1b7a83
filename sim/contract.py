"""What contract tests of plugins (policies, routers) ask alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from simbatch.sim.engine.record import RunRecord


def parameters_fault(made: Any) -> str | None:
    """Why what YAML and JSON give back does not make the same plugin; None where it does."""
    parameters = made.parameters()
    try:
        again = type(made)(**json.loads(json.dumps(parameters)))
    except (TypeError, ValueError) as error:
        return str(error)
    return None if again.parameters() == parameters else f"{again.parameters()} of {parameters}"


def differences(expected: RunRecord, found: RunRecord, what: str) -> Iterator[str]:
    """Requests, and steps where they are kept, that fare otherwise in `found`; `what` was done to get it."""
    for field in fields(expected.requests):
        one, other = getattr(expected.requests, field.name), getattr(found.requests, field.name)
        if isinstance(one, np.ndarray) and not np.array_equal(one, other):
            i = int(np.flatnonzero(one != other)[0])
            yield f"{what}: {field.name} of request {i} is {one[i]} and {other[i]}"
    for row, again in zip(expected.steps or (), found.steps or (), strict=False):
        if row != again:
            yield f"{what}: step {row.step} is {row} and {again}"
