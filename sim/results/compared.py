"""What candidates are compared by: the figures of their summaries, and which end of each is better."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simbatch.sim.results import console

LOWER, HIGHER = "lower", "higher"
STEADY = "simbatch.steady_state"
MAX_COMPARED = 12  # classes, or tenants, that have rows of their own


@dataclass(frozen=True)
class Metric:
    """One figure of a summary."""

    key: str  # as in summary.json, dots between the levels
    label: str
    better: str | None = None
    kind: str = "number"  # or share, count, ms, index
    path: tuple[str, ...] = ()  # the levels one by one, where names in them may have dots

    @property
    def decimals(self) -> int:
        """Shown behind the point."""
        return {"count": 0, "ms": 1, "index": 3}.get(self.kind, 2)

    @property
    def is_share(self) -> bool:
        """Shown in percent."""
        return self.kind == "share"

    @property
    def is_steady(self) -> bool:
        """A claim about the steady state rather than a figure of the run."""
        return self.key.startswith(STEADY)

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The figure in a summary; None when it has none."""
        value: Any = summary
        for part in self.path or self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return None if value is None else float(value) if isinstance(value, float) else int(value)


def metrics_of(summaries: Collection[Mapping[str, Any]]) -> Iterator[Metric]:
    """Every metric that runs with these summaries are compared by."""
    yield Metric("completed", "Successful requests", HIGHER, "count")
    yield Metric("duration", "Duration (s)")
    yield Metric("request_throughput", "Request throughput (req/s)", HIGHER)
    yield Metric("request_goodput", "Request goodput (req/s)", HIGHER)
    yield Metric("simbatch.slo_share.all", "Requests within SLO", HIGHER, "share")
    yield Metric("output_throughput", "Output throughput (tok/s)", HIGHER)
    for name in console.LATENCY_HEADERS:
        for statistic in ("mean", "p99"):
            label = f"{console.STATISTIC_LABELS[statistic]} {name.upper()} (ms)"
            yield Metric(f"{statistic}_{name}_ms", label, LOWER, "ms")
    yield Metric("simbatch.mean_normalised_latency_ms", "Norm. latency (ms/token)", LOWER, "ms")
    for kind in ("classes", "tenants"):
        names = {name for summary in summaries for name in summary["simbatch"][kind]}
        for name in sorted(names) if 1 < len(names) <= MAX_COMPARED else ():
            yield from _group_metrics(kind, name)
    yield Metric("simbatch.fairness.tenants", "Fairness, tenants (Jain)", HIGHER, "index")
    yield Metric("simbatch.fairness.least_fair_share_ratio", "Fair share, least served", HIGHER)
    yield Metric("simbatch.fairness.requests", "Fairness, requests (Jain)", HIGHER, "index")
    yield Metric("simbatch.longest_wait.wait_ms", "Longest time in queue (ms)", LOWER, "ms")
    yield Metric("simbatch.queue.mean_waiting", "Waiting requests, mean")
    yield Metric("simbatch.queue.max_waiting", "Waiting requests, max", None, "count")
    yield Metric("simbatch.batch_size.mean", "Batch size, mean")
    yield Metric("simbatch.batch_size.max", "Batch size, max", None, "count")
    yield Metric("simbatch.kv_cache.peak_use", "KV cache use, peak", None, "share")
    if any(summary["simbatch"].get("cluster") for summary in summaries):
        yield Metric("simbatch.cached_tokens_share", "Tokens from the prefix cache", HIGHER, "share")
        yield Metric("simbatch.cluster.imbalance.share_of_load", "Load, most over mean", LOWER)
    yield Metric("simbatch.num_preemptions", "Preemptions", LOWER, "count")
    if any(summary["simbatch"]["num_preemptions"] for summary in summaries):
        yield Metric("simbatch.recomputed_tokens_share", "Tokens computed again", LOWER, "share")


def _group_metrics(kind: str, name: str) -> Iterator[Metric]:
    """What a class or a tenant is compared by."""
    for keys, label, better, figure in (
        (("p99_ttft_ms",), "P99 TTFT, {} (ms)", LOWER, "ms"),
        (("slo_share", "all"), "Within SLO, {}", HIGHER, "share"),
    ):
        path = ("simbatch", kind, name, *keys)
        yield Metric(".".join(path), label.format(console.short_name(name)), better, figure, path)


def steady_metrics() -> Iterator[Metric]:
    """The claims about the steady state, which need replications to be compared."""
    for name in ("ttft", "tpot", "e2el"):
        for statistic in ("mean", "p99"):
            label = f"{console.STATISTIC_LABELS[statistic]} {name.upper()}, steady (ms)"
            yield Metric(f"{STEADY}.{statistic}_{name}_ms.value", label, LOWER, "ms")
