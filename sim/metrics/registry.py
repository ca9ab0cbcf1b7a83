"""Every figure that a run is judged by, once: its key, label, unit, which end is better, and how it is computed.

Summaries, console, comparisons, sweeps, searches, rankings, validations and pictures all take it from here: a new
figure is an entry of `REGISTRY`. Its key begins with `simbatch.`, unless `vllm bench serve` has it. With `compute` it
gets into summary.json under its key (dots between the levels), with `is_compared` it is a row of every comparison, with
`is_reported` a row of the console's block on the engine; one that has a better end can be searched for and limited.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from simbatch.sim.metrics.latencies import Number
from simbatch.sim.metrics.run_figures import RunFigures
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.metrics.steady import FIGURES
from simbatch.sim.text import number, percent, plus_minus, short_name

LOWER, HIGHER = "lower", "higher"
STEADY = "simbatch.steady_state"
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


@dataclass(frozen=True)
class Metric:
    """One figure of a summary; `kind` is number, share, count, ms, or index (of fairness, 0 to 1).

    `better` is None where neither end is; `goal` is the end that a search makes for, which may be there all the same.
    `heading` is the label where a column is narrow.
    """

    key: str  # as in summary.json, dots between the levels
    label: str
    better: str | None = None
    kind: str = "number"
    compute: Callable[[RunFigures], Number] | None = None
    is_compared: bool = False
    is_reported: bool = False
    heading: str = ""
    goal: str | None = None
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
    def scale(self) -> int:
        """Times which it is drawn: shares as percents."""
        return 100 if self.is_share else 1

    @property
    def unit(self) -> str:
        """What an axis of it is called, for `scale` times the figure."""
        return f"{self.title} (%)" if self.is_share else self.label

    def text(self, value: float | None, decimals: int = 0) -> str:
        """As people read it, with so many decimals at least: `97.35 %`, `1,204.5`, `-` for what was not measured."""
        return percent(value) if self.is_share else number(value, max(self.decimals, decimals))

    def text_with(self, mean: float | None, low: float | None, high: float | None, decimals: int = 0) -> str:
        """A mean and its interval, `215.1 ± 9.8`; the mean alone where there is none."""
        text = self.text(mean, decimals)
        if mean is None or low is None or high is None:
            return text
        return f"{text} {plus_minus(mean, low, high, max(self.decimals, decimals), self.scale)}"

    def named(self) -> dict[str, str | None]:
        """What compare.json says of it."""
        return {"key": self.key, "label": self.label, "better": self.better}

    @property
    def title(self) -> str:
        """For a picture, whose axis has the unit of a time."""
        return self.label.removesuffix(" (ms)")

    @property
    def aim(self) -> str | None:
        """Which end a search makes for; None where the figure cannot be searched for."""
        return self.goal or self.better

    @property
    def is_steady(self) -> bool:
        """A claim about the steady state rather than a figure of the run."""
        return self.key.startswith(STEADY)

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The figure in a summary; None when it has none."""
        value = value_at(summary, *(self.path or (self.key,)))
        return None if value is None else float(value) if isinstance(value, float) else int(value)


def value_at(summary: Mapping[str, Any], *path: str) -> Any:
    """What stands in a summary below these names; of a single one the dots are levels. None where there is nothing."""
    value: Any = summary
    for part in path if len(path) > 1 else path[0].split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


compared = partial(Metric, is_compared=True)
Spread = Callable[[RunFigures], Mapping[str, Number] | None]  # statistics of a time


def _statistics(key: str, label: str, of: Spread, heading: str = "", *, is_compared: bool = True) -> Iterator[Metric]:
    """Mean, median, ... of a time, each where `key`, `label` and `heading` have {}; mean and P99 are compared."""
    for name, word in STATISTIC_LABELS.items():

        def compute(run: RunFigures, name: str = name) -> Number:
            found = of(run)
            return None if found is None else found[name]

        texts = label.format(word), heading.format(word)
        is_row = is_compared and name in ("mean", "p99")
        yield Metric(key.format(name), texts[0], LOWER, "ms", compute, is_compared=is_row, heading=texts[1])


