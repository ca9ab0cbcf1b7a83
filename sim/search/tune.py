"""`simbatch tune`: the best settings for a goal within limits, with the scenario as it stands beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from simbatch.sim.results.compared import HIGHER, LOWER, Metric
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.statistics.knee import Knee, find_knee
from simbatch.sim.search.tune_goal import METRICS, Goal, Limit, Means, Summary, means_over
from simbatch.sim.search.tune_space import POLICY, SEQS, TOKENS, Point, Settings, Space
from simbatch.sim.search.tune_study import ROUND, Search, front_of
from simbatch.sim.statistics.intervals import Interval, paired_difference

MIN_TRIALS, MAX_TRIALS, GRID_SHARE = 20, 60, 5  # by default a fifth of the combinations, within these
TRIALS_A_ROUND = 10  # for each setting that is asked for at once: of few trials each should know of those before it
OVERLOADED = "overloaded"

Evaluate = Callable[[Sequence[tuple[Settings, int]]], list[Summary]]  # settings and a seed; their summary
Run = Callable[[Sequence[Settings]], "list[Trial]"]


@dataclass(frozen=True)
class Trial:
    """One combination of settings, simulated under every seed; `means` has every metric of tune_goal."""

    number: int  # 0 is the scenario as it stands
    settings: Settings
    means: Means
    runs: tuple[Means, ...]  # one a seed
    overloaded: int  # in how many runs the queue kept growing
    warnings: tuple[str, ...] = ()  # of the run under the first seed


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
    trials: list[Trial]
    best: Trial
    front: list[Trial] = field(default_factory=list)
    wants_knee: bool = False
    knee: Knee | None = None
    confirmation: Confirmation | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether any settings keep every limit."""
        return self.goal.is_met(self.best.means)

    @property
    def baseline(self) -> Trial:
        """The scenario as it stands."""
        return self.trials[0]

    def ranked(self) -> list[Trial]:
        """The best first."""
        return sorted(self.trials, key=lambda trial: (self.goal.rank(trial.means), self.preference(trial)))

    def preference(self, trial: Trial) -> tuple[float, ...]:
        """Of equals: vLLM's own policy, which needs no code beside it; what is there; the fewest seats and tokens.

        Seats and tokens that bring nothing cost memory.
        """
        sizes = (trial.settings.get(SEQS, 0), trial.settings.get(TOKENS, 0))
        return (self.needs_policy(trial), trial is not self.baseline, *sizes, trial.number)

    def needs_policy(self, trial: Trial) -> bool:
        """Whether another policy than vLLM's own runs there."""
        own: str = trial.settings.get("policy", {}).get("name", self.scenario.policy.name)
        return own != "vllm"

    def binding(self) -> list[Limit]:
        """Which limits stand in the way.

        With feasible settings: those that every better figure breaks. Without: those that nothing keeps; if each is
        kept by something, those that the least bad settings break.
        """
        goal, limits = self.goal, self.goal.limits
        if self.is_feasible:
            if len(goal.metrics) > 1:
                return []
            best = _figure_rank(goal, self.best)
            better = [trial for trial in self.trials if _figure_rank(goal, trial) < best]
            return [limit for limit in limits if better and all(_breaks(limit, trial) for trial in better)]
        never = [limit for limit in limits if all(_breaks(limit, trial) for trial in self.trials)]
        return never or [limit for limit in limits if _breaks(limit, self.best)]

    def closest_to(self, limit: Limit) -> Trial:
        """What comes nearest to keeping one limit, or keeps it by most."""
        return min(self.trials, key=lambda trial: (limit.excess(trial.means[limit.metric.key]), self.preference(trial)))


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
) -> Tuned:
    """Search `space` for the best settings; the scenario as it stands is the first trial and comes on top of `trials`.

    Each is simulated under `replications` seeds, from the scenario's on; the recommended ones and the scenario as it
    stands under `confirm` more. `search_seed` is the search's own, by default the scenario's.
    """
    scenario = space.scenario
    seeds = [scenario.seed + i for i in range(replications)]
    wanted = default_trials(space) if trials is None else trials
    found: list[Trial] = []

    def run(batch: Sequence[Settings]) -> list[Trial]:
        runs = _under(seeds, batch, evaluate)
        new = [_trial(len(found) + i, *pair) for i, pair in enumerate(zip(batch, runs, strict=True))]
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
    elif confirm and tuned.is_feasible:
        tuned.confirmation = _confirm(tuned, evaluate, [seeds[-1] + 1 + i for i in range(confirm)])
    return tuned


def _under(seeds: Sequence[int], batch: Sequence[Settings], evaluate: Evaluate) -> list[list[Summary]]:
    """Each of the settings under each of the seeds, asked for at once."""
    summaries = evaluate([(settings, seed) for settings in batch for seed in seeds])
    return [summaries[i : i + len(seeds)] for i in range(0, len(summaries), len(seeds))]


