"""What a search is for: the figures to make large or small, and the limits to keep."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import inf, isfinite
from typing import TYPE_CHECKING

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.registry import (
    ALIASES,
    GOODPUT,
    HIGHER,
    LOWER,
    SESSION_GOODPUT,
    SESSION_SLO,
    SLO_SHARE,
    Metric,
    searchable,
)

if TYPE_CHECKING:
    from simbatch.sim.results.runs import Means
    from simbatch.sim.scenario.model import SloSection

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

    def content(self) -> dict[str, str | float]:
        """As JSON: the metric, and its bound as `at_most` or `at_least`."""
        return {"metric": self.metric.key, "at_most" if self.metric.aim == LOWER else "at_least": self.bound}

    def __str__(self) -> str:
        return f"{self.metric.key} {'<=' if self.metric.aim == LOWER else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Goal:
    """What to optimise, one metric or several, within the limits."""

    metrics: tuple[Metric, ...]
    limits: tuple[Limit, ...] = ()

    def check_slo(self, slo: SloSection) -> None:
        """UserError when a figure needs SLOs and the scenario has none."""
        needs = {
            (GOODPUT, SLO_SHARE): ("requests", slo.of_requests(), "{ttft_ms: 1000, tpot_ms: 50}"),
            (SESSION_GOODPUT, SESSION_SLO): ("sessions", slo.of_sessions(), "{session_without_thinking_ms: 60000}"),
        }
        named = (*self.metrics, *(limit.metric for limit in self.limits))
        for metric, (names, (what, given, example)) in product(named, needs.items()):
            if not given and metric.key.startswith(names):
                rule = f"{metric.key} counts {what} within the SLO, and the scenario has none"
                raise UserError(Problem("slo", rule, mend=f"for example: --set 'slo={example}'"))

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
