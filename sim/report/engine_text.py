"""What the console says of a run: its answer in four lines, then KV cache, queue, whom the device waited for, replicas.

The four lines: is the SLO kept, what binds, is there room, how far can it be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simbatch.sim.cost.host import GRAPH, NONE, PIECEWISE
from simbatch.sim.cost.profile import INLINE
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.metrics.run_figures import FULL, KINDS
from simbatch.sim.metrics.steady import AT_ONCE, MIN_SHARE_IN_RANGE, OVERLOADED
from simbatch.sim.text import number, percent, short_name, table

WIDTH = 50


MIN_SHARE = 0.1  # of the time, from which on it is worth a sentence
MOST_SHARE = 0.3  # and from which on less of it is worth more than a GPU 1.4 times as fast
MAX_ROWS = 16  # of more replicas the most and the least loaded are shown
HEADER = ("replica", "requests", "tokens", "load", "hits", "KV mean", "KV peak", "waiting", "max", "busy")


def replica_lines(cluster: Mapping[str, Any] | None) -> Iterator[str]:
    """A table by replica, and how uneven it is."""
    if cluster is None:
        return
    rows: Sequence[Mapping[str, Any]] = cluster["replicas"]
    yield f"{'Replicas':-^{WIDTH}}"
    shown, rest = list(rows), 0
    if len(rows) > MAX_ROWS:
        by_load = sorted(rows, key=lambda row: -row["share_of_load"])
        half = MAX_ROWS // 2
        shown, rest = [*by_load[:half], *by_load[-half:]], len(rows) - MAX_ROWS
    yield from table(HEADER, [_cells(row) for row in shown])
    if rest:
        yield f"(the {MAX_ROWS // 2} most and the {MAX_ROWS // 2} least loaded; {rest:,} between them in summary.json)"
    if cluster["num_sent_again"]:
        lost = f"{cluster['num_lost_tokens']:,} tokens that were computed for them are lost"
        yield f"Sent again since their replica was down: {cluster['num_sent_again']:,} requests; {lost}"
    imbalance = cluster["imbalance"]
    words = {"share_of_load": "load", "num_requests": "requests", "num_tokens": "tokens"}
    yield f"Most over mean: {', '.join(f'{word} {number(imbalance[key])}' for key, word in words.items())}"


def router_line(cluster: Mapping[str, Any] | None) -> Iterator[str]:
    """How many engines, of what, behind which router."""
    if cluster is None:
        return
    name, *params = cluster["router"].items()
    given = ", ".join(f"{key} {value}" for key, value in params if value not in (None, 0.0))
    yield f"Cluster: {cluster['num_replicas']:,} replicas behind {name[1]}{f' ({given})' if given else ''}"
    for event in cluster["events"]:
        what = "drains" if event["drain"] else "is down"
        yield f"Replica {event['replica']} {what} at {event['at']:g} s for {event['down_s']:g} s"
    if len(cluster["groups"]) > 1:
        for i, group in enumerate(cluster["groups"]):
            engine = group["engine"]
            sizes = f"{engine['max_num_seqs']} seqs, {engine['max_num_batched_tokens']:,} tokens a step"
            yield f"Group {i}: {group['replicas']} x {group['profile']}, {sizes}, {engine['num_gpu_blocks']:,} blocks"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    return (
        str(row["replica"]),
        f"{row['num_requests']:,}",
        f"{row['num_tokens']:,}",
        share(row["share_of_load"]),
        share(row["cached_tokens_share"]),
        share(row["mean_kv_use"]),
        share(row["peak_kv_use"]),
        "-" if row["mean_waiting"] is None else f"{row['mean_waiting']:.2f}",
        f"{row['max_waiting']:,}",
        share(row["device_busy_share"]),
    )


def sentences(ours: Mapping[str, Any], facts: RunFacts) -> Iterator[str]:
    """What would help, in the user's words, where host or front end cost much; `ours` as in summary.json."""
    shares = ours["time_share"]
    if (shares["host"] or 0) >= MIN_SHARE:
        gain = (
            "help more than a faster GPU." if shares["host"] >= MOST_SHARE else "shorten that, a faster GPU would not."
        )
        waited = f"{_percent(shares['host'])} of the time the GPU waited for the host"
        yield f"{waited}, mostly after {_mend(ours['host_wait_after'], facts)} would {gain}"
    if (shares["front_end"] or 0) >= MIN_SHARE:
        late = (
            f"{_percent(shares['front_end'])} of the time tokens waited in the front end for those of the step before"
        )
        yield f"{late}: more servers (api_server_count) would help."


