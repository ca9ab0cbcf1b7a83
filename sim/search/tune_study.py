"""Which settings to try next: Optuna's TPE and the neighbours of the best so far, by turns.

TPE (a model of where good settings lie) finds the region, the neighbours follow it to its top: throughput and latency
change steadily with seats and tokens, which a model of twenty trials does not know. What has been tried is never
simulated again. Settings are asked for in rounds of fixed size, whatever the number of processes, and told in their
order, so the same seed makes the same search anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from simbatch.sim.search.pareto import pareto_front
from simbatch.sim.search.tune_goal import Goal, Means
from simbatch.sim.search.tune_space import Point, Space

if TYPE_CHECKING:
    import optuna

ROUND = 4  # settings asked for at once
ASKS = 25  # to TPE for one that is new
NUM_STARTS = 8  # before TPE draws from its model
STEPS = (4, 2, 1)  # how far neighbours are away, in values of an axis
HUGE = 1e9  # stands for an infinite excess


class Search:
    """A search that is asked what to try and told what came of it."""

    def __init__(self, space: Space, goal: Goal, seed: int, starts: Sequence[Point] = ()) -> None:
        self.space, self.goal = space, goal
        self.tried: dict[Point, Means] = {}
        self._pending: set[Point] = set()
        self._trials: dict[Point, optuna.trial.Trial] = {}
        self._starts = list(dict.fromkeys([*starts, *_spread(space)]))
        self._study = _study_of(goal, seed)
        self._distributions = _distributions_of(space)

    def ask(self, count: int) -> list[Point]:
        """Up to `count` settings that were not tried; fewer when there are no more."""
        found: list[Point] = []
        for place in range(min(count, ROUND)):
            point = self._next(wants_neighbour=place % 2 == 0)
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

    def _next(self, wants_neighbour: bool) -> Point | None:
        while self._starts:
            point = self._starts.pop(0)
            if self._is_new(point):
                return point
        if wants_neighbour:
            return self._neighbour() or self._from_model() or self._any()
        return self._from_model() or self._neighbour() or self._any()

    def _is_new(self, point: Point) -> bool:
        return point not in self.tried and point not in self._pending and self.space.is_allowed(point)

    def _neighbour(self) -> Point | None:
        """Of the best first, then of the next best: far ones before near ones."""
        for best in self._leaders():
            for step in STEPS:
                for point in self.space.neighbours(best, step):
                    if self._is_new(point):
                        return point
        return None

    def _leaders(self) -> list[Point]:
        if len(self.goal.metrics) == 1:
            return sorted(self.tried, key=lambda point: self.goal.rank(self.tried[point]))[:3]
        points = list(self.tried)
        return [points[i] for i in front_of(list(self.tried.values()), self.goal)]

    def _from_model(self) -> Point | None:
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

    def _any(self) -> Point | None:
        return next((point for point in self.space.points if self._is_new(point)), None)

    def _params(self, point: Point) -> dict[str, Any]:
        return {axis.key: i for axis, i in zip(self.space.axes, point, strict=True)}


def front_of(candidates: Sequence[Means], goal: Goal) -> list[int]:
    """Which of them are the Pareto set of those that meet every limit."""
    met = [i for i, means in enumerate(candidates) if goal.is_met(means)]
    values = [goal.values(candidates[i]) or [] for i in met]
    return [met[i] for i in pareto_front(values, goal.maximise)] if met else []


def _spread(space: Space) -> Iterator[Point]:
    """Points all over the space: along each axis from end to end, each at its own pace."""
    for i in range(NUM_STARTS // 2):
        share = (2 * i + 1) / NUM_STARTS
        yield space.canonical(tuple(int(share * len(axis.values)) for axis in space.axes))


def _study_of(goal: Goal, seed: int) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [up if more else down for more in goal.maximise]
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
