"""Which settings to try next: a smooth surface, the neighbours of the best so far, and Optuna's TPE, by turns.

Throughput and latency change steadily with seats and tokens, so a surface through a dozen trials says where to look;
the neighbours climb the last step, which a surface is too smooth to see; TPE, which draws by chance, finds what both
have no idea of. What has been tried is never simulated again. Settings are asked for in rounds of fixed size, whatever
the number of processes, and told in their order, so the same seed makes the same search anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from math import isfinite
from typing import TYPE_CHECKING, Any

from simbatch.sim.results.runs import Means
from simbatch.sim.statistics.pareto import pareto_front
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import Point, Space
from simbatch.sim.tuning.surface import by_worth

if TYPE_CHECKING:
    import optuna

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
