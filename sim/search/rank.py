"""Which policy is best where: every policy in every scenario under the same seeds, judged by one figure a scenario.

The figure is the share of requests within the SLO. Without an SLO it is output throughput where everything arrives at
once (an offline job is done when it is done), and otherwise the mean latency per output token. The best has the best
mean; the others are compared with it by the differences seed by seed, all intervals of a scenario holding together at
95 % (Bonferroni), since the best was chosen by its figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import user_path
from simbatch.sim.metrics import registry
from simbatch.sim.metrics.registry import HIGHER, REGISTRY, THROUGHPUT, Metric
from simbatch.sim.plugins.policy import POLICIES
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import NO_DIFFERENCE, Difference, Runs, Summary, Values
from simbatch.sim.scenario import has_chance, is_resampled, resampling, seeds_of
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.search.cells import Cell, cells_of
from simbatch.sim.statistics import CONFIDENCE
from simbatch.sim.text import percent

WITHIN_SLO, SESSIONS_WITHIN_SLO, OUTPUT, NORMALISED = (
    REGISTRY[key] for key in (registry.WITHIN_SLO, registry.SESSIONS_WITHIN_SLO, THROUGHPUT, registry.NORMALISED)
)
MIN_POLICIES = 2
REPLICATIONS = 10


@dataclass(frozen=True)
class RankedScenario:
    """One scenario of a ranking: its cells by policy, and who does not take part, with the reason."""

    scenario: Scenario
    seeds: Sequence[int]
    cells: Mapping[str, list[Cell]]
    left_out: Mapping[str, str]

    @property
    def is_resampled(self) -> bool:
        """Whether its runs are of one trace, drawn anew."""
        return len(self.seeds) > 1 and is_resampled(self.scenario)

    @property
    def judge(self) -> Metric:
        """The figure that decides."""
        if self.scenario.slo.of_requests():
            return WITHIN_SLO
        if self.scenario.slo.of_sessions():
            return SESSIONS_WITHIN_SLO
        process = getattr(self.scenario.workload.arrival, "process", None)
        return OUTPUT if process == "all_at_once" else NORMALISED


@dataclass(frozen=True)
class RankingPlan:
    """What a ranking simulates; `left_out` are whole scenarios, with the reason."""

    entries: list[RankedScenario]
    left_out: dict[str, str]

    @property
    def cells(self) -> list[Cell]:
        """All of them."""
        return [cell for entry in self.entries for cells in entry.cells.values() for cell in cells]


@dataclass(frozen=True)
class PolicyStanding:
    """One policy in one scenario."""

    policy: str
    rank: float  # 1 is the best; equals share the mean of their places
    runs: Runs
    values: Values  # of the figure that decides
    mean: float | None
    difference: Difference | None  # from the best; None for the best itself

    @property
    def is_equal(self) -> bool:
        """Whether every run has the figure that the best has."""
        interval = None if self.difference is None else self.difference.interval
        return interval is not None and interval.low == interval.high == 0


@dataclass(frozen=True)
class Judged:
    """The outcome in one scenario; `left_out` are those who did not take part or cannot be judged, with the reason."""

    entry: RankedScenario
    experiment: Experiment[str]
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, entry: RankedScenario, summaries: Mapping[str, Summary]) -> Judged:
        """From the summaries by their cells' keys.

        Without an SLO nothing says that a request may be turned away: who does, while others serve it, is left out.
        It would win: its throughput and its latencies are of the requests that it chose.
        """
        experiment: Experiment[str] = Experiment(is_resampled=entry.is_resampled)
        for policy, cells in entry.cells.items():
            for cell in cells:
                experiment.add(policy, cell.seed, summaries[cell.key])
        if entry.judge in (WITHIN_SLO, SESSIONS_WITHIN_SLO):
            return cls(entry, experiment, entry.left_out)
        rejected = {policy: runs.rejected_share for policy, _, runs in experiment}
        fewest = min(rejected.values())
        choosy = {
            policy: f"rejected {percent(share)}, and without an SLO nothing says that it may"
            for policy, share in rejected.items()
            if share > fewest
        }
        return cls(entry, experiment.without(choosy), {**entry.left_out, **choosy})

    @cached_property
    def standings(self) -> list[PolicyStanding]:
        """The best first."""
        judge = self.entry.judge
        runs = {policy: runs for policy, _, runs in self.experiment}
        means = {policy: each.mean(judge) for policy, each in runs.items()}
        sign = -1 if judge.better == HIGHER else 1
        scores = {label: float("inf") if mean is None else sign * mean for label, mean in means.items()}
        order = sorted(scores, key=lambda label: scores[label])
        best, *others = order
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
        refused = "one run" if self.is_one_run else None
        ranks = ranks_of([scores[policy] for policy in order])
        differences = {
            other: self.experiment.difference(judge, best, other, confidence=confidence, refused=refused)
            for other in others
        }
        return [
            PolicyStanding(policy, rank, each, each.values(judge), means[policy], differences.get(policy))
            for policy, rank in zip(order, ranks, strict=True)
            for each in [runs[policy]]
        ]

    @cached_property
    def is_one_run(self) -> bool:
        """Whether there is no chance in it, so that values are compared as they are."""
        return len(self.entry.seeds) == 1 or all(
            len({str(value) for value in runs.values(self.entry.judge)}) == 1 for _, _, runs in self.experiment
        )

    def is_told_apart(self, standing: PolicyStanding) -> bool:
        """Whether it is worse than the best beyond doubt (where there is no chance: by the value)."""
        if standing.difference is None:
            return False
        if self.is_one_run:
            return standing.mean != self.standings[0].mean
        return standing.difference.verdict != NO_DIFFERENCE


@dataclass(frozen=True)
class Overall:
    """One policy over all scenarios that it took part in."""

    policy: str
    num_scenarios: int = 0
    ranks: list[float] = field(default_factory=list)
    num_best: int = 0  # best, or not told apart from the best

    @property
    def mean_rank(self) -> float:
        """The lower the better."""
        return sum(self.ranks) / len(self.ranks)


def plan_ranking(
    scenarios: Sequence[Scenario], policies: Sequence[str], replications: int | None = None
) -> RankingPlan:
    """Every policy in every scenario that it supports, checked; without `policies`, all that there are by name.

    Each runs under `replications` seeds, of a trace resampled in blocks; unless somebody asks for a number it is 10,
    and a trace that leaves nothing to the seed is run once as it is.

    Raises UserError for what is wrong with a scenario, or with a policy that was asked for.
    """
    names = [scenario.name for scenario in scenarios]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(Problem("rank", "two scenarios have the same name", twice, "rename one of the files"))
    entries: list[RankedScenario] = []
    left_out: dict[str, str] = {}
    for scenario in scenarios:
        missing = _missing_trace(scenario)
        entry = None if missing else _entry(scenario, policies, replications)
        if entry is None:
            left_out[scenario.name] = f"there is no file {missing}"
        elif len(entry.cells) < MIN_POLICIES:
            left_out[scenario.name] = f"fewer than {MIN_POLICIES} policies support it"
        else:
            entries.append(entry)
    if not entries:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(Problem("rank", f"no scenario is left to rank policies in ({reasons})", mend="name others"))
    return RankingPlan(entries, left_out)


def overall(judged: Sequence[Judged]) -> list[Overall]:
    """Those that took part in most scenarios first, then by mean rank."""
    found: dict[str, list[tuple[float, bool]]] = {}
    for each in judged:
        for standing in each.standings:
            found.setdefault(standing.policy, []).append((standing.rank, not each.is_told_apart(standing)))
    rows = [
        Overall(policy, len(places), [rank for rank, _ in places], sum(is_best for _, is_best in places))
        for policy, places in found.items()
    ]
    return sorted(rows, key=lambda row: (-row.num_scenarios, row.mean_rank, row.policy))


def ranks_of(scores: Sequence[float]) -> list[float]:
    """Places from 1 on of ascending scores; equals share the mean of theirs."""
    return [
        sum(i + 1 for i, other in enumerate(scores) if other == score) / scores.count(score) for score in list(scores)
    ]


def _entry(scenario: Scenario, policies: Sequence[str], replications: int | None) -> RankedScenario:
    is_run_once = replications is None and is_resampled(scenario) and not has_chance(scenario)
    seeds = seeds_of([scenario], 1 if is_run_once else replications or REPLICATIONS)
    if len(seeds) > 1:
        scenario = scenario.override(resampling(scenario), origin="--replications")
    cells: dict[str, list[Cell]] = {}
    left_out: dict[str, str] = {}
    for name in policies or POLICIES.names():
        try:
            cells[name] = cells_of(scenario.with_policy(name), [{}], seeds)
        except UserError as error:
            if policies:
                raise
            left_out[name] = error.problems[0].rule
    return RankedScenario(scenario, seeds, cells, left_out)


def _missing_trace(scenario: Scenario) -> str | None:
    trace = scenario.workload.trace
    return trace.path if trace is not None and not user_path(scenario.folder, trace.path).exists() else None
