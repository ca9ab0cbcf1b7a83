"""`simbatch validate`: a real run beside its simulation, with figures, files, and whether it keeps to its bounds.

`step_figures` says where an error comes from: the steps that the real engine did, beside what the profile says that
each of them takes. When the profile is right about the steps, an error left is the simulated scheduler's, the host's or
the front end's; when it is not, the machine has drifted since it was measured, or the profile does not fit. The same
code makes real figures and simulated ones; `Bounds` say in percent how far a simulation may be off.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from simbatch.profiler.records.real_run import AnyRun, RealRun, step_figures, turn_figures
from simbatch.sim.cost.model import CostModel
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS, Metric

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


UNTOLD_HITS = (
    "hit rates by turn left out: the server does not tell how much of a prompt it found in its cache "
    "(vllm serve --enable-prompt-tokens-details), or found nothing"
)
REAL = "real: "  # what notes on a real run begin with
NOISY = 0.15  # a spread of a mean that makes its error worth little


@dataclass(frozen=True)
class Validation:
    """The real runs and the simulation of the same requests; `source` says what was run, as plain data."""

    real: Sequence[AnyRun]
    simulated: RealRun
    cost: CostModel
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    bounds: Bounds | None = None
    admission_ms: dict[str, float] | None = None  # of a request: the real mean, and what the profile says

    @cached_property
    def figures(self) -> list[ComparedFigure]:
        """Everything that both sides know."""
        return figures_of(self.real, self.simulated, self.bounds)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The real steps beside what the profile says of them; empty where no steps were recorded."""
        return step_figures(self.recorded, self.cost)

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """TTFT and hit rate of sessions, turn by turn, real and simulated; empty where there are no sessions."""
        return turn_figures(self.recorded, self.simulated)

    @property
    def recorded(self) -> list[RealRun]:
        """The real runs whose requests are known: all, or none where their totals alone are."""
        return [run for run in self.real if isinstance(run, RealRun)]

    @property
    def outside(self) -> list[ComparedFigure]:
        """What does not keep to its bound."""
        return [figure for figure in self.figures if figure.is_within is False]

    @property
    def unchecked(self) -> list[str]:
        """Bounds that hold for no figure, since the real run does not tell it: they are not kept."""
        known = [figure.metric.key for figure in self.figures if figure.clock == CLIENT]
        return [] if self.bounds is None else self.bounds.unchecked(known)

    @property
    def is_within_bounds(self) -> bool:
        """Whether every bound is kept."""
        return not self.outside and not self.unchecked

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.simulated.facts.scenario_name

    @cached_property
    def all_notes(self) -> list[str]:
        """What a reader of the figures must know."""
        warnings = self.simulated.result.summary["simbatch"]["warnings"]
        untold = [UNTOLD_HITS] if self.turns and self.turns[-1]["cached_tokens_share"]["real"] is None else []
        return [*self.notes, *untold, *self._untold(), *self._noise(), *(f"simulated: {text}" for text in warnings)]

    def _untold(self) -> Iterator[str]:
        """What was left out, once for each reason."""
        named: dict[str, list[str]] = {}
        for name, reason in (pair for run in self.real for pair in run.untold.items()):
            words = name.upper() if name in (*LATENCIES, "itl") else name.replace("_", " ")
            if words not in named.setdefault(reason, []):
                named[reason].append(words)
        yield from (f"{', '.join(names)} left out: {reason}" for reason, names in named.items())

    def _noise(self) -> Iterator[str]:
        """What the runs say of each other."""
        if len(self.real) == 1:
            yield "one real run says nothing of the noise from run to run"
        spreads = {figure.metric.key: figure.spread or 0.0 for figure in self.figures if figure.clock == CLIENT}
        widest = max((key for key in spreads if key.startswith("mean_")), key=spreads.__getitem__, default=None)
        if widest is not None and spreads[widest] > NOISY:
            yield (
                f"the real runs are up to {spreads[widest]:.0%} off their own median ({widest}), and errors below that "
                "say little: measure on a machine that does nothing else, at a lower load, or with more runs"
            )

    def as_dict(self) -> dict[str, Any]:
        """The content of validation.json."""
        ours = self.simulated.result.summary["simbatch"]
        return {
            "scenario": self.name,
            "real": {**self.source, "runs": len(self.real)},
            "simulated": {key: ours[key] for key in ("profile", "engine", "policy", "seed")},
            "num_requests": len(self.simulated.record.requests),
            "figures": [figure.as_dict() for figure in self.figures],
            "steps": self.steps,
            "turns": self.turns,
            "admission_ms": self.admission_ms,
            "bounds": None if self.bounds is None else dict(self.bounds.shares),
            "is_within_bounds": None if self.bounds is None else self.is_within_bounds,
            "notes": self.all_notes,
        }