def _mend(waits: Mapping[str, float], facts: RunFacts) -> str:
    """After which launches it mostly waited, and what makes them fewer or shorter."""
    kind, size = max(KINDS, key=lambda kind: waits[kind]), facts.max_capture_size
    if kind == GRAPH:
        return "decode steps, which the GPU ends before the host has launched the next one: a faster CPU"
    mends = []
    if waits[FULL] >= (waits[PIECEWISE] + waits[NONE]) / 2:  # prompts are cut into chunks
        mends.append(f"a larger max_num_batched_tokens (now {facts.engine['max_num_batched_tokens']})")
    if kind == PIECEWISE:
        return f"steps with prefills: {mends[0] if mends else 'fewer steps with prefills, or a faster CPU,'}"
    mends.append(f"a larger max_cudagraph_capture_size (now {size})" if size else "CUDA graphs")
    what = "steps too large for a CUDA graph" if size else "launches without CUDA graphs (enforce_eager)"
    return f"{what}: {' or '.join(mends)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def engine_lines(ours: Mapping[str, Any]) -> Iterator[str]:
    """KV cache, preemptions, batch, queue, whom the device waited for; who was turned away, and why."""
    kv, batch, queue = ours["kv_cache"], ours["batch_size"], ours["queue"]
    yield header("Engine", "-")
    yield row_of("KV cache use, mean / peak:", f"{percent(kv['mean_use'])} / {percent(kv['peak_use'])}")
    yield row_of("Preemptions:", f"{ours['num_preemptions']:,}")
    if ours["num_recomputed_tokens"]:
        share = percent(ours["recomputed_tokens_share"])
        yield row_of("Tokens computed again:", f"{ours['num_recomputed_tokens']:,} ({share} of all)")
    yield row_of("Batch size, mean / max:", f"{number(batch['mean'])} / {batch['max']:,}")
    yield row_of("Waiting requests, mean / max:", f"{number(queue['mean_waiting'])} / {queue['max_waiting']:,}")
    waits = f"{number(queue['mean_wait_ms'], 1)} / {number(queue['p99_wait_ms'], 1)}"
    yield row_of("Time in queue, mean / P99 (ms):", waits)
    yield row_of("Longest time in queue (ms):", _longest_wait(ours["longest_wait"]))
    yield from _time_lines(ours["time_share"])
    if ours["cached_tokens_share"]:
        yield row_of("Prompt tokens from the prefix cache:", percent(ours["cached_tokens_share"]))
    for metric in (metric for metric in REGISTRY.values() if metric.is_reported):
        yield row_of(f"{metric.label}:", metric.text(metric.of({"simbatch": ours})))
    if ours["skipped_rows"]:
        yield row_of("Trace rows skipped:", f"{ours['skipped_rows']:,}")
    for what in ("Rejected", "Refused"):
        for reason in ours[f"{what.lower()}_reasons"]:
            yield f"{what} {reason['count']:,}: {reason['example']}"


def _time_lines(shares: Mapping[str, float | None]) -> Iterator[str]:
    """Whom the run waited for, where anything but the device takes time."""
    if shares["host"] is not None:
        yield row_of("Device worked:", percent(shares["device"]))
        yield row_of("Device waited for the host:", percent(shares["host"]))
        yield row_of("Device had no requests:", percent(shares["idle"]))
    if shares["front_end"] is not None:
        yield row_of("Tokens waited in the front end:", percent(shares["front_end"]))


def _longest_wait(longest: Mapping[str, Any]) -> str:
    if longest["wait_ms"] is None:
        return "-"
    whose = {"request": longest["request_id"], "class": longest["class"], "tenant": longest["tenant"]}
    text = ", ".join(f"{what} {short_name(name)}" for what, name in whose.items() if name is not None)
    return f"{number(longest['wait_ms'], 1)} ({text})"


def header(title: str, fill: str) -> str:
    """A line of `fill` with the title in its middle, as `vllm bench serve` prints it."""
    return f"{title:{fill}^{WIDTH}}"


