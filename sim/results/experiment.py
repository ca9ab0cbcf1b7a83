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

from simbatch.sim.metrics.registry import HIGHER, LOWER, Metric, metrics_of, possible_difference, steady_metrics
from simbatch.sim.results.runs import Runs, Summary, Values, same_as
from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, paired_difference, paired_ratio
from simbatch.sim.text import number, percent

NO_DIFFERENCE = "no difference shown"
NOT_MEASURED = "not measured"
MIN_PAIRS = 2


@dataclass(frozen=True)
class Difference:
    """`other` against `base`, in the metric's unit and as a ratio of the means; a refusal instead of both."""

    metric: Metric
    base: str
    other: str
    interval: Interval | None
    ratio: Interval | None  # None too where the base may as well be zero
    refused: str | None = None

    @classmethod
    def of(
        cls,
        metric: Metric,
        base: tuple[str, Values],
        other: tuple[str, Values],
        confidence: float,
        refused: str | None,
        *,
        is_resampled: bool = False,
    ) -> Difference:
        """From the seeds that both have a figure for."""
        pairs = [(a, b) for a, b in zip(base[1], other[1], strict=True) if a is not None and b is not None]
        if refused is None and len(pairs) < MIN_PAIRS:
            refused = NOT_MEASURED
        if refused is not None:
            return cls(metric, base[0], other[0], None, None, refused)
        first, second = zip(*pairs, strict=True)
        interval = paired_difference(first, second, confidence, is_resampled=is_resampled)
        ratio = paired_ratio(first, second, confidence, is_resampled=is_resampled)
        return cls(metric, base[0], other[0], possible_difference(interval, metric.key), ratio)

    @property
    def verdict(self) -> str:
        """Better or worse (higher or lower where neither is good) when the interval is clear of 0."""
        if self.interval is None:
            return self.refused or NOT_MEASURED
        if self.interval.holds(0.0):
            return NO_DIFFERENCE
        is_higher = self.interval.estimate > 0
        if self.metric.better is None:
            return HIGHER if is_higher else LOWER
        return "better" if is_higher == (self.metric.better == HIGHER) else "worse"

    def cells(self) -> tuple[str, str, str, str]:
        """Difference, its interval, the interval in percent, verdict."""
        if self.interval is None:
            return "-", "-", "-", self.verdict
        if not self.interval.low < self.interval.high and not self.interval.estimate:
            return "0", "equal in every run", "-", self.verdict
        span = f"{self._signed(self.interval.low)} to {self._signed(self.interval.high)}"
        relative = "-"
        if self.ratio is not None:
            relative = f"{_percent(self.ratio.low)} to {_percent(self.ratio.high)}"
        return self._signed(self.interval.estimate), span, relative, self.verdict

    def as_dict(self) -> dict[str, Any]:
        """Plain data for compare.json; `relative` is the ratio of the means minus 1."""
        interval, ratio = self.interval, self.ratio
        return {
            "difference": interval and interval.estimate,
            "low": interval and interval.low,
            "high": interval and interval.high,
            "relative": ratio and ratio.estimate - 1,
            "relative_low": ratio and ratio.low - 1,
            "relative_high": ratio and ratio.high - 1,
            "num_pairs": interval.n if interval else 0,
            "verdict": self.verdict,
        }

    def _signed(self, value: float) -> str:
        """As the metric is shown, with its sign; shares in percentage points."""
        text = number(100 * value, 2) if self.metric.is_share else number(value, max(self.metric.decimals, 1))
        return text if text.startswith("-") else f"+{text}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


@dataclass(frozen=True)
class MetricRow:
    """One metric of every candidate; `better` says which end is, None when neither."""

    key: str  # as in summary.json, dots between the levels
    label: str
    values: dict[str, float | None]
    better: str | None = None
    decimals: int = 2
    is_share: bool = False

    @property
    def best(self) -> list[str]:
        """Who has the best value, to the digits shown; nobody when all look equal."""
        measured = {value: label for label, value in self.values.items() if value is not None}
        texts = {self.text(label) for label in measured.values()}
        if self.better is None or len(texts) < 2:
            return []
        best = self.text(measured[(min if self.better == LOWER else max)(measured)])
        return [label for label in self.values if self.text(label) == best]

    def cell(self, label: str) -> str:
        """What the table shows, the best with a star."""
        return f"{self.text(label)} {'*' if label in self.best else ' '}"

    def text(self, label: str) -> str:
        """A candidate's value as it is shown."""
        value = self.values[label]
        return percent(value) if self.is_share else number(value, self.decimals)


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

    def rows(self) -> Iterator[MetricRow]:
        """The means over the seeds."""
        for metric, _ in self.measured:
            means = {label: runs.mean(metric) for label, runs in self.runs.items()}
            yield MetricRow(metric.key, metric.label, means, metric.better, max(metric.decimals, 1), metric.is_share)

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
