"""Which settings to try next: a smooth surface, the neighbours of the best so far, and Optuna's TPE, by turns.

Throughput and latency change steadily with seats and tokens, so a surface through a dozen trials says where to look;
the neighbours climb the last step, which a surface is too smooth to see; TPE, by chance, finds what both know not.
Rounds are of fixed size, whatever the processes, so a seed makes the same search anywhere. The
surface: every figure that decides is a Gaussian process over the places on the axes: a plane and a Matérn 5/2 deviation
from it, whose reach is the likeliest of four. A setting is worth the improvement expected of it, times the
probability that it keeps every limit; while nothing keeps them, that probability alone.

Sources: C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning (2006), 2.2, 4.2 and 5.4;
M. Schonlau, W. J. Welch, D. R. Jones, Global versus local search in constrained optimization of computer models (1998).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.results.runs import Means
from simbatch.sim.statistics import pareto_front
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import Point, Space

if TYPE_CHECKING:
    import optuna

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


SURFACE, NEIGHBOUR, TPE = range(3)
TURNS = (SURFACE, NEIGHBOUR, SURFACE, TPE)  # who proposes
SET_TURNS = (SURFACE, NEIGHBOUR, NEIGHBOUR, TPE)  # with several metrics: a Pareto set is long, and grows at its sides
ROUND = 4  # settings asked for at once, at most
ASKS = 25  # to TPE for one that is new
NUM_STARTS = 8  # before TPE draws from its model
HEAVY = 4.0  # a metric's weight against the others when it is its turn
HUGE = 1e9  # stands for an infinite excess


class Search:
    """A search that is asked what to try, up to `at_once` settings, and told what came of it."""

    def __init__(self, space: Space, goal: Goal, seed: int, at_once: int = ROUND) -> None:
        self.space, self.goal, self.at_once = space, goal, at_once
        self.tried: dict[Point, Means] = {}
        self._pending: set[Point] = set()
        self._trials: dict[Point, optuna.trial.Trial] = {}
        self._starts = list(dict.fromkeys(_spread(space)))
        self._turns = cycle(TURNS if len(goal.metrics) == 1 else SET_TURNS)
        self._weights = cycle(_weightings(len(goal.metrics)))
        self._study = _study_of(goal, seed)
        self._distributions = _distributions_of(space)

    def ask(self, count: int) -> list[Point]:
        """Up to `count` settings that were not tried; fewer when there are no more."""
        found: list[Point] = []
        for _ in range(min(count, self.at_once)):
            point = self._next()
            if point is None:
                break
            self._pending.add(point)
            found.append(point)
        return found

    def tell(self, point: Point, means: Means) -> None:
        """What was measured at a point that was asked for."""
        self._pending.discard(point)
        self.tried[point] = means
        trial = self._trials.pop(point, None)
        if trial is None:
            self._study.enqueue_trial(self._params(point))
            trial = self._study.ask(self._distributions)
        self._finish(trial, means)

    def _finish(self, trial: optuna.trial.Trial, means: Means) -> None:
        from optuna.trial import TrialState

        values = self.goal.values(means)
        if values is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        for limit, excess in zip(self.goal.limits, self.goal.excesses(means), strict=True):
            trial.set_constraint(str(limit), excess if isfinite(excess) else HUGE)
        self._study.tell(trial, values)

    def _next(self) -> Point | None:
        while self._starts:
            point = self._starts.pop(0)
            if self._is_new(point):
                return point
        ways = (self._from_surface, self._neighbour, self._from_tpe)
        return ways[next(self._turns)]() or self._from_surface() or self._foreseen()

    def _foreseen(self) -> Point | None:
        """When nothing else is left."""
        return next(filter(self._is_untried, self.space.points), None)

    def _is_new(self, point: Point) -> bool:
        return self._is_untried(point) and not self._is_foreseen(point)

    def _is_untried(self, point: Point) -> bool:
        return point not in self.tried and point not in self._pending and self.space.is_allowed(point)

    def _is_foreseen(self, point: Point) -> bool:
        """Whether it lies between two settings with the same figures: seats that nobody takes change nothing."""
        for number, axis in enumerate(self.space.axes):
            if axis.is_ordered:
                i, rest = point[number], (point[:number], point[number + 1 :])
                line = {p[number]: m for p, m in self.tried.items() if (p[:number], p[number + 1 :]) == rest}
                below = max((j for j in line if j < i), default=None)
                above = min((j for j in line if j > i), default=None)
                if below is not None and above is not None and line[below] == line[above]:
                    return True
        return False

    def _from_surface(self) -> Point | None:
        """The most promising one that is new; of several metrics now one counts most, now all are alike."""
        if not self.tried:
            return None
        points = by_worth(self.space, self.goal, self.tried, list(self._pending), next(self._weights))
        return next(filter(self._is_new, points), None)

    def _neighbour(self) -> Point | None:
        """Of the best first, then of the next best."""
        for best in self._leaders():
            point = next(filter(self._is_new, self.space.neighbours(best)), None)
            if point is not None:
                return point
        return None

    def _leaders(self) -> list[Point]:
        """The best; of equals the one with fewest seats and tokens, for beyond that edge it may be better still."""
        if len(self.goal.metrics) == 1:
            return sorted(self.tried, key=lambda point: (self.goal.rank(self.tried[point]), point))[:3]
        points = list(self.tried)
        return [points[i] for i in front_of(list(self.tried.values()), self.goal)]

    def _from_tpe(self) -> Point | None:
        from optuna.trial import TrialState

        for _ in range(ASKS):
            trial = self._study.ask(self._distributions)
            point = self.space.canonical(tuple(trial.params[axis.key] for axis in self.space.axes))
            if point in self.tried:  # tell it again what it seems to doubt, so that it looks elsewhere
                self._finish(trial, self.tried[point])
            elif self._is_new(point):
                self._trials[point] = trial
                return point
            else:
                self._study.tell(trial, state=TrialState.FAIL)
        return None

    def _params(self, point: Point) -> dict[str, Any]:
        return {axis.key: i for axis, i in zip(self.space.axes, point, strict=True)}


def front_of(candidates: Sequence[Means], goal: Goal) -> list[int]:
    """Which of them are the Pareto set of those that meet every limit."""
    met = [i for i, means in enumerate(candidates) if goal.is_met(means)]
    values = [goal.values(candidates[i]) or [] for i in met]
    return [met[i] for i in pareto_front(values, goal.maximise)] if met else []


def _weightings(count: int) -> list[tuple[float, ...]]:
    """Each metric heavy, then all alike."""
    heavy = [tuple(HEAVY if i == j else 1.0 for j in range(count)) for i in range(count)]
    return [*heavy, (1.0,) * count]


def _spread(space: Space) -> Iterator[Point]:
    """Points all over the space: along each axis from end to end, each at its own pace."""
    for i in range(NUM_STARTS // 2):
        share = (2 * i + 1) / NUM_STARTS
        yield space.canonical(tuple(int(share * len(axis.values)) for axis in space.axes))


def _study_of(goal: Goal, seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    way = optuna.study.StudyDirection
    directions = [way.MAXIMIZE if more else way.MINIMIZE for more in goal.maximise]
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=NUM_STARTS, multivariate=True)
    return optuna.create_study(directions=directions, sampler=sampler)


def _distributions_of(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, IntDistribution

    return {
        axis.key: IntDistribution(0, len(axis.values) - 1)
        if axis.is_ordered
        else CategoricalDistribution(list(range(len(axis.values))))
        for axis in space.axes
    }
