"""Real figures and simulated ones: the same code makes both, from `simbatch.sim.results`.

`Bounds` say in percent how far a simulation may be off, and which figure each of them holds for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from simbatch.profiler.records.real_run import AnyRun, RealRun
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.metric import Metric
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS

STATISTICS = ("mean", "median", "p90", "p99")
LATENCIES = ("ttft", "tpot", "e2el")
THROUGHPUTS = ("request_throughput", "output_throughput")
SPREADS = 2.0  # a figure may be off by so many times the real runs' own spread, where that is more
MEND = "write for example --bounds mean=5,mean_ttft=10,p90=10"


@dataclass(frozen=True)
class Bounds:
    """Shares by name: a statistic, `throughput`, or one figure; the nearest name counts."""

    shares: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Bounds:
        """From `mean=5,p90=10,mean_ttft=10,throughput=4` (percent); UserError for anything else."""
        shares = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            known = {*STATISTICS, "throughput", *THROUGHPUTS, *(f"{s}_{n}" for s in STATISTICS for n in LATENCIES)}
            if name not in known or not equals:
                rule = f"must name {', '.join(STATISTICS)}, throughput or one figure (mean_ttft, output_throughput)"
                raise UserError(Problem("--bounds", rule, part, MEND))
            if name in shares:
                raise UserError(Problem("--bounds", f"{name} is given twice", text, MEND))
            shares[name] = _percent(name, value.removesuffix("%"))
        return cls(shares)

    def of(self, key: str) -> float | None:
        """The bound of a figure by its key in summary.json, a share; None where there is none."""
        name = key.removesuffix("_ms")
        if name in self.shares:
            return self.shares[name]
        if name in THROUGHPUTS:  # they are means over time
            return self.shares.get("throughput", self.shares.get("mean"))
        statistic, _, latency = name.partition("_")
        return self.shares.get(statistic) if latency in LATENCIES else None

    def unchecked(self, keys: Collection[str]) -> list[str]:
        """The names that hold for none of the figures `keys`."""
        return [name for name, share in self.shares.items() if not any(Bounds({name: share}).of(key) for key in keys)]


def _percent(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UserError(Problem("--bounds", f"{name} must be a number of percent above 0", text, MEND))
    return value / 100


def is_within(error: float | None, bound: float, spread: float | None) -> bool:
    """Within the bound, or within twice the runs' own spread where that is larger; what was not measured is not."""
    return error is not None and abs(error) <= max(bound, SPREADS * (spread or 0.0))


CLIENT, ENGINE = "client", "engine"


@dataclass(frozen=True)
class ComparedFigure:
    """One figure of every real run and of the simulation; shares are of the real runs' median."""

    metric: Metric
    clock: str
    real: tuple[float, ...]
    simulated: float | None
    bound: float | None = None

    @property
    def median(self) -> float:
        """Of the real runs."""
        return median(self.real)

    @property
    def spread(self) -> float | None:
        """How far the run that is farthest from the median is from it; None for one run."""
        if len(self.real) < 2 or not self.median:
            return None
        return max(abs(value - self.median) for value in self.real) / self.median

    @property
    def error(self) -> float | None:
        """Of the simulation; None where there is nothing to divide by."""
        return None if self.simulated is None or not self.median else self.simulated / self.median - 1

    @property
    def is_within(self) -> bool | None:
        """Whether it keeps to its bound; None when it has none."""
        return None if self.bound is None else is_within(self.error, self.bound, self.spread)

    def as_dict(self) -> dict[str, Any]:
        """As validation.json has it."""
        return {
            "key": self.metric.key,
            "label": self.metric.label,
            "clock": self.clock,
            "real": list(self.real),
            "median": self.median,
            "min": min(self.real),
            "max": max(self.real),
            "spread": self.spread,
            "simulated": self.simulated,
            "error": self.error,
            "bound": self.bound,
            "is_within": self.is_within,
        }


def figures_of(real: Sequence[AnyRun], simulated: RealRun, bounds: Bounds | None) -> list[ComparedFigure]:
    """All that both sides have; bounds hold for what the client sees."""
    figures = []
    for metric in _client_metrics(real):
        values = [run.value(metric) for run in real]
        ours = metric.of(simulated.result.summary)
        figures += _figure(metric, CLIENT, values, ours, None if bounds is None else bounds.of(metric.key))
    theirs, own = [run.by_engine for run in real], simulated.by_engine
    if own is not None:
        seen = [result.summary for result in theirs if result is not None]
        for metric in _latencies(("ttft", "e2el")) if len(seen) == len(real) else ():
            figures += _figure(metric, ENGINE, [metric.of(summary) for summary in seen], metric.of(own.summary), None)
    return figures


def _figure(
    metric: Metric, clock: str, values: Sequence[float | None], simulated: float | None, bound: float | None
) -> list[ComparedFigure]:
    real = tuple(float(value) for value in values if value is not None)
    return [ComparedFigure(metric, clock, real, simulated, bound)] if real and len(real) == len(values) else []


def _client_metrics(real: Sequence[AnyRun]) -> Iterator[Metric]:
    """What the runs were recorded in enough detail for."""
    yield REGISTRY["duration"]
    yield REGISTRY["request_throughput"]
    yield REGISTRY["output_throughput"]
    yield from _latencies(LATENCIES)
    if all(run.has_gaps for run in real):
        yield from (_latency(statistic, "itl") for statistic in ("mean", "p99"))
    yield REGISTRY["simbatch.mean_concurrent_requests"]
    for name in ("duration", "without_thinking", "first_ttft", "later_ttft"):  # of runs that have sessions
        yield from (REGISTRY[f"{SESSIONS}{statistic}_{name}_ms"] for statistic in ("mean", "p99"))
    if all(run.has_queue for run in real):
        yield REGISTRY["simbatch.queue.mean_waiting"]
        yield REGISTRY["simbatch.queue.max_waiting"]
    if all(run.has_steps for run in real):
        yield REGISTRY["simbatch.batch_size.mean"]
        yield REGISTRY["simbatch.batch_size.max"]
        yield REGISTRY["simbatch.num_steps"]
        yield REGISTRY["simbatch.num_preemptions"]
        yield REGISTRY["simbatch.cached_tokens_share"]


def _latencies(names: Sequence[str]) -> Iterator[Metric]:
    yield from (_latency(statistic, name) for name in names for statistic in STATISTICS)


def _latency(statistic: str, name: str) -> Metric:
    return REGISTRY[f"{statistic}_{name}_ms"]
