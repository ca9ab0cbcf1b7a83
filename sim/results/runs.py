"""Runs and what they say: one that was measured, and those of one candidate at one load, a summary per seed.

Of one metric of several candidates: who is best, how far two differ over the same seeds, how sure that is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from simbatch.sim.engine.record import RunRecord
from simbatch.sim.files import plain
from simbatch.sim.metrics.columns import RequestTable, RunFacts
from simbatch.sim.metrics.registry import (
    HIGHER,
    LOWER,
    REGISTRY,
    STEADY,
    Metric,
    searchable,
    value_at,
)
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.statistics import CONFIDENCE, Interval, mean_interval, paired_difference, paired_ratio
from simbatch.sim.text import number

Summary = Mapping[str, Any]
Means = Mapping[str, float | None]  # by the metric's key
Values = Sequence[float | None]  # one a seed, None where the run has no such figure


@dataclass(frozen=True)
class MeasuredRun:
    """A run and what it says: `summary` is the content of summary.json, `requests` its requests as columns.

    `wall_s` is how long the simulation took on the wall, if the caller measured it; it goes to run.json alone.
    """

    record: RunRecord
    facts: RunFacts
    wall_s: float | None = None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The keys of `vllm bench serve`, and everything of ours under `simbatch`."""
        from simbatch.sim.metrics import summary_of

        summary = summary_of(self.record, self.facts)
        return {**summary, "simbatch": plain(summary["simbatch"])}

    @cached_property
    def requests(self) -> RequestTable:
        """One entry per request: `requests["ttft_s"]` is a numpy array, `requests.to_pandas()` a DataFrame."""
        return RequestTable(self.record)


@dataclass(frozen=True)
class Runs:
    """`summaries` in the order of the seeds; `is_resampled`: the runs are of one trace, drawn anew."""

    summaries: Sequence[Summary]
    is_resampled: bool = False

    def values(self, metric: Metric) -> list[float | None]:
        """The figure of each run; a claim about the steady state is one about all of them, or none."""
        if metric.is_steady and self.refusal is not None:
            return [None] * len(self.summaries)
        return [metric.of(summary) for summary in self.summaries]

    def mean(self, metric: Metric) -> float | None:
        """The mean over the runs that have the figure."""
        known = [value for value in self.values(metric) if value is not None]
        return sum(known) / len(known) if known else None

    @cached_property
    def means(self) -> Means:
        """The mean of every figure that can be searched for, by its key; None where one of the runs has none."""
        found = {key: [metric.of(each) for each in self.summaries] for key, metric in searchable().items()}
        return {key: None if None in values else fmean(v or 0.0 for v in values) for key, values in found.items()}

    @cached_property
    def each(self) -> list[Runs]:
        """Every run by itself."""
        return [Runs([summary]) for summary in self.summaries]

    def interval(self, metric: Metric, confidence: float = CONFIDENCE) -> Interval | None:
        """Of that mean, within what the figure can be; None of fewer than two runs."""
        known = [value for value in self.values(metric) if value is not None]
        if len(known) < 2:
            return None
        return possible(mean_interval(known, confidence, is_resampled=self.is_resampled), metric.key)

    @cached_property
    def refusal(self) -> str | None:
        """Why nothing is said of the steady state; overload before all else."""
        reasons = [reason for summary in self.summaries if (reason := refusal_of(summary)) is not None]
        return OVERLOADED if OVERLOADED in reasons else next(iter(reasons), None)

    @property
    def num_refused(self) -> int:
        """Runs that say nothing of the steady state."""
        return sum(refusal_of(summary) is not None for summary in self.summaries)

    @property
    def num_overloaded(self) -> int:
        """Runs in which the queue kept growing."""
        return sum(refusal_of(summary) == OVERLOADED for summary in self.summaries)

    @property
    def rejected_share(self) -> float:
        """Of the requests of all runs: whose latencies are not among the figures."""
        counts = [summary["simbatch"]["requests"] for summary in self.summaries]
        rejected, total = (sum(int(count[key]) for count in counts) for key in ("rejected", "total"))
        return rejected / max(1, total)


