"""`simbatch tune`: the best settings for a goal within limits, with the scenario as it stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from simbatch.sim.metrics.registry import HIGHER, LOWER, Metric
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Scenario, has_chance, is_resampled, resampling, resolve, seeds_of
from simbatch.sim.statistics import Interval, Knee, find_knee
from simbatch.sim.tuning.finalists import (
    Finalists,
    TriedSettings,
    equals,
    finalists_of,
    has_open_arrivals,
    order,
    preference,
)
from simbatch.sim.tuning.goal import Goal, Limit
from simbatch.sim.tuning.space import Point, Settings, Space, values_of
from simbatch.sim.tuning.study import ROUND, Search, front_of

MIN_TRIALS, MAX_TRIALS, GRID_SHARE = 20, 60, 5  # by default a fifth of the combinations, within these
TRIALS_A_ROUND = 10  # for each setting that is asked for at once: of few trials each should know of those before it

Evaluate = Callable[[Sequence[tuple[Settings, int]]], list[Summary]]  # settings and a seed; their summary
Run = Callable[[Sequence[Settings]], "list[TriedSettings]"]


@dataclass(frozen=True)
class Confirmation:
    """The recommended settings against the scenario as it stands, under seeds that the search never saw."""

    seeds: list[int]
    difference: Interval | None  # of the first metric; None when something was not measured
    base_mean: float | None
    within_limits: int  # in how many runs


@dataclass
class Tuned:
    """What came of a search."""

    scenario: Scenario
    goal: Goal
    space: Space
    seeds: list[int]
    trials: list[TriedSettings]
    best: TriedSettings
    front: list[TriedSettings] = field(default_factory=list)
    wants_knee: bool = False
    knee: Knee | None = None
    confirmation: Confirmation | None = None
    finalists: Finalists | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether any settings keep every limit."""
        return self.goal.is_met(self.best.means)

    @property
    def baseline(self) -> TriedSettings:
        """The scenario as it stands."""
        return self.trials[0]

    @cached_property
    def equals(self) -> list[TriedSettings]:
        """What keeps the limits and is equal to the best in the goal's one figure; the best of them first."""
        return sorted(equals(self.goal, self.trials), key=self._order)

    def ranked(self) -> list[TriedSettings]:
        """The best first: the equals, then the others by their figure."""
        equal = {trial.number for trial in self.equals}
        rest = [trial for trial in self.trials if trial.number not in equal]
        return [*self.equals, *sorted(rest, key=lambda trial: (self.goal.rank(trial.means), self._order(trial)))]

    @property
    def do_arrivals_bind(self) -> bool:
        """Whether the goal is a throughput and several settings serve all that arrives."""
        is_throughput = "throughput" in self.goal.metrics[0].key
        return (
            is_throughput
            and len(self.equals) > 1
            and not self.equals[0].overloaded
            and has_open_arrivals(self.scenario)
        )

    @property
    def recommended(self) -> TriedSettings | None:
        """What to take, or the nearest where nothing keeps the limits; None for a set, and where the arrivals bind."""
        has_no_best = len(self.goal.metrics) > 1 and self.knee is None and bool(self.front)
        return None if has_no_best or self.do_arrivals_bind else self.best

    @property
    def may_stay(self) -> bool:
        """Whether the scenario as it stands keeps the limits, and not every draw of the profile's doubts gains."""
        gain = None if self.finalists is None else self.finalists.gain
        return self.goal.is_met(self.baseline.means) and gain is not None and not gain.is_shown

    def _order(self, trial: TriedSettings) -> tuple[float, ...]:
        return order(self.scenario, trial)

    def binding(self) -> list[Limit]:
        """Which limits stand in the way.

        With feasible settings: those that every better figure breaks. Without: those that nothing keeps; if each is
        kept by something, those that the least bad settings break.
        """
        goal, limits = self.goal, self.goal.limits
        if self.is_feasible:
            if len(goal.metrics) > 1:
                return []
            best = min(_figure_rank(goal, trial) for trial in self.trials if goal.is_met(trial.means))
            better = [trial for trial in self.trials if _figure_rank(goal, trial) < best]
            return [limit for limit in limits if better and all(_breaks(limit, trial) for trial in better)]
        never = [limit for limit in limits if all(_breaks(limit, trial) for trial in self.trials)]
        return never or [limit for limit in limits if _breaks(limit, self.best)]

    def closest_to(self, limit: Limit) -> TriedSettings:
        """What comes nearest to keeping one limit, or keeps it by most."""
        return min(
            self.trials,
            key=lambda trial: (limit.excess(trial.means[limit.metric.key]), preference(self.scenario, trial)),
        )


