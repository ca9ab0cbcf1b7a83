"""The table under every command that compares: candidates, loads and seeds, a summary each, and what they say together.

Every candidate gets the same arrivals under the same seed (common random numbers), so each is compared with the first
by the differences of the pairs. The figures are those of finite runs, as they stand in summary.json; claims about the
steady state are made beside them, and refused for a candidate as soon as one of its runs refuses them.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from simbatch.sim.metrics import figures_of
from simbatch.sim.metrics.registry import Metric, metrics_of, steady_metrics
from simbatch.sim.results.runs import Difference, MetricRow, Runs, Summary, Values, bounds_of, same_as, unread_in
from simbatch.sim.statistics import CONFIDENCE, mean_interval

ALIKE = "Nothing to tell apart: every request fared alike under all candidates, in every run."

C = TypeVar("C", bound=Hashable)  # how candidates are named: labels, settings, numbers of trials


class Experiment(Generic[C]):
    """A summary for each candidate at each load under each seed, added as they come.

    Candidates, loads and seeds stand in the order in which they came; `load` is None where there is but one.
    `is_resampled`: the runs of a candidate are of one trace, drawn anew.
    """

    def __init__(self, *, is_resampled: bool = False) -> None:
        self.is_resampled = is_resampled
        self._summaries: dict[tuple[C, float | None], dict[int, Summary]] = {}

    def add(self, candidate: C, seed: int, summary: Summary, load: float | None = None) -> None:
        """One run; another of the same candidate, load and seed takes its place."""
        self._summaries.setdefault((candidate, load), {})[seed] = summary

    def __iter__(self) -> Iterator[tuple[C, float | None, Runs]]:
        for (candidate, load), by_seed in self._summaries.items():
            yield candidate, load, Runs([*by_seed.values()], self.is_resampled)

    def runs(self, candidate: C, load: float | None = None) -> Runs:
        """Those of one candidate at one load, one per seed."""
        return Runs([*self._summaries[candidate, load].values()], self.is_resampled)

    def without(self, candidates: Collection[C]) -> Experiment[C]:
        """A table of the other candidates' runs."""
        rest: Experiment[C] = Experiment(is_resampled=self.is_resampled)
        rest._summaries = {key: runs for key, runs in self._summaries.items() if key[0] not in candidates}
        return rest

    def candidates(self) -> list[C]:
        """Each once."""
        return list(dict.fromkeys(candidate for candidate, _ in self._summaries))

    def loads(self) -> list[float | None]:
        """Each once."""
        return list(dict.fromkeys(load for _, load in self._summaries))

    def seeds(self) -> list[int]:
        """Of the first candidate at the first load."""
        return list(next(iter(self._summaries.values()), {}))

    def difference(
        self,
        metric: Metric,
        base: C,
        other: C,
        *,
        load: float | None = None,
        confidence: float = CONFIDENCE,
        refused: str | None = None,
    ) -> Difference:
        """How far `other` is from `base`, by the seeds that both have a figure for; `refused`: why nothing is said."""
        first, second = ((str(name), self.runs(name, load).values(metric)) for name in (base, other))
        return Difference.of(metric, first, second, confidence, refused, is_resampled=self.is_resampled)

    def points(self) -> Iterator[dict[str, Any]]:
        """Of each candidate at each load `replications`, `overloaded_runs`, and of every figure mean, `.low`, `.high`.

        A figure that some run does not have has no mean; fewer than two runs have no interval.
        """
        names = dict.fromkeys(name for _, _, runs in self for each in runs.summaries for name in figures_of(each))
        for _, _, runs in self:
            figures = [figures_of(summary) for summary in runs.summaries]
            point: dict[str, Any] = {"replications": len(figures), "overloaded_runs": runs.num_overloaded}
            for name in names:
                point |= _interval_of(name, [each.get(name) for each in figures], self.is_resampled)
            yield point


def _interval_of(name: str, values: Sequence[float | None], is_resampled: bool) -> dict[str, float | None]:
    """`name`, `name.low`, `name.high`."""
    known = [value for value in values if value is not None]
    mean = low = high = None
    if len(known) == len(values):
        mean = known[0]
    if mean is not None and len(known) > 1:
        interval = mean_interval(known, is_resampled=is_resampled).within(*bounds_of(name))
        mean, low, high = interval.estimate, interval.low, interval.high
    return {name: mean, f"{name}.low": low, f"{name}.high": high}


