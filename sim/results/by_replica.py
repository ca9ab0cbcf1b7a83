"""What each replica of a cluster did, and how evenly the load was spread: the key `cluster` of summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.results import curves
from simbatch.sim.results.columns import let_in
from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.metrics import duration_ps, ratio

EVENNESS = ("share_of_load", "num_requests", "num_tokens")  # of which the imbalance is said


def cluster_block(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """Router, groups, a block a replica, and the imbalance; nothing without a cluster.

    A replica's load is the time that its device works; its share is of all devices' work. The imbalance is the most
    over the mean: 1 where all have the same.
    """
    if facts.cluster is None or not record.replicas:
        return {}
    duration, work = duration_ps(record), curves.busy_ps(record)
    rows = [_row(i, record, part, duration, work) for i, part in enumerate(record.parts())]
    imbalance = {name: most_over_mean([row[name] for row in rows]) for name in EVENNESS}
    return {"cluster": {**facts.cluster, "num_replicas": len(rows), "imbalance": imbalance, "replicas": rows}}


def most_over_mean(values: Sequence[float]) -> float | None:
    """The largest over the mean; None where all are 0."""
    return ratio(max(values), sum(values) / len(values))


def _row(index: int, record: RunRecord, part: RunRecord, duration: int, all_work: int) -> dict[str, Any]:
    """One replica."""
    requests, log = part.requests, record.replicas[index]
    done, started = requests.status == FINISHED, requests.scheduled_ps >= 0
    work, prompt = curves.busy_ps(part), int(requests.num_prompt_tokens[started].sum())
    waits = let_in(requests) & started
    waited_s = ((requests.scheduled_ps[waits] - requests.arrival_ps[waits]) / PS_PER_S).sum()
    usable = part.num_usable_blocks
    mean, peak = curves.mean_used_blocks(part, duration), curves.used_blocks(part).max
    return {
        "replica": index,
        "group": log.group,
        "profile": log.profile,
        "num_requests": len(requests),
        "completed": int(done.sum()),
        "num_tokens": int((requests.num_prompt_tokens + requests.num_output_tokens)[done].sum()),
        "cached_tokens_share": ratio(int(requests.num_cached_tokens[started].sum()), prompt),
        "mean_kv_use": ratio(mean, usable),
        "peak_kv_use": ratio(peak, usable),
        "mean_waiting": ratio(float(waited_s), duration / PS_PER_S),
        "max_waiting": curves.waiting(part).max,
        "num_preemptions": part.num_preemptions,
        "num_steps": part.num_steps,
        "device_busy_share": ratio(work, duration),
        "share_of_load": float(np.float64(work) / all_work) if all_work else 0.0,
    }
