"""What `vllm bench serve` does not say: memory, batches, queue, classes, SLOs, profile; the key `simbatch`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, REFUSED, REJECTED, RunRecord
from simbatch.sim.results import curves
from simbatch.sim.results.columns import let_in
from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.fairness import fair_share_ratios, fairness
from simbatch.sim.results.groups import Groups, Tenants, counts, mean_normalised_latency_ms
from simbatch.sim.results.metrics import (
    describe,
    duration_ps,
    keyed,
    latencies_ms,
    ratio,
)
from simbatch.sim.results.overload import warnings_of
from simbatch.sim.results.slices import slices
from simbatch.sim.results.steady import steady_state
from simbatch.sim.results.time_share import bound_by


def simbatch_block(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """Everything of ours; plain data in a fixed order."""
    everybody = np.ones(len(record.requests), dtype=np.bool_)
    groups, tenants = Groups(record, facts), Tenants.of(record)
    ratios = fair_share_ratios(record, tenants)
    by_tenant, others = groups.tenants(tenants, ratios)
    return {
        **_setting(facts),
        "requests": counts(record, everybody),
        "rejected_reasons": _reasons(record, REJECTED),
        "refused_reasons": _reasons(record, REFUSED),
        "skipped_rows": facts.skipped,
        "slo": {f"{name}_ms": limit for name, limit in facts.slo.limits().items()},
        "slo_share": groups.slo_share(everybody),
        "classes": groups.classes(),
        "num_tenants": len(tenants),
        "tenants": by_tenant,
        "other_tenants": others,
        "fairness": fairness(record, tenants, ratios),
        "longest_wait": groups.longest_wait(),
        "mean_normalised_latency_ms": mean_normalised_latency_ms(record, record.requests.status == FINISHED),
        "kv_cache": _kv_cache(record),
        "num_preemptions": record.num_preemptions,
        **_recomputed(record),
        "num_truncated": record.num_truncated,
        "batch_size": _batch_size(record),
        "queue": _queue(record),
        "mean_concurrent_requests": _mean_in_flight(record),
        "num_steps": record.num_steps,
        "device_busy_share": ratio(curves.busy_ps(record), duration_ps(record)),
        **bound_by(record, facts),
        "cached_tokens_share": _cached_share(record),
        "client_overhead_ms": record.client_overhead_ps / PS_PER_MS,
        "steady_state": steady_state(record, facts),
        "warnings": warnings_of(record, facts),
    }


def _setting(facts: RunFacts) -> dict[str, Any]:
    return {
        "scenario": facts.scenario_name,
        "seed": facts.seed,
        "policy": {"name": facts.policy, **facts.policy_params},
        "predicted_by": facts.predicted_by,
        "engine": dict(facts.engine),
        "engine_defaults": list(facts.engine_defaults),
        "profile": {
            "name": facts.profile,
            "asked_for": facts.profile_asked_for,
            "source": facts.profile_source,
            "host": facts.host_profile,
            "error": facts.profile_error,
            "is_estimate": facts.profile_is_estimate,
            "share_of_steps_in_range": facts.share_in_range,
        },
    }


def _reasons(record: RunRecord, status: int) -> list[dict[str, Any]]:
    """Why requests came to this status; reasons that differ in their numbers alone are one, with count and example."""
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for index in sorted(i for i in record.requests.reason if record.requests.status[i] == status):
        reason = record.requests.reason[index]
        kind = re.sub(r"\d+", "#", reason)
        examples.setdefault(kind, reason)
        counts[kind] = counts.get(kind, 0) + 1
    ranked = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return [{"count": counts[kind], "example": examples[kind]} for kind in ranked]


def _kv_cache(record: RunRecord) -> dict[str, Any]:
    usable = record.num_gpu_blocks - 1
    mean, peak = curves.mean_used_blocks(record, duration_ps(record)), curves.used_blocks(record).max
    return {
        "num_gpu_blocks": record.num_gpu_blocks,
        "block_size": record.block_size,
        "usable_blocks": usable,
        "mean_use": ratio(mean, usable),
        "peak_use": ratio(peak, usable),
    }


def _recomputed(record: RunRecord) -> dict[str, Any]:
    """What preemptions cost: tokens computed again, and their share of all tokens computed."""
    recomputed = record.num_recomputed_tokens
    share = ratio(recomputed, curves.computed_tokens(record))
    return {"num_recomputed_tokens": recomputed, "recomputed_tokens_share": share}


def _batch_size(record: RunRecord) -> dict[str, Any]:
    """Requests per step, decodes and prefills together; the mean is over steps."""
    weighted = highest = 0
    for rows in slices(record.segments):
        sizes = curves.batch_sizes(rows)
        weighted += int((sizes * rows["num_steps"]).sum())
        highest = max(highest, int(sizes.max()))
    return {"mean": ratio(weighted, record.num_steps), "max": highest}


def _queue(record: RunRecord) -> dict[str, Any]:
    """Requests that arrived and were not yet scheduled for the first time; the mean is over time (Little's law)."""
    requests = record.requests
    waits = let_in(requests)
    started = waits & (requests.scheduled_ps >= 0)
    wait_ps = requests.scheduled_ps[started] - requests.arrival_ps[started]
    never_ps = np.maximum(record.end_ps - requests.arrival_ps[waits & ~started], 0)
    total_s = (wait_ps / PS_PER_S).sum() + (never_ps / PS_PER_S).sum()
    return {
        "mean_waiting": ratio(float(total_s), duration_ps(record) / PS_PER_S),
        "max_waiting": curves.waiting(record).max,
        **keyed("wait", describe(wait_ps / PS_PER_MS)),
    }


def _mean_in_flight(record: RunRecord) -> float | None:
    """Requests in the system on average, over time: the finished ones, from send to response."""
    total_ms = latencies_ms(record, record.requests.status == FINISHED)["e2el"].sum()
    return ratio(float(total_ms), duration_ps(record) / PS_PER_MS)


def _cached_share(record: RunRecord) -> float | None:
    """Prompt tokens found in the prefix cache when first scheduled, of all prompt tokens scheduled."""
    # a client knows of a first token alone
    started = (record.requests.scheduled_ps >= 0) | (record.requests.first_token_ps >= 0)
    cached = int(record.requests.num_cached_tokens[started].sum())
    return ratio(cached, int(record.requests.num_prompt_tokens[started].sum()))
