"""Where better settings may lie: a smooth surface through what was tried, less sure the farther away.

Every figure that decides is a Gaussian process over the places on the axes: a plane and a Matérn 5/2 deviation from it,
whose reach is the likeliest of four. A setting is worth the improvement that is expected of it, times the probability
that it keeps every limit; while nothing keeps them, that probability alone.

Sources: C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning (2006), 2.2, 4.2 and 5.4;
M. Schonlau, W. J. Welch, D. R. Jones, Global versus local search in constrained optimization of computer models (1998).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.results.runs import Means
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import Point, Space

Floats = NDArray[np.float64]

REACHES = (0.2, 0.4, 0.8, 1.6)  # of the deviation, in lengths of an axis
PLANE = 4.0  # variance of its slopes, in that of the deviation
NUGGET = 1e-6
OTHER_NAME = 0.7  # how far two names are apart, in lengths of an axis, over the root of two
LOWEST = 4.0  # how far below the best a logarithm matters: a factor of 55
LARGEST_EXCESS = 50.0
ALOOF = 0.25  # how far from what is under way a setting counts in full
DIGITS = 9  # of a worth: two machines agree on the order


def by_worth(
    space: Space, goal: Goal, tried: Mapping[Point, Means], pending: Sequence[Point], weights: Sequence[float]
) -> list[Point]:
    """The points of the space, the most promising first; `weights` of the goal's metrics, of which more is better."""
    from scipy.special import log_ndtr, ndtr

    known, there = _places(space, list(tried)), _places(space, space.points)
    heights = _heights(goal, list(tried.values()), weights)
    is_met = [goal.is_met(means) for means in tried.values()]
    worth = np.zeros(len(there))
    for excess in _excesses(goal, list(tried.values())).T:
        mean, error = _surface(known, excess, there)
        worth += log_ndtr(-mean / error)
    mean, error = _surface(known, heights, there)
    if any(is_met):
        above = (mean - heights[is_met].max()) / error
        density = np.exp(-0.5 * above**2) / np.sqrt(2 * np.pi)
        worth += np.log(np.maximum(error * (above * ndtr(above) + density), 1e-300))
    if pending:
        near = np.sqrt(_squares(there, _places(space, pending)).min(axis=1))
        worth += np.log(np.minimum(1.0, near / ALOOF) + 1e-9)
    return [space.points[i] for i in np.argsort(-worth.round(DIGITS), kind="stable")]


def _places(space: Space, points: Sequence[Point]) -> Floats:
    """A row a point: numbers by their share of the axis, names by a column each."""
    indices = np.asarray(points, dtype=np.float64)
    columns = []
    for number, axis in enumerate(space.axes):
        of_axis, count = indices[:, [number]], len(axis.values)
        columns.append(of_axis / max(count - 1, 1) if axis.is_ordered else OTHER_NAME * (of_axis == np.arange(count)))
    return np.concatenate(columns, axis=1)


def _heights(goal: Goal, measured: Sequence[Means], weights: Sequence[float]) -> Floats:
    """Logarithms of the figures, upwards better, weighted; as low as the lowest where one was not measured."""
    rows = [goal.values(means) or [np.nan] * len(weights) for means in measured]
    signs = np.where(goal.maximise, 1.0, -1.0)
    figures = signs * np.log(np.maximum(np.asarray(rows, dtype=np.float64), 1e-9))
    if np.isnan(figures).all():
        return np.zeros(len(rows))
    lowest, highest = np.nanmin(figures, axis=0), np.nanmax(figures, axis=0)
    whole = np.maximum(np.where(np.isnan(figures), lowest, figures), highest - LOWEST)
    scale = np.where(highest > lowest, whole.std(axis=0), 1.0)
    heights: Floats = (whole / scale) @ np.asarray(weights)
    return heights


def _excesses(goal: Goal, measured: Sequence[Means]) -> Floats:
    """A column a limit: the logarithm of the figure over its bound, 0 or less where it is kept."""
    rows = np.asarray([goal.excesses(means) for means in measured], dtype=np.float64).reshape(len(measured), -1)
    clipped: Floats = np.log1p(np.clip(rows, -0.99, LARGEST_EXCESS))
    return clipped


def _surface(known: Floats, heights: Floats, there: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation at `there`."""
    centre, scale = heights.mean(), heights.std() or 1.0
    values = (heights - centre) / scale
    fits = [_fit(known, values, reach) for reach in REACHES]
    _, reach, root, solved, variance = max(fits, key=lambda fit: fit[0])
    across = _covariance(known, there, reach)
    explained = (np.linalg.solve(root, across) ** 2).sum(axis=0)
    prior = 1 + PLANE * ((there - 0.5) ** 2).sum(axis=1)
    error = np.sqrt(np.maximum(variance * (prior - explained), 1e-10))
    return centre + scale * (across.T @ np.linalg.solve(root.T, solved)), scale * error


def _fit(known: Floats, values: Floats, reach: float) -> tuple[float, float, Floats, Floats, float]:
    """Logarithm of the likelihood, the reach, and what the prediction needs."""
    covariance = _covariance(known, known, reach) + NUGGET * np.eye(len(known))
    root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    solved = np.asarray(np.linalg.solve(root, values), dtype=np.float64)
    variance = float(solved @ solved) / len(values)
    likelihood = -0.5 * len(values) * np.log(variance + 1e-12) - np.log(np.diag(root)).sum()
    return float(likelihood), reach, root, solved, variance


def _covariance(one: Floats, other: Floats, reach: float) -> Floats:
    distance = np.sqrt(5 * _squares(one, other)) / reach
    covariance: Floats = (1 + distance + distance**2 / 3) * np.exp(-distance) + PLANE * (one - 0.5) @ (other - 0.5).T
    return covariance


def _squares(one: Floats, other: Floats) -> Floats:
    """Squared distances, row by row."""
    both = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None, :]
    squares: Floats = np.maximum(both - 2 * one @ other.T, 0.0)
    return squares
