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
from simbatch.sim.results.compared import STEADY, Metric, metrics_of, steady_metrics
from simbatch.sim.results.differences import Difference, Values
from simbatch.sim.results.possible import possible
from simbatch.sim.results.steady import OVERLOADED
from simbatch.sim.statistics.intervals import CONFIDENCE, mean_interval

Summary = Mapping[str, Any]


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
                    self.refusal(base) or self.refusal(other) if metric.is_steady else None,
                    is_resampled=self.is_resampled,
                )
                for other in others
            ]
            for metric, values in self.measured
        ]

    def rows(self) -> Iterator[Row]:
        """The means over the seeds."""
        for metric, values in self.measured:
            means = {label: mean_of(values[label]) for label in self.labels}
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
                "intervals": {label: self.interval_of(metric, values[label]) for label in self.labels},
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
            values: dict[str, Values] = {}
            for label, runs in self.summaries.items():
                is_refused = metric.is_steady and self.refusal(label) is not None  # a claim about all the runs, or none
                values[label] = [None if is_refused else metric.of(summary) for summary in runs]
            if any(value is not None for of in values.values() for value in of):
                table.append((metric, values))
        return table

    def refusal(self, label: str) -> str | None:
        """Why nothing is said of this candidate's steady state; overload before all else."""
        reasons = [reason for summary in self.summaries[label] if (reason := refusal_of(summary)) is not None]
        return OVERLOADED if OVERLOADED in reasons else next(iter(reasons), None)

    def num_overloaded(self, label: str) -> int:
        """In how many runs of this candidate the queue kept growing."""
        return sum(refusal_of(summary) == OVERLOADED for summary in self.summaries[label])

    def rejected_share(self, label: str) -> float:
        """Of the requests of all runs of this candidate: whose latencies are not among its figures."""
        counts = [summary["simbatch"]["requests"] for summary in self.summaries[label]]
        rejected, total = (sum(int(count[key]) for count in counts) for key in ("rejected", "total"))
        return rejected / max(1, total)

    def interval_of(self, metric: Metric, values: Values) -> dict[str, float] | None:
        """Of one candidate's mean, within what the figure can be."""
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return None
        interval = possible(mean_interval(known, self.confidence, is_resampled=self.is_resampled), metric.key)
        return {"low": interval.low, "high": interval.high, "n": interval.n}


def refusal_of(summary: Summary) -> str | None:
    """Why a run says nothing of the steady state."""
    _, _, key = STEADY.partition(".")
    reason: str | None = summary["simbatch"][key]["refused"]
    return reason


def mean_of(values: Values) -> float | None:
    """The mean of those that there are."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
