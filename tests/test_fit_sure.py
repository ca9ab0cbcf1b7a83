"""How sure a fit from streams is: few episodes claim little, and graphs end where the seats say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from simbatch.profiler.fit.streams.sure import Scatter, scatter_of


def solved(columns: np.ndarray[Any, Any], seen: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], Scatter]:
    """Least squares of one residual and one sum an episode."""
    both = np.vstack([columns, columns])
    values = np.linalg.lstsq(both, np.tile(seen, 2), rcond=None)[0]
    found = SimpleNamespace(x=values, fun=both @ values - np.tile(seen, 2), jac=both)
    return values, scatter_of(cast("Any", found), np.ones((len(seen), 1), dtype=bool), 0, 1)


@pytest.mark.parametrize("number", [5, 8, 24])
def test_what_is_said_holds_however_few_the_episodes(number: int) -> None:
    """1.96 errors hold 19 of 20, where launches of some episodes are noisier than the others'."""
    rng, held = np.random.default_rng(number), []
    for _ in range(400):
        columns = np.column_stack([np.ones(number), rng.uniform(0, 1, number)])
        values, scatter = solved(columns, rng.normal(0, 1 + 2 * columns[:, 1]))
        held.append(np.abs(values) <= 1.96 * scatter.errors(np.eye(2)))
    assert np.mean(held) >= 0.93


def test_one_episode_alone_tells_no_launch() -> None:
    """It fits itself: its residual is nothing, and so was the error of what it alone tells."""
    columns = np.column_stack([np.ones(12), np.append(np.zeros(11), 1.0)])
    prior = np.array([[0.0, 0.1]])
    both = np.vstack([columns, columns, prior])
    seen = np.concatenate([np.tile(np.append(np.ones(11), 3.0), 2), [0.0]])
    values = np.linalg.lstsq(both, seen, rcond=None)[0]
    found = SimpleNamespace(x=values, fun=both @ values - seen, jac=both)
    errors = scatter_of(cast("Any", found), np.ones((12, 1), dtype=bool), 0, 1).errors(np.eye(2))
    assert errors[0] < 0.1
    assert errors[1] > values[1]
