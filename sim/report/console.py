"""What a run says on the console: the block of `vllm bench serve`, then ours in the same form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.report.engine_text import (
    WIDTH,
    answer,
    engine_lines,
    header,
    replica_lines,
    router_line,
    row_of,
    sentences,
    session_lines,
)
from simbatch.sim.results.runs import marked
from simbatch.sim.text import number, percent, short_name, table, wrapped

PRINTED = ("mean", "median", "p90", "p95", "p99")  # of a latency
LATENCY_HEADERS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
GROUP_LATENCIES = tuple((name, statistic) for name in ("ttft", "tpot", "e2el") for statistic in ("mean", "p99"))
HEADLINE_SETTINGS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_gpu_blocks")
MAX_LISTED = 8  # of a list; of a longer one the first and the last


def report(summary: Mapping[str, Any], facts: RunFacts, *, verbose: bool = False) -> str:
    """The answer in four lines, then everything, as plain text; `summary` as in summary.json.

    `verbose`: every resolved setting of the engine too, and why nothing is said of the steady state.
    """
    ours = summary["simbatch"]
    lines = [
        *answer(summary),
        "",
        *benchmark_block(summary, facts),
        *_slo_lines(ours),
        *_class_lines(ours["classes"]),
        *_tenant_lines(ours),
        *session_lines(ours.get("sessions")),
        *engine_lines(ours),
        *replica_lines(ours.get("cluster")),
        *sentences(ours, facts),
        *_origin_lines(ours, verbose),
        *_trace_lines(facts),
        *steady_lines(ours["steady_state"], verbose),
        *(marked(warning, ours.get("unread", ())) for warning in ours["warnings"]),
    ]
    return "\n".join(wrapped(lines))


def benchmark_block(summary: Mapping[str, Any], facts: RunFacts) -> Iterator[str]:
    """The block of `vllm bench serve`, row by row as it prints them."""
    workload = facts.scenario.get("workload", {})
    yield header(" Serving Benchmark Result ", "=")
    yield row_of("Successful requests:", summary["completed"])
    yield row_of("Failed requests:", summary["failed"])
    if (limit := workload.get("max_concurrency")) is not None:
        yield row_of("Maximum request concurrency:", limit)
    if (rate := workload.get("request_rate")) is not None:
        yield row_of("Request rate configured (RPS):", float(rate))
    yield row_of("Benchmark duration (s):", summary["duration"])
    yield row_of("Total input tokens:", summary["total_input_tokens"])
    yield row_of("Total generated tokens:", summary["total_output_tokens"])
    yield row_of("Request throughput (req/s):", summary["request_throughput"])
    if facts.slo.limits():
        yield row_of("Request goodput (req/s):", summary["request_goodput"])
    yield row_of("Output token throughput (tok/s):", summary["output_throughput"])
    yield row_of("Peak output token throughput (tok/s):", summary["max_output_tokens_per_s"])
    yield row_of("Peak concurrent requests:", float(summary["max_concurrent_requests"]))
    yield row_of("Total token throughput (tok/s):", summary["total_token_throughput"])
    for name, title in LATENCY_HEADERS.items():
        yield header(title, "-")
        for metric in (REGISTRY[f"{statistic}_{name}_ms"] for statistic in PRINTED):
            yield row_of(f"{metric.label}:", metric.of(summary))
    yield "=" * WIDTH


def _slo_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    if not (shares := ours["slo_share"]):
        return
    yield header("Requests within SLO", "-")
    for key, limit in ours["slo"].items():
        name = key.removesuffix("_ms")
        yield row_of(f"{name.upper()} <= {limit:g} ms:", percent(shares[name]))
    yield row_of("All of them:", percent(shares["all"]))


def _class_lines(classes: Mapping[str, Any]) -> Iterator[str]:
    if not classes:
        return
    yield header("Classes (latencies in ms)", "-")
    yield from table(("class", *GROUP_HEADER), [(name, *group_cells(block)) for name, block in classes.items()])


def _tenant_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    if not ours["tenants"]:
        return
    yield header("Tenants (latencies in ms)", "-")
    rows = [(short_name(name), *group_cells(block)) for name, block in ours["tenants"].items()]
    if others := ours["other_tenants"]:
        rows.append((f"{others['num_tenants']:,} others", *group_cells(others)))
    yield from table(("tenant", *GROUP_HEADER), rows)
    fairness = ours["fairness"]
    if fairness["tenants"] is not None:
        least = f"{short_name(fairness['least_served_tenant'])} held {number(fairness['least_fair_share_ratio'])}"
        yield f"Fairness over tenants (Jain): {number(fairness['tenants'], 3)}; {least} of its fair share of the seats"


GROUP_HEADER = (
    "requests",
    *(f"{name.upper()} {statistic}" for name, statistic in GROUP_LATENCIES),
    "max wait",
    "in SLO",
)


def group_cells(block: Mapping[str, Any]) -> tuple[str, ...]:
    """What a class or a tenant has below `GROUP_HEADER`."""
    return (
        f"{block['requests']['total']:,}",
        *(number(block[f"{statistic}_{name}_ms"], 1) for name, statistic in GROUP_LATENCIES),
        number(block["longest_wait_ms"], 1),
        percent(block["slo_share"].get("all")),
    )


def _origin_lines(ours: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    profile, engine = ours["profile"], ours["engine"]
    name, *params = ours["policy"].items()
    yield header("Setting", "-")
    yield f"Scenario: {ours['scenario']}, seed {ours['seed']}"
    given = {key: value for key, value in params if value is not None}
    yield f"Policy: {name[1]}{_listed(given)}"
    yield from router_line(ours.get("cluster"))
    if (predicted_by := ours["predicted_by"]) not in (None, "stated_error"):
        yield f"Output lengths are predicted by {'the trace' if predicted_by == 'trace' else predicted_by}"
    error = profile["error"] or ("not stated" if profile["source"] else "none (step times as written)")
    estimate = " (an estimate)" if profile["is_estimate"] else ""
    yield f"Profile: {profile['name']}{estimate}{in_place_of(profile, engine)}; error: {error}"
    if (version := engine.get("vllm_version")) is not None:
        measured = profile["vllm_version"]
        yield f"vLLM: rules and defaults of {version}{f'; steps measured with {measured}' if measured else ''}"
    if profile["host"] is not None:
        yield f"Host and front end: of {profile['host']}"
    if profile["share_of_steps_in_range"] is not None:
        yield f"Steps inside the profile's measured range: {percent(profile['share_of_steps_in_range'])}"
    resolved = [key for key in engine if key in ours["engine_defaults"]]
    if written := {key: value for key, value in engine.items() if key not in resolved}:
        yield f"Engine, as written:{_listed(written)}"
    shown = resolved if verbose else [key for key in resolved if key in HEADLINE_SETTINGS]
    if resolved:
        more = f" (and {len(resolved) - len(shown)} more: --verbose)" if len(shown) < len(resolved) else ""
        yield f"Engine, resolved:{_listed({key: engine[key] for key in shown})}{more}"


def _trace_lines(facts: RunFacts) -> Iterator[str]:
    trace = facts.scenario.get("workload", {}).get("trace", {})
    if (blocks := trace.get("resample_blocks")) is not None:
        yield f"Trace: drawn anew in {blocks} blocks of time by the seed, not as it is"


def in_place_of(profile: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    """The profile that the scenario names, where another one was taken, and what for."""
    asked = profile["asked_for"]
    return f" in place of {asked}, for kv_cache_dtype {engine['kv_cache_dtype']}" if asked else ""


def steady_lines(steady: Mapping[str, Any], verbose: bool = False) -> Iterator[str]:
    """How sure the mean E2EL of the steady state is; where nothing is said of it, why, if that is asked for."""
    mean = steady["mean_e2el_ms"]
    if mean["low"] is None:
        if verbose:
            yield f"Steady state: no claim ({steady['refused'] or mean['refused']})"
        return
    value, low, high = (number(mean[key] / 1000, 2) for key in ("value", "low", "high"))
    yield (
        f"Steady state: E2EL mean {value} s (95 % interval {low} to {high} over {steady['num_batches']} batches; "
        f"left out: the first {steady['left_out_first']:,} requests as warm-up, the last {steady['left_out_last']:,})"
    )


def _listed(settings: Mapping[str, Any]) -> str:
    return "".join(f"{',' if i else ''} {key} {setting_text(value)}" for i, (key, value) in enumerate(settings.items()))


def setting_text(value: Any) -> str:
    """A resolved value as a reader sees it; of a long list the first four and the last."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        shown = value if len(value) <= MAX_LISTED else [*value[:4], "...", value[-1]]
        return " ".join(map(str, shown)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
