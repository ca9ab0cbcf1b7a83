"""The capacity: the highest request rate under which the limits are kept.

A run is a figure of chance, so each seed gives an estimate of its own. All rates of the scenario are multiplied alike:
the same gaps and lengths come at another pace (common random numbers). From the scenario's rate on it is doubled until
it fails, or halved until it holds, then bisected to 1 / 128 of a doubling (0.54 %). The answer is the
geometric mean over the seeds with its 95 % t interval, widened by half of the last bracket.

Where the limits leave room up to saturation, the verdict that the queue keeps growing decides. It is slow to fall a
little above saturation, by about 2.3 / sqrt(number of requests) of the rate, so the answer is then an upper bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log2

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.tune import OVERLOADED, Evaluate, is_overloaded
from simbatch.sim.search.tune_goal import METRICS, SLO_SHARE, Limit, Means, Summary, means_over
from simbatch.sim.search.tune_space import Settings
from simbatch.sim.statistics.intervals import Interval, mean_interval
from simbatch.sim.workload.traffic_model import Traffic

STEPS = 128  # to a doubling
MAX_DOUBLINGS = 10
ALONE = 0.05  # with so few requests in the system on average, a lower rate changes nothing
REPLICATIONS = 8
DEFAULT_SHARE = 0.99  # of the requests within the SLO
RATES = ("request_rate", "off_request_rate", "ramp_up_start_rps", "ramp_up_end_rps")


@dataclass(frozen=True)
class Tried:
    """One run at one rate: what it broke, if anything."""

    step: int
    seed: int
    rate: float
    means: Means
    broken: tuple[str, ...]
    concurrency: float

    @property
    def is_met(self) -> bool:
        """Whether every limit was kept and the queue did not keep growing."""
        return not self.broken


@dataclass
class Capacity:
    """What came of it; `interval` is None when no rate holds, or none fails."""

    scenario: Scenario
    key: str
    limits: tuple[Limit, ...]
    seeds: list[int]
    interval: Interval | None
    by_seed: dict[int, float | None]
    tried: list[Tried] = field(default_factory=list)

    @property
    def is_feasible(self) -> bool:
        """Whether every seed has a rate that holds."""
        return all(any(run.is_met for run in self.tried if run.seed == seed) for seed in self.seeds)

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
        return at_rate(self.scenario, rate)


def find_capacity(
    scenario: Scenario, limits: Sequence[Limit], evaluate: Evaluate, replications: int = REPLICATIONS
) -> Capacity:
    """Bisect the rate under each seed, all of them side by side."""
    key, base = next(iter(rates_of(scenario).items()))
    searches = [_Bisection(scenario.seed + i) for i in range(replications)]
    tried: list[Tried] = []
    while asked := [(search, step) for search in searches if (step := search.next()) is not None]:
        rates = [_rounded(base * 2 ** (step / STEPS)) for _, step in asked]
        summaries = evaluate(
            [(at_rate(scenario, rate), search.seed) for (search, _), rate in zip(asked, rates, strict=True)]
        )
        for (search, step), rate, summary in zip(asked, rates, summaries, strict=True):
            run = _tried(step, search.seed, rate, summary, limits)
            search.tell(run)
            tried.append(run)
    by_seed = {search.seed: search.estimate(base) for search in searches}
    found = [rate for rate in by_seed.values() if rate is not None]
    interval = _interval(found) if len(found) == replications else None
    return Capacity(scenario, key, tuple(limits), list(by_seed), interval, by_seed, tried)


class _Bisection:
    """One seed's search: the highest step that held, the lowest that failed, what to try next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
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
            return self.held + STEPS if self.held < MAX_DOUBLINGS * STEPS else None
        return (self.held + self.failed) // 2 if self.failed - self.held > 1 else None

    def tell(self, run: Tried) -> None:
        """What came of the step."""
        if run.is_met:
            self.held = run.step
        else:
            self.failed = run.step
            self.is_alone = run.concurrency < ALONE

    def estimate(self, base: float) -> float | None:
        """The middle of the last bracket; None without one."""
        if self.held is None or self.failed is None:
            return None
        return float(base * 2 ** ((self.held + self.failed) / 2 / STEPS))


def rates_of(scenario: Scenario) -> dict[str, float]:
    """Every rate of the scenario by its dotted key; they are multiplied together. UserError when it has none."""
    workload = scenario.workload
    if workload.trace is not None:
        return {"workload.trace.rate_scale": workload.trace.rate_scale}
    parts: dict[str, Traffic] = {f"workload.mix.{i}": part for i, part in enumerate(workload.mix or ())}
    found = {
        key: rate for place, part in (parts or {"workload": workload}).items() for key, rate in _own_rates(place, part)
    }
    if not found:
        rule = "has no request rate that could be raised"
        process = getattr(workload.arrival, "process", None)
        raise UserError(Problem("workload.arrival", rule, process, "take a process with one: gamma, poisson, on_off"))
    return found


def _own_rates(place: str, traffic: Traffic) -> Iterator[tuple[str, float]]:
    if traffic.request_rate is not None:
        yield f"{place}.request_rate", traffic.request_rate
    for name in RATES:
        if rate := getattr(traffic.arrival, name, None):
            yield f"{place}.arrival.{name}", rate


def at_rate(scenario: Scenario, rate: float) -> Settings:
    """The changes that make the first of the scenario's rates `rate`, and the others as many times as high."""
    rates = rates_of(scenario)
    first, *others = rates
    factor = rate / rates[first]
    return {first: rate, **{key: _rounded(rates[key] * factor) for key in others}}


def capacity_limits(scenario: Scenario, limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """What must hold: the limits given, or that 99 % of the requests are within the SLO; UserError without either."""
    if limits:
        return tuple(limits)
    if not any(scenario.slo.model_dump(exclude_none=True)):
        rule = "a capacity is the highest rate that meets something, and the scenario has no SLO"
        mend = "for example: --set 'slo={ttft_ms: 1000, tpot_ms: 50}', or --limit p99_ttft_ms=1000"
        raise UserError(Problem("slo", rule, mend=mend))
    return (Limit(METRICS[f"{SLO_SHARE}all"], DEFAULT_SHARE),)


def _tried(step: int, seed: int, rate: float, summary: Summary, limits: Sequence[Limit]) -> Tried:
    means = means_over([summary], list(METRICS.values()))
    broken = [name for limit in limits for name in _broken(limit, means)]
    broken += [OVERLOADED] if is_overloaded(summary) else []
    return Tried(step, seed, rate, means, tuple(broken), summary["simbatch"]["mean_concurrent_requests"] or 0.0)


def _broken(limit: Limit, means: Means) -> list[str]:
    """The limit if it is broken; of a share of requests within the SLO, the latencies that lower it most."""
    if limit.excess(means[limit.metric.key]) <= 0:
        return []
    if limit.metric.key != f"{SLO_SHARE}all":
        return [str(limit)]
    shares = {name: means[f"{SLO_SHARE}{name}"] for name in ("ttft", "tpot", "e2el")}
    measured = {name: share for name, share in shares.items() if share is not None}
    return [f"slo.{name}_ms" for name, share in measured.items() if share == min(measured.values())]


def _interval(rates: Sequence[float]) -> Interval:
    """The mean over the seeds, of logarithms, since a rate is positive; each is known to within half of its bracket."""
    interval = mean_interval([log2(rate) for rate in rates])
    half = 0.5 / STEPS
    return Interval(2**interval.estimate, 2 ** (interval.low - half), 2 ** (interval.high + half), interval.n)


def _rate(run: Tried) -> float:
    return run.rate


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
