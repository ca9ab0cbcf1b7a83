"""Every figure that a run is judged by, once: its key, label, unit, which end is better, and how it is computed.

Summaries, console, comparisons, sweeps, searches, rankings, validations and pictures all take it from here: a new
figure is an entry of `REGISTRY`. Its key begins with `simbatch.`, unless `vllm bench serve` has it. With `compute` it
gets into summary.json under its key (dots between the levels), with `is_compared` it is a row of every comparison, with
`is_reported` a row of the console's block on the engine; one that has a better end can be searched for and limited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.metrics.latencies import STATISTICS, Number
from simbatch.sim.metrics.run_figures import HIGHER, LOWER, STEADY, Metric, RunFigures, value_at
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.statistics import Interval
from simbatch.sim.text import short_name

MAX_COMPARED = 12  # classes, or tenants, that have rows of their own
LATENCIES = ("ttft", "tpot", "itl", "e2el")
SESSIONS = "simbatch.sessions."
STATISTIC_LABELS = {"mean": "Mean", "median": "Median", "std": "Std", "p90": "P90", "p95": "P95", "p99": "P99"}
GOODPUT, THROUGHPUT, SLO_SHARE = "request_goodput", "output_throughput", "simbatch.slo_share."
SESSION_GOODPUT, SESSION_SLO = f"{SESSIONS}goodput", f"{SESSIONS}slo_share."
SESSIONS_WITHIN_SLO = f"{SESSION_SLO}all"
WITHIN_SLO, NORMALISED = f"{SLO_SHARE}all", "simbatch.mean_normalised_latency_ms"
PREEMPTIONS, TENANTS = "simbatch.num_preemptions", "simbatch.fairness.tenants"
ONLY_WITH = {  # what a figure needs to be worth a row
    "simbatch.recomputed_tokens_share": PREEMPTIONS,
    "simbatch.cached_tokens_share": "simbatch.cluster",
}
ALIASES = {"throughput": THROUGHPUT, "goodput": GOODPUT, "slo_share": WITHIN_SLO}  # what people call them
# what a page with room for a few figures shows of them, in this order; what nobody measured is left out
SHOWN: Mapping[str, Sequence[str]] = {
    "compare": (
        *(GOODPUT, WITHIN_SLO, SESSION_GOODPUT, SESSIONS_WITHIN_SLO),
        *(PREEMPTIONS, "p99_ttft_ms", "p99_tpot_ms", THROUGHPUT),
        *(f"{SESSIONS}p99_duration_ms", "p99_e2el_ms", TENANTS, "request_throughput"),
    ),
    "compare.png": (WITHIN_SLO, "request_throughput", THROUGHPUT, "p99_ttft_ms"),
    "loads": ("p99_ttft_ms", NORMALISED, WITHIN_SLO, SESSIONS_WITHIN_SLO, TENANTS, "p99_tpot_ms", THROUGHPUT),
    "rank": (GOODPUT, "p99_ttft_ms", "p99_tpot_ms", TENANTS),
    "recommend": (GOODPUT, WITHIN_SLO, THROUGHPUT, "p99_ttft_ms", "p99_tpot_ms", PREEMPTIONS),
    "sweep": ("request_throughput", GOODPUT, SESSION_GOODPUT, THROUGHPUT, "p99_ttft_ms", "p99_tpot_ms"),
    "sweep.png": ("request_throughput", GOODPUT, THROUGHPUT, "p99_ttft_ms", "p99_tpot_ms"),
    "tune": (THROUGHPUT, GOODPUT, "p99_ttft_ms", "p99_tpot_ms"),
    "upgrade": (
        *(PREEMPTIONS, "simbatch.num_steps", "simbatch.batch_size.mean", THROUGHPUT),
        *("mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"),
    ),
}


def _throughputs() -> Iterator[Metric]:
    yield Metric("completed", "Successful requests", HIGHER, "count", RunFigures.num_completed, is_compared=True)
    yield Metric("failed", "Failed requests", LOWER, "count", RunFigures.num_failed)
    yield Metric("duration", "Duration (s)", None, "number", RunFigures.duration_s, is_compared=True, goal=LOWER)
    yield Metric("total_input_tokens", "Total input tokens", None, "count", RunFigures.num_input_tokens)
    yield Metric("total_output_tokens", "Total generated tokens", None, "count", RunFigures.num_output_tokens)
    yield _rate("request_throughput", "Request throughput (req/s)", RunFigures.request_throughput, "req/s")
    yield _rate(GOODPUT, "Request goodput (req/s)", RunFigures.request_goodput, "goodput req/s")
    for name in ("all", "ttft", "tpot", "e2el"):  # computed with the classes' and the tenants'
        label = "Requests within SLO" if name == "all" else f"Requests within SLO, {name.upper()}"
        yield Metric(f"{SLO_SHARE}{name}", label, HIGHER, "share", is_compared=name == "all", heading="within SLO")
    yield _rate(THROUGHPUT, "Output throughput (tok/s)", RunFigures.output_throughput, "tok/s")
    total = ("total_token_throughput", "Total token throughput (tok/s)")
    yield Metric(*total, HIGHER, "number", RunFigures.total_token_throughput)
    peak = ("max_output_tokens_per_s", "Peak output token throughput (tok/s)")
    yield Metric(*peak, HIGHER, "number", RunFigures.max_output_tokens_per_s)
    most = ("max_concurrent_requests", "Peak concurrent requests")
    yield Metric(*most, None, "count", RunFigures.max_concurrent_requests)


def _rate(key: str, label: str, compute: Callable[[RunFigures], Number], heading: str) -> Metric:
    return Metric(key, label, HIGHER, "number", compute, is_compared=True, heading=heading)


def _latencies() -> Iterator[Metric]:
    for name in LATENCIES:
        for statistic in STATISTICS:
            yield Metric(
                f"{statistic}_{name}_ms",
                f"{STATISTIC_LABELS[statistic]} {name.upper()} (ms)",
                LOWER,
                "ms",
                lambda run, name=name, statistic=statistic: run.latencies(name)[statistic],  # type: ignore[misc]
                is_compared=statistic in ("mean", "p99"),
                heading=f"{STATISTIC_LABELS[statistic]} {name.upper()} ms",
            )
    yield Metric(
        NORMALISED, "Norm. latency (ms/token)", LOWER, "ms", RunFigures.mean_normalised_latency_ms, is_compared=True
    )


def _sessions() -> Iterator[Metric]:
    """Of runs whose requests are turns of sessions; None in others."""
    yield _of_sessions("num_sessions", "Sessions", None, "count", SessionFigures.num_sessions)
    yield _of_sessions("completed", "Completed sessions", HIGHER, "count", SessionFigures.num_completed)
    yield _of_sessions("ended_early", "Sessions ended early", LOWER, "count", SessionFigures.num_ended_early)
    yield _of_sessions("num_turns_not_sent", "Turns not sent", LOWER, "count", SessionFigures.num_not_sent)
    yield _of_sessions("max_concurrent", "Sessions at once, max", None, "count", SessionFigures.max_concurrent)
    throughput = ("throughput", "Session throughput (sessions/s)")
    yield _of_sessions(*throughput, HIGHER, "number", SessionFigures.throughput, is_compared=True)
    within = "Sessions within SLO"
    yield Metric(
        SESSION_GOODPUT, "Session goodput (sessions/s)", HIGHER, "number", RunFigures.session_goodput, is_compared=True
    )
    for name in ("all", "duration", "without_thinking"):  # computed together
        label = within if name == "all" else f"{within}, {name.replace('_', ' ')}"
        yield Metric(f"{SESSION_SLO}{name}", label, HIGHER, "share", is_compared=name == "all")
    for name, label in (("duration", "session"), ("without_thinking", "session, thinking excluded")):
        for statistic in STATISTICS:
            yield _of_sessions(
                f"{statistic}_{name}_ms",
                f"{STATISTIC_LABELS[statistic]} {label} (ms)",
                LOWER,
                "ms",
                lambda sessions, name=name, statistic=statistic: sessions.latencies(name)[statistic],  # type: ignore[misc]
                is_compared=statistic in ("mean", "p99"),
            )
    for is_first, which in ((True, "first"), (False, "later")):
        for statistic in STATISTICS:
            yield _of_sessions(
                f"{statistic}_{which}_ttft_ms",
                f"{STATISTIC_LABELS[statistic]} TTFT, {which} turns (ms)",
                LOWER,
                "ms",
                lambda sessions, is_first=is_first, statistic=statistic: sessions.ttft(statistic, is_first=is_first),  # type: ignore[misc]
                is_compared=statistic in ("mean", "p99"),
            )
    cached = ("later_cached_tokens_share", "Prompt tokens from the cache, later turns")
    yield _of_sessions(*cached, HIGHER, "share", SessionFigures.later_cached_tokens_share, is_compared=True)
    again = ("num_recomputed_tokens", "Tokens of conversations computed again")
    yield _of_sessions(*again, None, "count", SessionFigures.num_recomputed_tokens)
    share = ("recomputed_tokens_share", "Tokens of conversations computed again")
    yield _of_sessions(*share, LOWER, "share", SessionFigures.recomputed_tokens_share, is_compared=True)


def _of_sessions(
    name: str,
    label: str,
    better: str | None,
    kind: str,
    compute: Callable[[SessionFigures], Number],
    *,
    is_compared: bool = False,
) -> Metric:
    def computed(run: RunFigures) -> Number:
        return None if run.sessions is None else compute(run.sessions)

    return Metric(f"{SESSIONS}{name}", label, better, kind, computed, is_compared=is_compared)


def _fairness() -> Iterator[Metric]:
    """Computed with the tenants' blocks."""
    fairness = "simbatch.fairness."
    yield Metric(TENANTS, "Fairness, tenants (Jain)", HIGHER, "index", is_compared=True)
    yield Metric(f"{fairness}least_fair_share_ratio", "Fair share, least served", HIGHER, is_compared=True)
    yield Metric(f"{fairness}requests", "Fairness, requests (Jain)", HIGHER, "index", is_compared=True)
    yield Metric("simbatch.longest_wait.wait_ms", "Longest time in queue (ms)", LOWER, "ms", is_compared=True)