def row_of(label: str, value: float | str | None) -> str:
    """A figure of that block."""
    text = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {text:<10}"


FULL_CACHE = 0.99  # of the KV cache
MIN_WAIT = 0.1  # of the time, from which on a wait for host or front end is worth naming


def answer(summary: Mapping[str, Any]) -> Iterator[str]:
    """The four lines; `summary` as in summary.json."""
    ours = summary["simbatch"]
    yield f"SLO: {'; '.join([_kept(summary), *_kept_by_sessions(summary)])}."
    yield f"What binds: {' and '.join(_binding(ours)) or 'nothing but the time that steps take'}."
    yield f"Load: {_load(ours)}."
    yield f"Trust: {trust_of(ours['profile'])}."


def _kept(summary: Mapping[str, Any]) -> str:
    ours = summary["simbatch"]
    shares = {name: share for name, share in ours["slo_share"].items() if share is not None}
    if not shares:
        tails = ", ".join(f"{name.upper()} {number(summary[f'p99_{name}_ms'], 0)} ms" for name in ("ttft", "tpot"))
        none = "none is set" if not ours.get("sessions", {}).get("slo") else "none on requests"
        return f"{none}; P99 {tails}, {number(summary['output_throughput'])} output tok/s"
    kept = f"{percent(shares.pop('all'))} of {ours['requests']['total']:,} requests keep it"
    worst = min(shares, key=lambda name: shares[name], default=None)
    if worst is None or shares[worst] == 1:
        return kept
    limit = ours["slo"][f"{worst}_ms"]
    return f"{kept}; {worst.upper()} breaks it most ({percent(shares[worst])} are within {limit:g} ms)"


def _kept_by_sessions(summary: Mapping[str, Any]) -> Iterator[str]:
    sessions = summary["simbatch"].get("sessions", {})
    if (share := sessions.get("slo_share", {}).get("all")) is not None:
        yield f"{percent(share)} of {sessions['num_sessions']:,} sessions keep theirs"


def _binding(ours: Mapping[str, Any]) -> Iterator[str]:
    """What the run came up against."""
    kv, batch, shares = ours["kv_cache"], ours["batch_size"], ours["time_share"]
    if (kv["peak_use"] or 0) >= FULL_CACHE or ours["num_preemptions"]:
        yield f"the KV cache ({percent(kv['peak_use'])} at its peak, {ours['num_preemptions']:,} preemptions)"
    most = ours["engine"].get("max_num_seqs")
    if most is not None and batch["max"] >= most:
        yield f"max_num_seqs (all {most:,} were running)"
    for name, what in (("host", "the GPU waited for it"), ("front_end", "tokens waited for it")):
        if (shares[name] or 0) >= MIN_WAIT:
            yield f"the {name.replace('_', ' ')} ({what} {percent(shares[name])} of the time)"


def _load(ours: Mapping[str, Any]) -> str:
    if ours["steady_state"]["refused"] == OVERLOADED or any(w.startswith("Overloaded") for w in ours["warnings"]):
        return "above the capacity: the queue kept growing for as long as requests arrived"
    waiting = number(ours["queue"]["mean_waiting"])
    if ours["steady_state"]["refused"] == AT_ONCE:
        return f"all requests were sent at the start ({waiting} wait on average)"
    return f"the queue does not keep growing ({waiting} wait on average); room: simbatch tune --capacity"


def trust_of(profile: Mapping[str, Any]) -> str:
    """How far a profile can be trusted, in half a line; `profile` as in summary.json."""
    if profile["is_estimate"]:
        return f"{profile['name']} is an estimate, which nobody measured"
    if not profile["source"] and not profile["error"]:
        is_inline = profile["name"] == INLINE
        return "step times are those of the scenario" if is_inline else f"{profile['name']} states no error"
    error = (profile["error"] or "error not stated").partition(";")[0].partition(" (")[0]
    share = profile["share_of_steps_in_range"]
    is_inside = share is None or share >= MIN_SHARE_IN_RANGE
    outside = "" if is_inside else f"; {percent(1 - share)} of steps outside what it measured"
    return f"{profile['name']} ({'step times off by ' if error.endswith('%') else ''}{error}){outside}"
