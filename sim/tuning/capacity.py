"""The capacity: the highest request rate, or number of users, under which the limits are kept.

A run is a figure of chance, so each seed gives an estimate of its own. All rates of the scenario are multiplied alike:
the same gaps and lengths come at another pace (common random numbers). Of a closed loop it is the number of users, of
sessions or of requests at once (`sim/search/loads.py`). From the scenario's own on it is doubled until it fails, or
halved until it holds, then bisected to 1 / 128 of a doubling (0.54 %).

The answer is a rate that holds, not the mean of those: from the lowest of the seeds' rates down, the first at which the
limits are kept under at least 17 of 18 seeds, of which ten were not searched. A trace is resampled in blocks by each
seed, and searched as it is besides.

Where the limits leave room up to saturation, the verdict that the queue keeps growing decides. It is slow to fall a
little above saturation, by about 2.3 / sqrt(number of requests) of the rate, so the answer is then an upper bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log2
from statistics import median

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.registry import REGISTRY, SESSION_SLO, SESSIONS_WITHIN_SLO, SLO_SHARE, WITHIN_SLO
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Means, Runs
from simbatch.sim.scenario import RESAMPLE, Scenario, is_resampled, resampling, seeds_of
from simbatch.sim.search.loads import OfferedLoad, load_of, rounded
from simbatch.sim.tuning import Evaluate
from simbatch.sim.tuning.goal import METRICS, Limit
from simbatch.sim.tuning.space import Settings

IN_FLIGHT = REGISTRY["simbatch.mean_concurrent_requests"]
STEPS = 128  # to a doubling
MAX_DOUBLINGS = 10
ALONE = 0.05  # with so few requests in the system on average, a lower rate changes nothing
REPLICATIONS = 8
FRESH = 10  # seeds that were not searched, under which the bound must hold too
ONE_MAY_FAIL_OF = 18
DOWN = 4  # steps from a rate that too many seeds break to the next one (2.2 %)
DEFAULT_SHARE = 0.99  # of the requests, and of the sessions, within the SLO
PARTS_OF_SLO = {  # by the share of all within it: the shares within each limit, by what this is called under `slo`
    WITHIN_SLO: ({name: name for name in ("ttft", "tpot", "e2el")}, SLO_SHARE),
    SESSIONS_WITHIN_SLO: ({f"session_{name}": name for name in ("duration", "without_thinking")}, SESSION_SLO),
}


@dataclass(frozen=True)
class Tried:
    """One run at one rate: what it broke, if anything."""

    step: int
    seed: int
    rate: float
    runs: Runs
    broken: tuple[str, ...]

    @property
    def means(self) -> Means:
        """Its figures by key."""
        return self.runs.means

    @property
    def is_met(self) -> bool:
        """Whether every limit was kept and the queue did not keep growing."""
        return not self.broken


@dataclass(frozen=True)
class Bound:
    """A rate at which the limits were kept under `kept` of so many `seeds`, the searched ones among them."""

    rate: float
    kept: int
    seeds: list[int]


@dataclass
class Capacity:
    """What came of it, rates as values of `load.key`; `bound` is None when no rate holds, or none fails.

    `by_seed` has the highest rate that each seed keeps, `as_it_is` that of a trace that is not resampled.
    """

    scenario: Scenario
    load: OfferedLoad
    limits: tuple[Limit, ...]
    seeds: list[int]
    by_seed: dict[int, float | None]
    bound: Bound | None = None
    as_it_is: float | None = None
    tried: list[Tried] = field(default_factory=list)

    @property
    def is_feasible(self) -> bool:
        """Whether every seed has a rate that holds."""
        return all(any(run.is_met for run in self.tried if run.seed == seed) for seed in self.seeds)

    @property
    def median(self) -> float | None:
        """What half of the seeds keep; None where not all have a rate."""
        rates = [rate for rate in self.by_seed.values() if rate is not None]
        return median(rates) if len(rates) == len(self.seeds) else None

    @property
    def highest(self) -> float:
        """The highest rate that was tried."""
        return max(run.rate for run in self.tried)

    @property
    def lowest(self) -> float:
        """The lowest rate that was tried."""
        return min(run.rate for run in self.tried)

    def binding(self) -> dict[str, int]:
        """What breaks just above the capacity, and under how many seeds (where none holds: at the lowest rate)."""
        edges = [
            min((run for run in self.tried if run.seed == seed and not run.is_met), key=_rate, default=None)
            for seed in self.seeds
        ]
        return dict(Counter(name for run in edges if run is not None for name in run.broken).most_common())

    @property
    def is_upper_bound(self) -> bool:
        """Whether under most seeds nothing but the growing queue decides."""
        return self.is_feasible and self.binding().get(OVERLOADED, 0) > len(self.seeds) / 2

    def settings(self, rate: float) -> Settings:
        """The changes of the scenario that make it this rate."""
        return self.load.at(self.scenario, rate)


def find_capacity(
    scenario: Scenario, limits: Sequence[Limit], evaluate: Evaluate, replications: int = REPLICATIONS
) -> Capacity:
    """Bisect the rate under each seed, side by side, then look for the bound that holds under others too."""
    load = load_of(scenario)
    runs = _Runs(scenario, load, tuple(limits), evaluate)
    searches = [_Bisection(seed, _last_step(load)) for seed in seeds_of([scenario], replications)]
    runs.search(searches)
    by_seed = {search.seed: runs.rate(search) for search in searches}
    found = Capacity(scenario, load, tuple(limits), list(by_seed), by_seed)
    if all(rate is not None for rate in by_seed.values()):
        found.bound = _bound(runs, searches)
    found.tried = runs.tried
    if is_resampled(scenario):
        as_it_is = _Bisection(scenario.seed, _last_step(load))
        once = _Runs(scenario.override({RESAMPLE: None}), load, tuple(limits), evaluate, {RESAMPLE: None})
        once.search([as_it_is])
        found.as_it_is = once.rate(as_it_is)
    return found


class _Runs:
    """Runs at rates that are steps from the scenario's own, `more` settings beside; `tried` remembers them."""

    def __init__(
        self,
        scenario: Scenario,
        load: OfferedLoad,
        limits: Sequence[Limit],
        evaluate: Evaluate,
        more: Settings | None = None,
    ) -> None:
        self._scenario, self._limits, self._evaluate = scenario, limits, evaluate
        self._more = resampling(scenario) if more is None else more
        self._load = load
        self.table: Experiment[int] = Experiment()  # each seed is searched by itself
        self.tried: list[Tried] = []

    def at(self, asked: Sequence[tuple[int, int]]) -> list[Tried]:
        """Simulate: a seed and a step each."""
        rates = [self._rate(step) for _, step in asked]
        settings = [self._load.at(self._scenario, rate) | self._more for rate in rates]
        summaries = self._evaluate([(each, seed) for each, (seed, _) in zip(settings, asked, strict=True)])
        runs = []
        for (seed, step), rate, summary in zip(asked, rates, summaries, strict=True):
            self.table.add(seed, seed, summary, rate)
            runs.append(_tried(step, seed, rate, self.table.runs(seed, rate), self._limits))
        self.tried += [run for run in runs if run not in self.tried]
        return runs

    def search(self, searches: Sequence[_Bisection]) -> None:
        """Until none of them has more to learn."""
        while asked := [(search, step) for search in searches if (step := search.next()) is not None]:
            runs = self.at([(search.seed, step) for search, step in asked])
            for (search, _), run in zip(asked, runs, strict=True):
                search.tell(run)

    def rate(self, search: _Bisection) -> float | None:
        """The highest rate that a search found to hold; None where none holds, or none fails."""
        return None if search.held is None or search.failed is None else self._rate(search.held)

    def _rate(self, step: int) -> float:
        rate = self._load.own * 2 ** (step / STEPS)
        return float(max(1, round(rate))) if self._load.is_users else rounded(rate)