# of a class or a tenant too, whose names stand before them
_UP_TO_1 = tuple(key.removeprefix("simbatch.") for key, metric in REGISTRY.items() if metric.kind in ("share", "index"))
_UP_TO_1 += ("share_of_steps_in_range",)


def bounds_of(key: str) -> tuple[float, float]:
    """Shares and Jain's index lie between 0 and 1, all other figures are times, counts or rates: not below 0."""
    is_share = key.removeprefix("simbatch.") in _UP_TO_1 or key.endswith(tuple(f".{name}" for name in _UP_TO_1))
    return 0.0, 1.0 if is_share else float("inf")


def possible(interval: Interval, key: str) -> Interval:
    """The part of an interval of a mean in which the figure can be; the truth is there anyway."""
    return interval.within(*bounds_of(key))


def possible_difference(interval: Interval, key: str) -> Interval:
    """The part of an interval in which the difference of two means of this figure can be."""
    low, high = bounds_of(key)
    return interval.within(low - high, high - low)


def refusal_of(summary: Summary) -> str | None:
    """Why a run says nothing of the steady state."""
    reason: str | None = value_at(summary, f"{STEADY}.refused")
    return reason


def marked(warning: str, unread: Collection[str], whose: str = "") -> str:
    """`WARNING: ...`; a NOTE where it only says how a trace was read."""
    return f"{'NOTE' if warning in unread else 'WARNING'}: {whose}{warning}"


def unread_in(summaries: Iterable[Summary]) -> list[str]:
    """How the runs' traces were read and what in them was not: each sentence once."""
    return [*dict.fromkeys(line for summary in summaries for line in summary["simbatch"].get("unread", ()))]


# what a candidate is, not what came of it; and the mean KV use, which is counted by spans: they may be cut differently
_LEFT_OUT = (
    *("policy", "predicted_by", "engine", "engine_defaults", "profile"),
    *("warnings", "unread", "kv_cache", "cluster"),
)


def same_as(summaries: Mapping[str, Sequence[Summary]]) -> dict[str, str]:
    """Of each candidate all of whose runs have the very figures of an earlier one: the name of that one."""
    found: dict[str, str] = {}
    first: list[tuple[str, list[Summary]]] = []
    for label, runs in summaries.items():
        figures = [_figures(run) for run in runs]
        other = next((name for name, known in first if known == figures), None)
        if other is None:
            first.append((label, figures))
        else:
            found[label] = other
    return found


def _figures(summary: Summary) -> Summary:
    ours = {key: value for key, value in summary["simbatch"].items() if key not in _LEFT_OUT}
    return {**summary, "simbatch": ours}


NO_DIFFERENCE = "no difference shown"
NOT_MEASURED = "not measured"
SHORT = {NO_DIFFERENCE: "not told apart"}  # where there is little room
MARKS = {"better": "+", "worse": "-", "higher": ">", "lower": "<", NO_DIFFERENCE: "="}  # where there is none
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
        """Difference, its interval, the interval in percent, the verdict's mark; `short`: without percent, in words."""
        if self.interval is None:
            cells: tuple[str, ...] = ("-", "-", "-")
        elif not self.interval.low < self.interval.high and not self.interval.estimate:
            cells = ("0", "equal in every run", "-")
        else:
            span = f"{self._signed(self.interval.low)} to {self._signed(self.interval.high)}"
            relative = "-" if self.ratio is None else f"{_percent(self.ratio.low)} to {_percent(self.ratio.high)}"
            cells = (self._signed(self.interval.estimate), span, relative)
        if short:
            return *cells[:2], SHORT.get(self.verdict, self.verdict)
        return *cells[:3], MARKS.get(self.verdict, "")

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
