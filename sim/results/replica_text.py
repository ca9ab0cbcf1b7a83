"""The replicas of a cluster on the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_ROWS = 16  # of more replicas the most and the least loaded are shown
HEADER = ("replica", "requests", "tokens", "load", "hits", "KV mean", "KV peak", "waiting", "max", "busy")


def replica_lines(cluster: Mapping[str, Any] | None) -> Iterator[str]:
    """A table by replica, and how uneven it is."""
    if cluster is None:
        return
    from simbatch.sim.results.console import WIDTH
    from simbatch.sim.results.text import number, table

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
