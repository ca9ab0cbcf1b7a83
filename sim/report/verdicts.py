"""What a comparison says in sentences: who is best, what differs, who is the same as whom, who runs on what instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from simbatch.sim.metrics.metric import Metric
from simbatch.sim.metrics.registry import shown
from simbatch.sim.report.console import in_place_of
from simbatch.sim.results.runs import Difference, MetricRow

NUM_HEADLINES = 8
CLEAR = ("better", "worse")
T = TypeVar("T")


def headline(rows: Sequence[T], metric_of: Callable[[T], Metric]) -> Iterator[T]:
    """Those of the figures that a comparison is read for, in their order; the tail of the first class among them."""
    by_key = {metric_of(row).key: row for row in rows}
    tails = [key for key in by_key if key.startswith("simbatch.classes.") and key.endswith(".p99_ttft_ms")][:1]
    usual = [metric.key for metric in shown("compare", lambda metric: metric.key in by_key)]
    yield from (by_key[key] for key in [*usual[: NUM_HEADLINES - len(tails)], *tails])


def best_in(rows: Sequence[MetricRow], labels: Sequence[str]) -> Iterator[str]:
    """`vllm is best in 5 of 8, fixed in 2.`, for those that have a star."""
    judged = [row.best for row in rows if row.metric.better]
    counts = {label: sum(label in best for best in judged) for label in labels}
    best = sorted(filter(counts.__getitem__, labels), key=lambda label: -counts[label])
    if not best:
        yield f"All are alike in these {len(judged)}."
        return
    rest = "".join(f", {label} in {counts[label]}" for label in best[1:])
    yield f"{best[0]} is best in {counts[best[0]]} of {len(judged)}{rest}."


def said(differences: Sequence[Difference], other: str, base: str) -> Iterator[str]:
    """What is better and what is worse, `adaptive against vllm: better in P99 TPOT; worse in P99 TTFT`."""
    by_verdict: dict[str, list[str]] = {}
    for difference in differences:
        by_verdict.setdefault(difference.verdict, []).append(difference.metric.title)
    told = [f"{verdict} in {', '.join(named)}" for verdict, named in sorted(by_verdict.items()) if verdict in CLEAR]
    yield f"{other} against {base}: {'; '.join(told) or 'no difference is shown in any of these'}."


def left_out(num_rows: int) -> Iterator[str]:
    """Where the rows are that are not shown."""
    if num_rows > 0:
        yield f"{num_rows} more rows with --all, and in compare.csv."


def same_notes(same: Mapping[str, str], num_runs: int) -> Iterator[str]:
    """A sentence for each candidate that others are the same as."""
    where = "every run here" if num_runs > 1 else "this run"
    for other in dict.fromkeys(same.values()):
        *names, last = (label for label in same if same[label] == other)
        who = f"{', '.join(names)} and {last} are" if names else f"{last} is"
        yield f"NOTE: {who} the same as {other} in {where}: every request fared alike."


def taken_notes(summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Whose profile is another than it asked for; a summary of each will do."""
    for label, summary in summaries.items():
        profile = summary["simbatch"]["profile"]
        if instead := in_place_of(profile, summary["simbatch"]["engine"]):
            yield f"NOTE: {label} runs on profile {profile['name']}{instead}."
