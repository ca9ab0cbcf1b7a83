"""Candidates under the same seeds, by their summaries alone: means, paired differences with intervals, verdicts.

Every candidate gets the same arrivals under the same seed (common random numbers), so each is compared with the first
by the differences of the pairs. The figures are those of finite runs, as they stand in summary.json; claims about the
steady state are made beside them, and refused for a candidate as soon as one of its runs refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simbatch.sim.results.alike import same_as
from simbatch.sim.results.compare import Row
from simbatch.sim.results.differences import Difference
from simbatch.sim.results.registry import Metric, metrics_of, steady_metrics
from simbatch.sim.results.runs import Runs, Summary, Values
from simbatch.sim.statistics.intervals import CONFIDENCE


@dataclass(frozen=True)
class Replicated:
    """`summaries`: of each candidate, one per seed, in the order of `seeds`.

    `bonferroni`: the intervals of a metric hold together with the confidence, rather than each by itself.
    `is_resampled`: the runs are of one trace, drawn anew.
    """

    summaries: Mapping[str, Sequence[Summary]]
    seeds: Sequence[int]
    bonferroni: bool = False
    confidence: float = CONFIDENCE
    is_resampled: bool = False

    @property
    def labels(self) -> list[str]:
        """The candidates; the others are compared with the first."""
        return list(self.summaries)

    @cached_property
    def runs(self) -> dict[str, Runs]:
        """Of each candidate."""
        return {label: Runs(summaries, self.is_resampled) for label, summaries in self.summaries.items()}

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
                Difference.of(
                    metric,
                    (base, values[base]),
                    (other, values[other]),
                    confidence,
                    self.runs[base].refusal or self.runs[other].refusal if metric.is_steady else None,
                    is_resampled=self.is_resampled,
                )
                for other in others
            ]
            for metric, values in self.measured
        ]

    def rows(self) -> Iterator[Row]:
        """The means over the seeds."""
        for metric, _ in self.measured:
            means = {label: runs.mean(metric) for label, runs in self.runs.items()}
            yield Row(metric.key, metric.label, means, metric.better, max(metric.decimals, 1), metric.is_share)

    def metrics(self) -> list[dict[str, Any]]:
        """Of each metric its means, runs, intervals and differences, as plain data for compare.json."""
        return [
            {
                "key": row.key,
                "label": row.label,
                "better": row.better,
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
        if each > 1 and self.bonferroni:
            yield (
                f"The {each} intervals of a metric hold together at {100 * self.confidence:g} % (Bonferroni); "
                "those of different metrics each by itself."
            )
            return
        compared = (each for row in self.differences for each in row if each.other not in self.same)
        total = sum(difference.interval is not None for difference in compared)
        yield (
            f"{total} comparisons, each at {100 * self.confidence:g} % by itself: of those without a true difference, "
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
