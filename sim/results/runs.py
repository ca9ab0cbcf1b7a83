"""The runs of one candidate at one load, a summary per seed: what everything that compares asks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simbatch.sim.results.possible import possible
from simbatch.sim.results.registry import STEADY, Metric, value_at
from simbatch.sim.results.steady import OVERLOADED
from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, mean_interval

Summary = Mapping[str, Any]
Values = Sequence[float | None]  # one a seed, None where the run has no such figure


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


def refusal_of(summary: Summary) -> str | None:
    """Why a run says nothing of the steady state."""
    reason: str | None = value_at(summary, f"{STEADY}.refused")
    return reason
