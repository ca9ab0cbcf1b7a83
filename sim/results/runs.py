"""Runs and what they say: one that was measured, and those of one candidate at one load, a summary per seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from simbatch.sim.engine.record import RunRecord
from simbatch.sim.files import plain
from simbatch.sim.metrics.columns import RequestTable
from simbatch.sim.metrics.facts import RunFacts
from simbatch.sim.metrics.metric import STEADY, Metric, value_at
from simbatch.sim.metrics.registry import possible, searchable
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.metrics.summary import summary_of
from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, mean_interval

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
        return {key: _mean_of_all([metric.of(each) for each in self.summaries]) for key, metric in searchable().items()}

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


def _mean_of_all(values: Values) -> float | None:
    return None if None in values else fmean(value or 0.0 for value in values)


def refusal_of(summary: Summary) -> str | None:
    """Why a run says nothing of the steady state."""
    reason: str | None = value_at(summary, f"{STEADY}.refused")
    return reason


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


_NO_METRICS = (
    "scenario",
    "seed",
    "policy",
    "engine",
    "engine_defaults",
    "profile",
    "slo",
    "rejected_reasons",
    "warnings",
)


def figures_of(summary: Summary) -> dict[str, float | None]:
    """Every figure of a summary, by the names of docs/reference.md: `p99_ttft_ms`, `kv_cache.mean_use`."""
    ours = {key: value for key, value in summary["simbatch"].items() if key not in _NO_METRICS}
    share = summary["simbatch"]["profile"]["share_of_steps_in_range"]
    standard = {key: value for key, value in summary.items() if key != "simbatch"}
    return dict(_flat(standard | ours)) | {"profile.share_of_steps_in_range": share}


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float | None]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        elif key != "refused" and (value is None or isinstance(value, (int, float))):
            yield f"{above}{key}", value