def _engine() -> Iterator[Metric]:
    waiting = ("simbatch.queue.mean_waiting", "Waiting requests, mean")
    yield Metric(*waiting, None, "number", RunFigures.mean_waiting, is_compared=True, goal=LOWER)
    waiting = ("simbatch.queue.max_waiting", "Waiting requests, max")
    yield Metric(*waiting, None, "count", RunFigures.max_waiting, is_compared=True, goal=LOWER)
    for statistic in STATISTICS:
        yield Metric(
            f"simbatch.queue.{statistic}_wait_ms",
            f"{STATISTIC_LABELS[statistic]} time in queue (ms)",
            LOWER,
            "ms",
            lambda run, statistic=statistic: run.waits()[statistic],  # type: ignore[misc]
        )
    yield Metric(
        "simbatch.batch_size.mean",
        "Batch size, mean",
        None,
        "number",
        RunFigures.mean_batch,
        is_compared=True,
        heading="batch",
    )
    yield Metric("simbatch.batch_size.max", "Batch size, max", None, "count", RunFigures.max_batch, is_compared=True)
    use = ("simbatch.kv_cache.mean_use", "KV cache use, mean")
    yield Metric(*use, None, "share", RunFigures.mean_kv_use, goal=LOWER)
    use = ("simbatch.kv_cache.peak_use", "KV cache use, peak")
    yield Metric(*use, None, "share", RunFigures.peak_kv_use, is_compared=True, goal=LOWER)
    preempted = (PREEMPTIONS, "Preemptions")
    yield Metric(*preempted, LOWER, "count", RunFigures.num_preemptions, is_compared=True, heading="preemptions")
    again = ("simbatch.num_recomputed_tokens", "Tokens computed again")
    yield Metric(*again, None, "count", RunFigures.num_recomputed_tokens)
    share = ("simbatch.recomputed_tokens_share", "Tokens computed again")
    yield Metric(*share, LOWER, "share", RunFigures.recomputed_tokens_share, is_compared=True)
    yield Metric("simbatch.cluster.imbalance.share_of_load", "Load, most over mean", LOWER, is_compared=True)
    in_flight = ("simbatch.mean_concurrent_requests", "Requests in flight, mean")
    yield Metric(*in_flight, None, "number", RunFigures.mean_concurrent_requests)
    yield Metric("simbatch.num_steps", "Steps", None, "count", RunFigures.num_steps, is_reported=True, heading="steps")
    yield Metric("simbatch.device_busy_share", "Device worked", None, "share", RunFigures.device_busy_share)
    cached = ("simbatch.cached_tokens_share", "Prompt tokens from the prefix cache")
    yield Metric(*cached, HIGHER, "share", RunFigures.cached_tokens_share, is_compared=True)