def _throughputs() -> Iterator[Metric]:
    run = RunFigures
    yield compared("completed", "Successful requests", HIGHER, "count", run.num_completed)
    yield Metric("failed", "Failed requests", LOWER, "count", run.num_failed)
    yield compared("duration", "Duration (s)", None, "number", run.duration_s, goal=LOWER)
    yield Metric("total_input_tokens", "Total input tokens", None, "count", run.num_input_tokens)
    yield Metric("total_output_tokens", "Total generated tokens", None, "count", run.num_output_tokens)
    rate = partial(compared, better=HIGHER)
    yield rate("request_throughput", "Request throughput (req/s)", compute=run.request_throughput, heading="req/s")
    yield rate(GOODPUT, "Request goodput (req/s)", compute=run.request_goodput, heading="goodput req/s")
    for name in ("all", "ttft", "tpot", "e2el"):  # computed with the classes' and the tenants'
        label = "Requests within SLO" if name == "all" else f"Requests within SLO, {name.upper()}"
        yield Metric(f"{SLO_SHARE}{name}", label, HIGHER, "share", is_compared=name == "all", heading="within SLO")
    yield rate(THROUGHPUT, "Output throughput (tok/s)", compute=run.output_throughput, heading="tok/s")
    total, peak = "Total token throughput (tok/s)", "Peak output token throughput (tok/s)"
    yield Metric("total_token_throughput", total, HIGHER, "number", run.total_token_throughput)
    yield Metric("max_output_tokens_per_s", peak, HIGHER, "number", run.max_output_tokens_per_s)
    yield Metric("max_concurrent_requests", "Peak concurrent requests", None, "count", run.max_concurrent_requests)


def _latencies() -> Iterator[Metric]:
    for name in LATENCIES:
        text = f"{{}} {name.upper()}"
        yield from _statistics(f"{{}}_{name}_ms", f"{text} (ms)", lambda r, n=name: r.latencies[n], f"{text} ms")  # type: ignore[misc]
    yield compared(NORMALISED, "Norm. latency (ms/token)", LOWER, "ms", RunFigures.mean_normalised_latency_ms)


def _sessions() -> Iterator[Metric]:
    """Of runs whose requests are turns of sessions; None in others."""
    of, again = SessionFigures, "Tokens of conversations computed again"
    yield Metric(f"{SESSIONS}num_sessions", "Sessions", None, "count", _each(of.num_sessions))
    yield Metric(f"{SESSIONS}completed", "Completed sessions", HIGHER, "count", _each(of.num_completed))
    yield Metric(f"{SESSIONS}ended_early", "Sessions ended early", LOWER, "count", _each(of.num_ended_early))
    yield Metric(f"{SESSIONS}num_turns_not_sent", "Turns not sent", LOWER, "count", _each(of.num_not_sent))
    yield Metric(f"{SESSIONS}max_concurrent", "Sessions at once, max", None, "count", _each(of.max_concurrent))
    throughput = "Session throughput (sessions/s)"
    yield compared(f"{SESSIONS}throughput", throughput, HIGHER, "number", _each(of.throughput))
    yield compared(SESSION_GOODPUT, "Session goodput (sessions/s)", HIGHER, "number", RunFigures.session_goodput)
    for name in ("all", "duration", "without_thinking"):  # computed together
        label = "Sessions within SLO" + ("" if name == "all" else f", {name.replace('_', ' ')}")
        yield Metric(f"{SESSION_SLO}{name}", label, HIGHER, "share", is_compared=name == "all")
    for name, key, label in (
        ("duration", "duration", "session"),
        ("without_thinking", "without_thinking", "session, thinking excluded"),
        ("first", "first_ttft", "TTFT, first turns"),
        ("later", "later_ttft", "TTFT, later turns"),
    ):
        spread: Spread = lambda r, n=name: r.sessions and r.sessions.latencies[n]  # type: ignore[misc]  # noqa: E731
        yield from _statistics(f"{SESSIONS}{{}}_{key}_ms", f"{{}} {label} (ms)", spread)
    cached, share = _each(of.later_cached_tokens_share), _each(of.recomputed_tokens_share)
    of_cache = "Prompt tokens from the cache, later turns"
    yield compared(f"{SESSIONS}later_cached_tokens_share", of_cache, HIGHER, "share", cached)
    yield Metric(f"{SESSIONS}num_recomputed_tokens", again, None, "count", _each(of.num_recomputed_tokens))
    yield compared(f"{SESSIONS}recomputed_tokens_share", again, LOWER, "share", share)