def _last_step(load: OfferedLoad) -> int:
    """Of a search upwards; more users than there are change nothing."""
    doublings = MAX_DOUBLINGS if load.most is None else max(0.0, log2(load.most / load.own))
    return min(MAX_DOUBLINGS * STEPS, ceil(doublings * STEPS))


def _bound(runs: _Runs, searches: Sequence[_Bisection]) -> Bound | None:
    """From the lowest of the seeds' rates down; what the seed changes nothing for holds as it was found."""
    seeds = [search.seed for search in searches]
    step = min(search.held for search in searches if search.held is not None)
    if len(seeds) > 1:
        seeds += [seeds[-1] + 1 + i for i in range(FRESH)]
    while step >= -MAX_DOUBLINGS * STEPS:
        tried = runs.at([(seed, step) for seed in seeds])
        kept = sum(run.is_met for run in tried)
        if len(seeds) - kept <= len(seeds) // ONE_MAY_FAIL_OF:
            return Bound(tried[0].rate, kept, seeds)
        step -= DOWN
    return None


class _Bisection:
    """One seed's search: the highest step that held, the lowest that failed, what to try next."""

    def __init__(self, seed: int, last: int) -> None:
        self.seed, self.last = seed, last
        self.held: int | None = None
        self.failed: int | None = None
        self.is_alone = False

    def next(self) -> int | None:
        """The step to try; None when there is no more to learn."""
        if self.held is None:
            if self.failed is None:
                return 0
            return self.failed - STEPS if self.failed > -MAX_DOUBLINGS * STEPS and not self.is_alone else None
        if self.failed is None:
            return min(self.held + STEPS, self.last) if self.held < self.last else None
        return (self.held + self.failed) // 2 if self.failed - self.held > 1 else None

    def tell(self, run: Tried) -> None:
        """What came of the step."""
        if run.is_met:
            self.held = run.step
        else:
            self.failed = run.step
            self.is_alone = (run.runs.mean(IN_FLIGHT) or 0.0) < ALONE