REGISTRY: Mapping[str, Metric] = {
    metric.key: metric for metric in (*_throughputs(), *_latencies(), *_sessions(), *_fairness(), *_engine())
}


def shown(page: str, has: Callable[[Metric], bool] = lambda _: True) -> list[Metric]:
    """The figures of a page of `SHOWN` for which `has` says that somebody measured them."""
    return [REGISTRY[key] for key in SHOWN[page] if has(REGISTRY[key])]


def searchable() -> dict[str, Metric]:
    """What a search can make large or small, or be limited by, by key."""
    return {key: metric for key, metric in REGISTRY.items() if metric.aim is not None}


def metrics_of(summaries: Collection[Mapping[str, Any]]) -> Iterator[Metric]:
    """Every metric that runs with these summaries are compared by, those of their classes and tenants among them."""
    for key, metric in REGISTRY.items():
        if key == TENANTS:
            yield from _group_metrics(summaries)
        needed = f"{SESSIONS}num_sessions" if key.startswith(SESSIONS) else ONLY_WITH.get(key)
        if metric.is_compared and (needed is None or any(value_at(s, needed) for s in summaries)):
            yield metric


def _group_metrics(summaries: Collection[Mapping[str, Any]]) -> Iterator[Metric]:
    """What a class or a tenant is compared by."""
    for kind in ("classes", "tenants"):
        names = {name for summary in summaries for name in summary["simbatch"][kind]}
        for name in sorted(names) if 1 < len(names) <= MAX_COMPARED else ():
            for keys, label, better, figure in (
                (("p99_ttft_ms",), "P99 TTFT, {} (ms)", LOWER, "ms"),
                (("slo_share", "all"), "Within SLO, {}", HIGHER, "share"),
            ):
                path = ("simbatch", kind, name, *keys)
                yield Metric(".".join(path), label.format(short_name(name)), better, figure, path=path)


def steady_metrics() -> Iterator[Metric]:
    """The claims about the steady state, which need replications to be compared."""
    for name in ("ttft", "tpot", "e2el"):
        for statistic in ("mean", "p99"):
            label = f"{STATISTIC_LABELS[statistic]} {name.upper()}, steady (ms)"
            yield Metric(f"{STEADY}.{statistic}_{name}_ms.value", label, LOWER, "ms")


# of a class or a tenant too, whose names stand before them
_UP_TO_1 = tuple(key.removeprefix("simbatch.") for key, metric in REGISTRY.items() if metric.bounds[1] == 1)
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
