"""One metric of several candidates: who is best, how far two differ over the same seeds, how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simbatch.sim.metrics.metric import HIGHER, LOWER, Metric
from simbatch.sim.metrics.registry import possible_difference
from simbatch.sim.results.runs import Values
from simbatch.sim.statistics.intervals import Interval, paired_difference, paired_ratio
from simbatch.sim.text import number

NO_DIFFERENCE = "no difference shown"
NOT_MEASURED = "not measured"
SHORT = {NO_DIFFERENCE: "not told apart"}  # where there is little room
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

    def cells(self, *, short: bool = False) -> tuple[str, ...]:
        """Difference, its interval, the interval in percent, verdict; `short`: without the percent."""
        if self.interval is None:
            cells: tuple[str, ...] = ("-", "-", "-", self.verdict)
        elif not self.interval.low < self.interval.high and not self.interval.estimate:
            cells = ("0", "equal in every run", "-", self.verdict)
        else:
            span = f"{self._signed(self.interval.low)} to {self._signed(self.interval.high)}"
            relative = "-" if self.ratio is None else f"{_percent(self.ratio.low)} to {_percent(self.ratio.high)}"
            cells = (self._signed(self.interval.estimate), span, relative, self.verdict)
        return (*cells[:2], SHORT.get(self.verdict, self.verdict)) if short else cells

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
    """One metric of every candidate, shown with at least so many `decimals`."""

    metric: Metric
    values: dict[str, float | None]
    decimals: int = 0

    @property
    def best(self) -> list[str]:
        """Who has the best value, to the digits shown; nobody when all look equal."""
        measured = {value: label for label, value in self.values.items() if value is not None}
        texts = {self.text(label) for label in measured.values()}
        if self.metric.better is None or len(texts) < 2:
            return []
        best = self.text(measured[(min if self.metric.better == LOWER else max)(measured)])
        return [label for label in self.values if self.text(label) == best]

    def cell(self, label: str) -> str:
        """What the table shows, the best with a star."""
        return f"{self.text(label)} {'*' if label in self.best else ' '}"

    def text(self, label: str) -> str:
        """A candidate's value as it is shown."""
        return self.metric.text(self.values[label], self.decimals)
