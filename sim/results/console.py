"""What a run says on the console: the block of `vllm bench serve`, then ours in the same form."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.registry import REGISTRY
from simbatch.sim.results.replica_text import replica_lines, router_line
from simbatch.sim.results.text import number, percent, short_name, table
from simbatch.sim.results.time_share import sentences

WIDTH = 50
TEXT_WIDTH = 100
PRINTED = ("mean", "median", "p90", "p95", "p99")  # of a latency
LATENCY_HEADERS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
GROUP_LATENCIES = tuple((name, statistic) for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99"))
MAX_LISTED = 8  # of a list; of a longer one the first and the last


def report(summary: Mapping[str, Any], facts: RunFacts) -> str:
    """Everything, as plain text; `summary` as in summary.json."""
    ours = summary["simbatch"]
    lines = [
        *benchmark_block(summary, facts),
        *_slo_lines(ours),
        *_class_lines(ours["classes"]),
        *_tenant_lines(ours),
        *_serving_lines(ours),
        *replica_lines(ours.get("cluster")),
        *sentences(ours, facts),
        *_origin_lines(ours),
        *_trace_lines(facts),
        steady_line(ours["steady_state"]),
        *(f"WARNING: {warning}" for warning in ours["warnings"]),
    ]
    return "\n".join(_wrapped(lines))


def benchmark_block(summary: Mapping[str, Any], facts: RunFacts) -> Iterator[str]:
    """The block of `vllm bench serve`, row by row as it prints them."""
    workload = facts.scenario.get("workload", {})
    yield _header(" Serving Benchmark Result ", "=")
    yield _row("Successful requests:", summary["completed"])
    yield _row("Failed requests:", summary["failed"])
    if (limit := workload.get("max_concurrency")) is not None:
        yield _row("Maximum request concurrency:", limit)
    if (rate := workload.get("request_rate")) is not None:
        yield _row("Request rate configured (RPS):", float(rate))
    yield _row("Benchmark duration (s):", summary["duration"])
    yield _row("Total input tokens:", summary["total_input_tokens"])
    yield _row("Total generated tokens:", summary["total_output_tokens"])
    yield _row("Request throughput (req/s):", summary["request_throughput"])
    if facts.slo.limits():
        yield _row("Request goodput (req/s):", summary["request_goodput"])
    yield _row("Output token throughput (tok/s):", summary["output_throughput"])
    yield _row("Peak output token throughput (tok/s):", summary["max_output_tokens_per_s"])
    yield _row("Peak concurrent requests:", float(summary["max_concurrent_requests"]))
    yield _row("Total token throughput (tok/s):", summary["total_token_throughput"])
    for name, header in LATENCY_HEADERS.items():
        yield _header(header, "-")
        for metric in (REGISTRY[f"{statistic}_{name}_ms"] for statistic in PRINTED):
            yield _row(f"{metric.label}:", metric.of(summary))
    yield "=" * WIDTH


def _slo_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    if not (shares := ours["slo_share"]):
        return
    yield _header("Requests within SLO", "-")
    for key, limit in ours["slo"].items():
        name = key.removesuffix("_ms")
        yield _row(f"{name.upper()} <= {limit:g} ms:", percent(shares[name]))
    yield _row("All of them:", percent(shares["all"]))


def _class_lines(classes: Mapping[str, Any]) -> Iterator[str]:
    if not classes:
        return
    yield _header("Classes (latencies in ms)", "-")
    yield from table(("class", *_GROUP_HEADER), [(name, *_group_cells(block)) for name, block in classes.items()])


def _tenant_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    if not ours["tenants"]:
        return
    yield _header("Tenants (latencies in ms)", "-")
    rows = [(short_name(name), *_group_cells(block)) for name, block in ours["tenants"].items()]
    if others := ours["other_tenants"]:
        rows.append((f"{others['num_tenants']:,} others", *_group_cells(others)))
    yield from table(("tenant", *_GROUP_HEADER), rows)
    fairness = ours["fairness"]
    if fairness["tenants"] is not None:
        least = f"{short_name(fairness['least_served_tenant'])} held {number(fairness['least_fair_share_ratio'])}"
        yield f"Fairness over tenants (Jain): {number(fairness['tenants'], 3)}; {least} of its fair share of the seats"


_GROUP_HEADER = (
    "requests",
    *(f"{name.upper()} {statistic}" for name, statistic in GROUP_LATENCIES),
    "max wait",
    "in SLO",
)


def _group_cells(block: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{block['requests']['total']:,}",
        *(number(block[f"{statistic}_{name}_ms"], 1) for name, statistic in GROUP_LATENCIES),
        number(block["longest_wait_ms"], 1),
        percent(block["slo_share"].get("all")),
    )


def _serving_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    kv, batch, queue = ours["kv_cache"], ours["batch_size"], ours["queue"]
    yield _header("Engine", "-")
    yield _row("KV cache use, mean / peak:", f"{percent(kv['mean_use'])} / {percent(kv['peak_use'])}")
    yield _row("Preemptions:", f"{ours['num_preemptions']:,}")
    if ours["num_recomputed_tokens"]:
        share = percent(ours["recomputed_tokens_share"])
        yield _row("Tokens computed again:", f"{ours['num_recomputed_tokens']:,} ({share} of all)")
    yield _row("Batch size, mean / max:", f"{number(batch['mean'])} / {batch['max']:,}")
    yield _row("Waiting requests, mean / max:", f"{number(queue['mean_waiting'])} / {queue['max_waiting']:,}")
    waits = f"{number(queue['mean_wait_ms'], 1)} / {number(queue['p99_wait_ms'], 1)}"
    yield _row("Time in queue, mean / P99 (ms):", waits)
    yield _row("Longest time in queue (ms):", _longest_wait(ours["longest_wait"]))
    yield from _time_lines(ours["time_share"])
    if ours["cached_tokens_share"]:
        yield _row("Prompt tokens from the prefix cache:", percent(ours["cached_tokens_share"]))
    for metric in (metric for metric in REGISTRY.values() if metric.is_reported):
        yield _row(f"{metric.label}:", metric.text(metric.of({"simbatch": ours})))
    if ours["skipped_rows"]:
        yield _row("Trace rows skipped:", f"{ours['skipped_rows']:,}")
    for what in ("Rejected", "Refused"):
        for reason in ours[f"{what.lower()}_reasons"]:
            yield f"{what} {reason['count']:,}: {reason['example']}"


def _time_lines(shares: Mapping[str, float | None]) -> Iterator[str]:
    """Whom the run waited for, where anything but the device takes time."""
    if shares["host"] is not None:
        yield _row("Device worked:", percent(shares["device"]))
        yield _row("Device waited for the host:", percent(shares["host"]))
        yield _row("Device had no requests:", percent(shares["idle"]))
    if shares["front_end"] is not None:
        yield _row("Tokens waited in the front end:", percent(shares["front_end"]))


def _longest_wait(longest: Mapping[str, Any]) -> str:
    if longest["wait_ms"] is None:
        return "-"
    whose = {"request": longest["request_id"], "class": longest["class"], "tenant": longest["tenant"]}
    text = ", ".join(f"{what} {short_name(name)}" for what, name in whose.items() if name is not None)
    return f"{number(longest['wait_ms'], 1)} ({text})"


def _origin_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    profile, engine = ours["profile"], ours["engine"]
    name, *params = ours["policy"].items()
    yield _header("Setting", "-")
    yield f"Scenario: {ours['scenario']}, seed {ours['seed']}"
    given = {key: value for key, value in params if value is not None}
    yield f"Policy: {name[1]}{_listed(given)}"
    yield from router_line(ours.get("cluster"))
    if (predicted_by := ours["predicted_by"]) not in (None, "stated_error"):
        yield f"Output lengths are predicted by {'the trace' if predicted_by == 'trace' else predicted_by}"
    error = profile["error"] or ("not stated" if profile["source"] else "none (step times as written)")
    estimate = " (an estimate)" if profile["is_estimate"] else ""
    yield f"Profile: {profile['name']}{estimate}{in_place_of(profile, engine)}; error: {error}"
    if profile["host"] is not None:
        yield f"Host and front end: of {profile['host']}"
    if profile["share_of_steps_in_range"] is not None:
        yield f"Steps inside the profile's measured range: {percent(profile['share_of_steps_in_range'])}"
    resolved = [key for key in engine if key in ours["engine_defaults"]]
    if written := {key: value for key, value in engine.items() if key not in resolved}:
        yield f"Engine, as written:{_listed(written)}"
    if resolved:
        yield f"Engine, resolved:{_listed({key: engine[key] for key in resolved})}"


def _trace_lines(facts: RunFacts) -> Iterator[str]:
    trace = facts.scenario.get("workload", {}).get("trace", {})
    if (blocks := trace.get("resample_blocks")) is not None:
        yield f"Trace: drawn anew in {blocks} blocks of time by the seed, not as it is"


def in_place_of(profile: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    """The profile that the scenario names, where another one was taken, and what for."""
    asked = profile["asked_for"]
    return f" in place of {asked}, for kv_cache_dtype {engine['kv_cache_dtype']}" if asked else ""


def steady_line(steady: Mapping[str, Any]) -> str:
    """How sure the mean E2EL of the steady state is, or why nothing is said of it."""
    mean = steady["mean_e2el_ms"]
    if mean["low"] is None:
        return f"Steady state: no claim ({steady['refused'] or mean['refused']})"
    value, low, high = (number(mean[key] / 1000, 2) for key in ("value", "low", "high"))
    return (
        f"Steady state: E2EL mean {value} s (95 % interval {low} to {high} over {steady['num_batches']} batches; "
        f"left out: the first {steady['left_out_first']:,} requests as warm-up, the last {steady['left_out_last']:,})"
    )


def _listed(settings: Mapping[str, Any]) -> str:
    return "".join(f"{',' if i else ''} {key} {_plain(value)}" for i, (key, value) in enumerate(settings.items()))


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        shown = value if len(value) <= MAX_LISTED else [*value[:4], "...", value[-1]]
        return " ".join(map(str, shown)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _header(title: str, fill: str) -> str:
    return f"{title:{fill}^{WIDTH}}"


def _row(label: str, value: float | str | None) -> str:
    text = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {text:<10}"


def _wrapped(lines: Sequence[str]) -> Iterator[str]:
    """Sentences and lists broken at TEXT_WIDTH, what follows indented; tables, which have two spaces, as they are."""
    for line in lines:
        is_long = len(line) > TEXT_WIDTH and "  " not in line
        yield from textwrap.wrap(line, TEXT_WIDTH, subsequent_indent="  ") if is_long else [line]