def _point_of(space: Space) -> Point | None:
    """Where the scenario as it stands is in the space; None when it is not."""
    resolved = resolve(space.scenario)
    policy = {f"policy.{key}": value for key, value in resolved.policy.parameters().items()}
    engine = {f"engine.{key}": value for key, value in resolved.engine_settings().items()}
    point = space.nearest({**engine, **policy, POLICY: resolved.policy_name, "profile": space.scenario.profile})
    if not space.is_allowed(point):
        return None
    return point if resolve(space.scenario.override(space.settings(point))).dump() == resolved.dump() else None


def _run_all(space: Space, run: Run, tried: dict[Point, Trial]) -> None:
    """Nothing to search when everything may be tried."""
    points = [point for point in space.points if point not in tried and space.is_allowed(point)]
    for begin in range(0, len(points), ROUND):
        batch = points[begin : begin + ROUND]
        tried |= zip(batch, run([space.settings(point) for point in batch]), strict=True)


def _search(search: Search, run: Run, tried: dict[Point, Trial], wanted: int) -> None:
    space = search.space
    for point, trial in tried.items():
        search.tell(point, trial.means)
    while len(tried) < wanted and (points := search.ask(wanted - len(tried))):
        for point, trial in zip(points, run([space.settings(point) for point in points]), strict=True):
            tried[point] = trial
            search.tell(point, trial.means)


def _trial(number: int, settings: Settings, summaries: Sequence[Summary]) -> Trial:
    metrics = list(METRICS.values())
    runs = tuple(means_over([summary], metrics) for summary in summaries)
    overloaded = sum(is_overloaded(summary) for summary in summaries)
    warnings = tuple(summaries[0]["simbatch"]["warnings"])
    return Trial(number, settings, means_over(summaries, metrics), runs, overloaded, warnings)


def is_overloaded(summary: Summary) -> bool:
    """Whether the queue kept growing in this run."""
    return bool(summary["simbatch"]["steady_state"]["refused"] == OVERLOADED)


def _add_front(tuned: Tuned) -> None:
    """The Pareto set, the highest first figure first; its knee, else its first, is what is recommended."""
    goal = tuned.goal
    front = [tuned.trials[i] for i in front_of([trial.means for trial in tuned.trials], goal)]
    if not front:
        return
    tuned.front = sorted(front, key=lambda trial: (_oriented(goal, trial), tuned.preference(trial)))
    if tuned.wants_knee:
        gain, cost = ([trial.means[metric.key] or 0.0 for trial in tuned.front] for metric in trade_off(goal))
        tuned.knee = find_knee(gain, cost)
    tuned.best = tuned.front[tuned.knee.index if tuned.knee else 0]


def trade_off(goal: Goal) -> tuple[Metric, Metric]:
    """What one gains and what it costs: the first metric of either kind."""
    gain = next(metric for metric in goal.metrics if metric.better == HIGHER)
    return gain, next(metric for metric in goal.metrics if metric.better == LOWER)


def _oriented(goal: Goal, trial: Trial) -> list[float]:
    """The figures, smaller is better."""
    return [-v if up else v for v, up in zip(goal.values(trial.means) or [], goal.maximise, strict=True)]


def _confirm(tuned: Tuned, evaluate: Evaluate, seeds: list[int]) -> Confirmation:
    """Under fresh seeds, which the search cannot have fitted itself to."""
    goal, metric = tuned.goal, tuned.goal.metrics[0]
    base, best = (_trial(0, {}, runs) for runs in _under(seeds, [{}, tuned.best.settings], evaluate))
    pairs = _complete(metric, base, best)
    difference = paired_difference(pairs[0], pairs[1]) if pairs is not None and len(seeds) > 1 else None
    return Confirmation(seeds, difference, base.means[metric.key], sum(map(goal.is_met, best.runs)))


def _complete(metric: Metric, *trials: Trial) -> list[list[float]] | None:
    figures = [[run[metric.key] for run in trial.runs] for trial in trials]
    return None if any(None in row for row in figures) else [[float(v or 0.0) for v in row] for row in figures]


def _figure_rank(goal: Goal, trial: Trial) -> float:
    values = goal.values(trial.means)
    return float("inf") if values is None else -values[0] if goal.maximise[0] else values[0]


def _breaks(limit: Limit, trial: Trial) -> bool:
    return limit.excess(trial.means[limit.metric.key]) > 0


def setting_words(settings: Settings) -> str:
    """Settings in a few words: `max_num_seqs 48, policy adaptive (target_tpot_ms 40)`."""
    words = []
    for key, value in settings.items():
        if key == "policy":
            rest = ", ".join(
                f"{name} {each:g}" if isinstance(each, float) else f"{name} {each}"
                for name, each in value.items()
                if name != "name"
            )
            words.append(f"policy {value['name']}" + (f" ({rest})" if rest else ""))
        else:
            words.append(f"{key.removeprefix('engine.')} {value}")
    return ", ".join(words) or "as it stands"