@dataclass(frozen=True)
class SideBySide:
    """The candidates of an experiment at one load; the others are compared with the first.

    `bonferroni`: the intervals of a metric hold together with the confidence, rather than each by itself.
    """

    experiment: Experiment[str]
    load: float | None = None
    bonferroni: bool = False
    confidence: float = CONFIDENCE

    @property
    def labels(self) -> list[str]:
        """The candidates."""
        return self.experiment.candidates()

    @property
    def seeds(self) -> list[int]:
        """Those that all ran under."""
        return self.experiment.seeds()

    @property
    def is_resampled(self) -> bool:
        """Whether the runs are of one trace, drawn anew."""
        return self.experiment.is_resampled

    @cached_property
    def runs(self) -> dict[str, Runs]:
        """Of each candidate."""
        return {label: self.experiment.runs(label, self.load) for label in self.labels}

    @property
    def unread(self) -> list[str]:
        """How the runs' traces were read and what in them was not, in sentences."""
        return unread_in(summary for runs in self.summaries.values() for summary in runs)

    @cached_property
    def summaries(self) -> dict[str, Sequence[Summary]]:
        """Of each candidate, one per seed."""
        return {label: runs.summaries for label, runs in self.runs.items()}

    def point(self, metric: Metric, label: str) -> Point:
        """One metric of one candidate."""
        runs = self.runs[label]
        interval = runs.interval(metric, self.confidence)
        low, high = (None, None) if interval is None else (interval.low, interval.high)
        found = next((row for row in self.differences if row and row[0].metric.key == metric.key), [])
        difference = next((each for each in found if each.other == label), None)
        return Point(runs.values(metric), runs.mean(metric), low, high, difference)

    @cached_property
    def same(self) -> dict[str, str]:
        """Who is the same as an earlier candidate under every seed, and as whom."""
        return same_as(self.summaries)

    @cached_property
    def differences(self) -> list[list[Difference]]:
        """Per metric, one per candidate after the first."""
        base, *others = self.labels
        confidence = 1 - (1 - self.confidence) / len(others) if self.bonferroni and others else self.confidence
        return [
            [
                self.experiment.difference(
                    *(metric, base, other),
                    load=self.load,
                    confidence=confidence,
                    refused=self.runs[base].refusal or self.runs[other].refusal if metric.is_steady else None,
                )
                for other in others
            ]
            for metric, _ in self.measured
        ]

    def rows(self) -> Iterator[MetricRow]:
        """The means over the seeds."""
        for metric, _ in self.measured:
            means = {label: runs.mean(metric) for label, runs in self.runs.items()}
            yield MetricRow(metric, means, decimals=1)

    def metrics(self) -> list[dict[str, Any]]:
        """Of each metric its means, runs, intervals and differences, as plain data for compare.json."""
        return [
            {
                **metric.named(),
                "values": row.values,
                "best": row.best,
                "runs": values,
                "intervals": {label: self._interval(label, metric) for label in self.labels},
                "differences": {difference.other: difference.as_dict() for difference in differences},
            }
            for row, (metric, values), differences in zip(self.rows(), self.measured, self.differences, strict=True)
        ]

    def multiplicity(self) -> Iterator[str]:
        """How many comparisons there are, and what the confidence then means."""
        each = len(self.labels) - 1
        if len(self.same) == each:
            yield ALIKE
            return
        if each > 1 and self.bonferroni:
            yield (
                f"The {each} intervals of a metric hold together at {100 * self.confidence:g} % (Bonferroni); "
                "those of different metrics each by itself."
            )
            return
        compared = (each for row in self.differences for each in row if each.other not in self.same)
        total = sum(difference.interval is not None for difference in compared)
        yield (
            f"{total} comparison{'' if total == 1 else 's'}, each at {100 * self.confidence:g} % by itself: "
            "of those without a true difference, "
            f"1 in {1 / (1 - self.confidence):.0f} shows one{'; see --bonferroni' if each > 1 else ''}."
        )

    @cached_property
    def measured(self) -> list[tuple[Metric, dict[str, Values]]]:
        """Every metric that somebody has, by candidate and seed."""
        every = [summary for runs in self.summaries.values() for summary in runs]
        table: list[tuple[Metric, dict[str, Values]]] = []
        for metric in (*metrics_of(every), *steady_metrics()):
            values: dict[str, Values] = {label: runs.values(metric) for label, runs in self.runs.items()}
            if any(value is not None for of in values.values() for value in of):
                table.append((metric, values))
        return table

    def _interval(self, label: str, metric: Metric) -> dict[str, float] | None:
        interval = self.runs[label].interval(metric, self.confidence)
        return None if interval is None else {"low": interval.low, "high": interval.high, "n": interval.n}


@dataclass(frozen=True)
class Point:
    """One metric of one candidate at one load: its mean over the seeds, and how far it is from the first's."""

    values: Values
    mean: float | None
    low: float | None
    high: float | None
    difference: Difference | None  # None for the first candidate itself


@dataclass(frozen=True)
class OverLoads:
    """An experiment over several loads.

    `key` is the scenario's key that the loads are values of, `axis` what `times` them are in words; `limits` the SLO in
    ms; `scenario` the first candidate's, resolved, at its own load.
    """

    name: str
    key: str
    axis: str
    experiment: Experiment[str]
    limits: Mapping[str, float]
    bonferroni: bool = False
    has_chance: bool = True  # whether another seed would be another run
    scenario: Mapping[str, Any] = field(default_factory=dict)
    times: float = 1.0

    @property
    def labels(self) -> list[str]:
        """The candidates."""
        return self.experiment.candidates()

    @cached_property
    def rates(self) -> list[float]:
        """The loads."""
        return [load for load in self.experiment.loads() if load is not None]

    @cached_property
    def at(self) -> list[SideBySide]:
        """The comparison at each load."""
        return [SideBySide(self.experiment, rate, self.bonferroni) for rate in self.rates]

    @cached_property
    def same(self) -> dict[str, str]:
        """Who is the same as an earlier candidate at every load under every seed, and as whom."""
        return same_as({label: [run for at in self.at for run in at.summaries[label]] for label in self.labels})

    @cached_property
    def metrics(self) -> list[Metric]:
        """Everything that somebody has at some load."""
        return list({metric.key: metric for at in self.at for metric, _ in at.measured}.values())

    def points(self, metric: Metric) -> dict[str, list[Point]]:
        """By candidate, one point per load."""
        return {label: [at.point(metric, label) for at in self.at] for label in self.labels}