def default_trials(space: Space) -> int:
    """A fifth of the combinations, at least 20 and at most 60."""
    return min(max(MIN_TRIALS, -(-len(space.points) // GRID_SHARE)), MAX_TRIALS, len(space.points))


def tune(
    space: Space,
    goal: Goal,
    evaluate: Evaluate,
    *,
    trials: int | None = None,
    replications: int = 1,
    confirm: int = 0,
    wants_knee: bool = False,
    search_seed: int | None = None,
    num_draws: int = 0,
) -> Tuned:
    """Search `space` for the best settings; the scenario as it stands is the first trial and comes on top of `trials`.

    Each is simulated under `replications` seeds, from the scenario's on; the recommended ones and the scenario as it
    stands under `confirm` more, and in `num_draws` draws of what the profile is in doubt about. `search_seed` is the
    search's own, by default the scenario's.
    """
    scenario = space.scenario
    policies = [scenario.with_policy(name) for name in space.policies()]
    seeds = seeds_of([scenario, *policies], replications)
    wanted = default_trials(space) if trials is None else trials
    found: list[TriedSettings] = []

    def run(batch: Sequence[Settings]) -> list[TriedSettings]:
        table = _under(seeds, batch, evaluate, scenario)
        new = [TriedSettings(len(found) + i, settings, table.runs(i)) for i, settings in enumerate(batch)]
        found.extend(new)
        return new

    (baseline,) = run([{}])
    tried = {point: baseline for point in [_point_of(space)] if point is not None}
    if wanted >= len(space.points):
        _run_all(space, run, tried)
    else:
        at_once = min(max(wanted // TRIALS_A_ROUND, 1), ROUND)
        search = Search(space, goal, scenario.seed if search_seed is None else search_seed, at_once)
        _search(search, run, tried, wanted)
    tuned = Tuned(scenario, goal, space, seeds, found, baseline)
    tuned.best = tuned.ranked()[0]
    if len(goal.metrics) > 1:
        tuned.wants_knee = wants_knee
        _add_front(tuned)
    elif tuned.is_feasible and tuned.recommended is not None:
        tuned.confirmation = _confirm(tuned, evaluate, confirm) if confirm else None
        if num_draws:
            tuned.finalists = finalists_of(scenario, tuned.best.settings, goal, seeds[0], evaluate, num_draws)
    return tuned


def _under(seeds: Sequence[int], batch: Sequence[Settings], evaluate: Evaluate, scenario: Scenario) -> Experiment[int]:
    """Each of the settings, by its place, under each of the seeds, asked for at once; a trace is then drawn anew."""
    more = resampling(scenario) if len(seeds) > 1 else {}
    table: Experiment[int] = Experiment(is_resampled=len(seeds) > 1 and is_resampled(scenario))
    asked = [(i, settings, seed) for i, settings in enumerate(batch) for seed in seeds]
    for (i, _, seed), summary in zip(asked, evaluate([(more | each, seed) for _, each, seed in asked]), strict=True):
        table.add(i, seed, summary)
    return table


def _point_of(space: Space) -> Point | None:
    """Where the scenario as it stands is in the space; None when it is not."""
    point = space.nearest(values_of(space.scenario))
    if not space.is_allowed(point):
        return None
    same = resolve(space.scenario.override(space.settings(point))).dump() == resolve(space.scenario).dump()
    return point if same else None


def _run_all(space: Space, run: Run, tried: dict[Point, TriedSettings]) -> None:
    """Nothing to search when everything may be tried."""
    points = [point for point in space.points if point not in tried and space.is_allowed(point)]
    for begin in range(0, len(points), ROUND):
        batch = points[begin : begin + ROUND]
        tried |= zip(batch, run([space.settings(point) for point in batch]), strict=True)


def _search(search: Search, run: Run, tried: dict[Point, TriedSettings], wanted: int) -> None:
    space = search.space
    for point, trial in tried.items():
        search.tell(point, trial.means)
    while len(tried) < wanted and (points := search.ask(wanted - len(tried))):
        for point, trial in zip(points, run([space.settings(point) for point in points]), strict=True):
            tried[point] = trial
            search.tell(point, trial.means)


def _add_front(tuned: Tuned) -> None:
    """The Pareto set, the highest first figure first; its knee is what is recommended, where one is wanted."""
    goal = tuned.goal
    front = [tuned.trials[i] for i in front_of([trial.means for trial in tuned.trials], goal)]
    if not front:
        return
    tuned.front = sorted(front, key=lambda trial: (_oriented(goal, trial), preference(tuned.scenario, trial)))
    if tuned.wants_knee:
        gain, cost = ([trial.means[metric.key] or 0.0 for trial in tuned.front] for metric in trade_off(goal))
        tuned.knee = find_knee(gain, cost)
    tuned.best = tuned.front[tuned.knee.index if tuned.knee else 0]


def trade_off(goal: Goal) -> tuple[Metric, Metric]:
    """What one gains and what it costs: the first metric of either kind."""
    gain = next(metric for metric in goal.metrics if metric.aim == HIGHER)
    return gain, next(metric for metric in goal.metrics if metric.aim == LOWER)


def _oriented(goal: Goal, trial: TriedSettings) -> list[float]:
    """The figures, smaller is better."""
    return [-v if up else v for v, up in zip(goal.values(trial.means) or [], goal.maximise, strict=True)]


def _confirm(tuned: Tuned, evaluate: Evaluate, count: int) -> Confirmation | None:
    """Under fresh seeds, which the search cannot have fitted itself to; None where no seed changes anything."""
    goal, metric, scenario = tuned.goal, tuned.goal.metrics[0], tuned.scenario
    both = [{}, tuned.best.settings]
    if not (is_resampled(scenario) or any(has_chance(scenario.override(settings)) for settings in both)):
        return None
    seeds = [tuned.seeds[-1] + 1 + i for i in range(count)]
    table = _under(seeds, both, evaluate, scenario)
    found, within = table.difference(metric, 0, 1), sum(goal.is_met(run.means) for run in table.runs(1).each)
    return Confirmation(seeds, found.interval, table.runs(0).means[metric.key], within)


def _figure_rank(goal: Goal, trial: TriedSettings) -> float:
    values = goal.values(trial.means)
    return float("inf") if values is None else -values[0] if goal.maximise[0] else values[0]


def _breaks(limit: Limit, trial: TriedSettings) -> bool:
    return limit.excess(trial.means[limit.metric.key]) > 0