def capacity_limits(scenario: Scenario, limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """What must hold: the limits given, or that 99 % of requests and sessions keep their SLO; UserError without any."""
    if limits:
        return tuple(limits)
    kept = {WITHIN_SLO: scenario.slo.of_requests(), SESSIONS_WITHIN_SLO: scenario.slo.of_sessions()}
    if not any(kept.values()):
        rule = "a capacity is the highest rate that meets something, and the scenario has no SLO"
        mend = "for example: --set 'slo={ttft_ms: 1000, tpot_ms: 50}', or --limit p99_ttft_ms=1000"
        raise UserError(Problem("slo", rule, mend=mend))
    return tuple(Limit(METRICS[key], DEFAULT_SHARE) for key, given in kept.items() if given)


def _tried(step: int, seed: int, rate: float, runs: Runs, limits: Sequence[Limit]) -> Tried:
    broken = [name for limit in limits for name in _broken(limit, runs.means)]
    return Tried(step, seed, rate, runs, (*broken, OVERLOADED) if runs.num_overloaded else tuple(broken))


def _broken(limit: Limit, means: Means) -> list[str]:
    """The limit if it is broken; of a share within the SLO, the latencies that lower it most."""
    if limit.excess(means[limit.metric.key]) <= 0:
        return []
    if limit.metric.key not in PARTS_OF_SLO:
        return [str(limit)]
    parts, prefix = PARTS_OF_SLO[limit.metric.key]
    shares = {name: means[f"{prefix}{key}"] for name, key in parts.items()}
    measured = {name: share for name, share in shares.items() if share is not None}
    return [f"slo.{name}_ms" for name, share in measured.items() if share == min(measured.values())]


def _rate(run: Tried) -> float:
    return run.rate
