"""What a search is for: figures to make large or small, limits to keep, and which of what was tried is the best.

Settings are equal to the best when their figure is within 1 % of it, less than a profile is off by, or when three runs
or more do not tell them apart (paired differences, 95 %). Of equals goodput decides, then the share within the SLO,
then P99 TTFT; then what needs no code beside vLLM, what is there already, the fewest sequences and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from math import inf, isfinite
from statistics import fmean

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.registry import GOODPUT, HIGHER, LOWER, SLO_SHARE, THROUGHPUT, Metric, searchable
from simbatch.sim.results.runs import Runs, Summary
from simbatch.sim.scenario import Scenario
from simbatch.sim.statistics.intervals import paired_difference
from simbatch.sim.tuning.space import SEQS, TOKENS, Settings
from simbatch.sim.workload.traffic_model import Traffic

Means = Mapping[str, float | None]  # by the metric's key

ALIASES = {"throughput": THROUGHPUT, "goodput": GOODPUT, "slo_share": f"{SLO_SHARE}all"}
METRICS = searchable()


def metric_of(name: str, flag: str) -> Metric:
    """The figure of summary.json with this name; UserError at `flag` with the nearest one."""
    key = ALIASES.get(name.strip(), name.strip())
    if key in METRICS:
        return METRICS[key]
    near = get_close_matches(key, [*ALIASES, *METRICS], n=1, cutoff=0.6)
    mend = f"did you mean {near[0]}?" if near else "for example throughput, goodput, p99_ttft_ms, p99_tpot_ms"
    raise UserError(Problem(flag, "is no figure of summary.json that can be searched for", name, mend))


@dataclass(frozen=True)
class Limit:
    """A figure that must not be above `bound` (latencies), or not below it (throughputs, shares)."""

    metric: Metric
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """`p99_tpot_ms=50`; UserError that names the flag."""
        name, equals, number = text.partition("=")
        mend = "write a metric, =, and a number: --limit p99_tpot_ms=50"
        if not equals or not name.strip():
            raise UserError(Problem("--limit", "must be a metric, =, and a number", text, mend))
        metric = metric_of(name, "--limit")
        try:
            bound = float(number)
        except ValueError:
            bound = inf
        if not isfinite(bound) or bound < 0:
            raise UserError(Problem(f"--limit {name.strip()}", "must be a number, 0 or more", number.strip(), mend))
        if metric.key.startswith(SLO_SHARE) and bound > 1:
            rule = "is a share of the requests, so at most 1"
            raise UserError(Problem(f"--limit {name.strip()}", rule, bound, f"for {bound:g} % write {bound / 100:g}"))
        return cls(metric, bound)

    def excess(self, value: float | None) -> float:
        """By which share `value` breaks the limit; 0 or less when it keeps it, infinite without a value."""
        if value is None:
            return inf
        small, large = (value, self.bound) if self.metric.aim == LOWER else (self.bound, value)
        if large == 0:
            return small
        return small / large - 1

    def __str__(self) -> str:
        return f"{self.metric.key} {'<=' if self.metric.aim == LOWER else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Goal:
    """What to optimise, one metric or several, within the limits."""

    metrics: tuple[Metric, ...]
    limits: tuple[Limit, ...] = ()

    def check_slo(self, has_slo: bool) -> None:
        """UserError when a figure needs SLOs and the scenario has none."""
        for metric in (*self.metrics, *(limit.metric for limit in self.limits)):
            if not has_slo and (metric.key == GOODPUT or metric.key.startswith(SLO_SHARE)):
                rule = f"{metric.key} counts requests within the SLO, and the scenario has none"
                raise UserError(Problem("slo", rule, mend="for example: --set 'slo={ttft_ms: 1000, tpot_ms: 50}'"))

    @property
    def maximise(self) -> list[bool]:
        """For each metric, whether more is better."""
        return [metric.aim == HIGHER for metric in self.metrics]

    @property
    def keys(self) -> list[str]:
        """Of every metric that decides, once."""
        wanted = (*self.metrics, *(limit.metric for limit in self.limits))
        return list(dict.fromkeys(metric.key for metric in wanted))

    def values(self, means: Means) -> list[float] | None:
        """The figures to optimise; None when one was not measured."""
        found = [means[metric.key] for metric in self.metrics]
        return None if None in found else [float(value or 0.0) for value in found]

    def excesses(self, means: Means) -> list[float]:
        """By how much each limit is broken."""
        return [limit.excess(means[limit.metric.key]) for limit in self.limits]

    def is_met(self, means: Means) -> bool:
        """Whether every limit is kept and every figure there."""
        return self.values(means) is not None and all(excess <= 0 for excess in self.excesses(means))

    def rank(self, means: Means) -> tuple[float, ...]:
        """Smaller is better (for one metric): by the worst broken limit, then by the figure itself."""
        values = self.values(means)
        worst = max((0.0, *self.excesses(means)))
        if values is None:
            return (inf, inf)
        return (worst, -values[0] if self.maximise[0] else values[0])


def means_over(summaries: Sequence[Summary], metrics: Sequence[Metric]) -> dict[str, float | None]:
    """Each metric's mean over replications; None when one of them has no such figure."""
    figures = {metric.key: [metric.of(summary) for summary in summaries] for metric in metrics}
    return {key: _mean(values) for key, values in figures.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if len(measured) == len(values) else None


@dataclass(frozen=True)
class Trial:
    """One combination of settings, simulated under every seed."""

    number: int  # 0 is the scenario as it stands
    settings: Settings
    runs: Runs

    @cached_property
    def means(self) -> Means:
        """Every figure that can be searched for, over the seeds."""
        return means_over(self.runs.summaries, list(METRICS.values()))

    @cached_property
    def by_seed(self) -> list[Means]:
        """The same of each run."""
        return [means_over([summary], list(METRICS.values())) for summary in self.runs.summaries]

    @property
    def overloaded(self) -> int:
        """In how many runs the queue kept growing."""
        return self.runs.num_overloaded

    @property
    def warnings(self) -> list[str]:
        """Of the run under the first seed."""
        warnings: list[str] = self.runs.summaries[0]["simbatch"]["warnings"]
        return warnings


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


CLOSE = 0.01
MIN_RUNS = 3  # two tell almost nothing apart
CLOSED = ("all_at_once", "closed_loop")  # whose requests wait for the system, and not it for them
DECIDES = ("goodput", "the share within the SLO", "P99 TTFT", "fewest seats")


def equals(goal: Goal, trials: Sequence[Trial], *, is_resampled: bool) -> list[Trial]:
    """Those that keep the limits and are equal to the best in the one figure of the goal; none where nothing does."""
    met = [trial for trial in trials if goal.is_met(trial.means)]
    if not met or len(goal.metrics) > 1:
        return []
    best = min(met, key=lambda trial: goal.rank(trial.means))
    return [trial for trial in met if _is_equal(goal.metrics[0].key, best, trial, is_resampled)]


def _is_equal(key: str, best: Trial, other: Trial, is_resampled: bool) -> bool:
    figures, others = ([run[key] or 0.0 for run in trial.by_seed] for trial in (best, other))
    highest = best.means[key] or 0.0
    if abs((other.means[key] or 0.0) - highest) <= CLOSE * abs(highest):
        return True
    return len(figures) >= MIN_RUNS and paired_difference(figures, others, is_resampled=is_resampled).holds(0.0)


def order(scenario: Scenario, trial: Trial) -> tuple[float, ...]:
    """Between equals, the smaller the better."""
    means = trial.means
    goodput, share, ttft = (means[key] for key in (GOODPUT, f"{SLO_SHARE}all", "p99_ttft_ms"))
    return (-(goodput or 0.0), -(share or 0.0), inf if ttft is None else ttft, *preference(scenario, trial))


def preference(scenario: Scenario, trial: Trial) -> tuple[float, ...]:
    """Of those with the same figures: vLLM's own policy; what is there; the fewest seats and tokens.

    Seats and tokens that bring nothing cost memory.
    """
    settings = trial.settings
    policy: str = settings.get("policy", {}).get("name", scenario.policy.name)
    sizes = (settings.get(SEQS, 0), settings.get(TOKENS, 0))
    return (policy != "vllm", bool(settings), *sizes, trial.number)


def has_open_arrivals(scenario: Scenario) -> bool:
    """Whether requests arrive at times of their own, so that no more can be served than comes."""
    workload = scenario.workload
    if workload.max_concurrency is not None:
        return False
    parts: Sequence[Traffic] = [] if workload.trace is not None else workload.mix or [workload]
    return all(part.resolved_arrival().process not in CLOSED for part in parts)