def _each(compute: Callable[[SessionFigures], Number]) -> Callable[[RunFigures], Number]:
    return lambda run: None if run.sessions is None else compute(run.sessions)


def _fairness() -> Iterator[Metric]:
    """Computed with the tenants' blocks."""
    fairness = "simbatch.fairness."
    yield compared(TENANTS, "Fairness, tenants (Jain)", HIGHER, "index")
    yield compared(f"{fairness}least_fair_share_ratio", "Fair share, least served", HIGHER)
    yield compared(f"{fairness}requests", "Fairness, requests (Jain)", HIGHER, "index")
    yield compared("simbatch.longest_wait.wait_ms", "Longest time in queue (ms)", LOWER, "ms")


def _engine() -> Iterator[Metric]:
    run, ours = RunFigures, "simbatch."
    queue, batch, kv = f"{ours}queue.", f"{ours}batch_size.", f"{ours}kv_cache."
    waiting, computed_again = "Waiting requests, {}".format, "Tokens computed again"
    yield compared(f"{queue}mean_waiting", waiting("mean"), None, "number", run.mean_waiting, goal=LOWER)
    yield compared(f"{queue}max_waiting", waiting("max"), None, "count", run.max_waiting, goal=LOWER)
    yield from _statistics(f"{queue}{{}}_wait_ms", "{} time in queue (ms)", lambda run: run.waits, is_compared=False)
    yield compared(f"{batch}mean", "Batch size, mean", None, "number", run.mean_batch, heading="batch")
    yield compared(f"{batch}max", "Batch size, max", None, "count", run.max_batch)
    yield Metric(f"{kv}mean_use", "KV cache use, mean", None, "share", run.mean_kv_use, goal=LOWER)
    yield compared(f"{kv}peak_use", "KV cache use, peak", None, "share", run.peak_kv_use, goal=LOWER)
    preempted, again = attrgetter("record.num_preemptions"), attrgetter("record.num_recomputed_tokens")
    yield compared(PREEMPTIONS, "Preemptions", LOWER, "count", preempted, heading="preemptions")
    yield Metric(f"{ours}num_recomputed_tokens", computed_again, None, "count", again)
    yield compared(f"{ours}recomputed_tokens_share", computed_again, LOWER, "share", run.recomputed_tokens_share)
    yield compared(f"{ours}cluster.imbalance.share_of_load", "Load, most over mean", LOWER)
    in_flight = f"{ours}mean_concurrent_requests", "Requests in flight, mean"
    yield Metric(*in_flight, None, "number", run.mean_concurrent_requests)
    yield Metric(
        f"{ours}num_steps", "Steps", None, "count", attrgetter("record.num_steps"), is_reported=True, heading="steps"
    )
    yield Metric(f"{ours}device_busy_share", "Device worked", None, "share", run.device_busy_share)
    cached = f"{ours}cached_tokens_share", "Prompt tokens from the prefix cache"
    yield compared(*cached, HIGHER, "share", run.cached_tokens_share)


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
    for key in FIGURES:
        statistic, name, _ = key.split("_")
        label = f"{STATISTIC_LABELS[statistic]} {name.upper()}, steady (ms)"
        yield Metric(f"{STEADY}.{key}.value", label, LOWER, "ms")
