"""What a run's record says, as summary.json: the keys of `vllm bench serve` in its order, all of ours under `simbatch`.

The figures come from the registry. One that the layout here does not place goes to the end of its block, so that a new
figure is an entry of the registry alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, REFUSED, REJECTED, RunRecord
from simbatch.sim.interpreter import beside
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.columns import RunFacts, let_in
from simbatch.sim.metrics.groups import Groups, Tenants, counts, fair_share_ratios, fairness
from simbatch.sim.metrics.latencies import STATISTICS, Number, PooledGaps, describe_gaps, duration_ps, ratio
from simbatch.sim.metrics.registry import LATENCIES, REGISTRY
from simbatch.sim.metrics.run_figures import RunFigures, bound_by
from simbatch.sim.metrics.steady import steady_state, warnings_of

VLLM_KEYS = (
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    *(f"{statistic}_{name}_ms" for name, statistic in product(LATENCIES, STATISTICS)),
)
OURS = "simbatch."


def summary_of(record: RunRecord, facts: RunFacts) -> dict[str, Any]:
    """The content of summary.json."""
    with beside(lambda: describe_gaps(PooledGaps.of(record))) as gaps:
        figures = RunFigures(record, facts, gaps)
        computed = {key: metric.compute(figures) for key, metric in REGISTRY.items() if metric.compute is not None}
    return {
        **{key: computed[key] for key in VLLM_KEYS},
        "simbatch": _ours(figures, Ours(computed)),
    }


class Ours:
    """The figures under `simbatch`, taken block by block."""

    def __init__(self, computed: Mapping[str, Number]) -> None:
        self._left = {key.removeprefix(OURS): value for key, value in computed.items() if key.startswith(OURS)}

    def block(self, name: str, **facts: Any) -> dict[str, Any]:
        """The block of this name: what is no metric, then its figures."""
        keys = [key for key in self._left if key.startswith(f"{name}.")]
        return {name: facts | {key.removeprefix(f"{name}."): self._left.pop(key) for key in keys}}

    def __call__(self, *names: str) -> dict[str, Number]:
        """Figures that stand by themselves."""
        return {name: self._left.pop(name) for name in names}

    def rest(self) -> dict[str, Any]:
        """What nobody took."""
        blocks = dict.fromkeys(key.partition(".")[0] for key in self._left if "." in key)
        nested = [self.block(name) for name in blocks]
        return self(*self._left) | {name: block[name] for block in nested for name in block}


def _ours(figures: RunFigures, ours: Ours) -> dict[str, Any]:
    """Plain data in a fixed order."""
    record, facts = figures.record, figures.facts
    everybody = np.ones(len(record.requests), dtype=np.bool_)
    groups, tenants = Groups(record, facts), Tenants.of(record)
    ratios = fair_share_ratios(record, tenants)
    by_tenant, others = groups.tenants(tenants, ratios)
    sessions = ours.block("sessions")
    if figures.sessions is None:
        sessions = {}
    else:
        limits = facts.slo.session_limits()
        sessions["sessions"] |= {
            "slo": {f"{name}_ms": limit for name, limit in limits.items()},
            "slo_share": figures.session_slo_share(),
            "turns": figures.sessions.by_turn(),
        }
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
        **ours("mean_normalised_latency_ms"),
        **ours.block(
            "kv_cache",
            num_gpu_blocks=record.num_gpu_blocks,
            block_size=record.block_size,
            usable_blocks=record.num_usable_blocks,
        ),
        **ours("num_preemptions", "num_recomputed_tokens", "recomputed_tokens_share"),
        "num_truncated": record.num_truncated,
        **ours.block("batch_size"),
        **ours.block("queue"),
        **ours("mean_concurrent_requests", "num_steps", "device_busy_share"),
        **bound_by(record, facts),
        **ours("cached_tokens_share"),
        "client_overhead_ms": record.client_overhead_ps / PS_PER_MS,
        **ours.rest(),
        "steady_state": steady_state(record, facts),
        "warnings": warnings_of(record, facts),
        **({"unread": list(facts.unread)} if facts.unread else {}),
        **sessions,
        **cluster_block(record, facts),
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
            "vllm_version": facts.profile_vllm_version,
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
    sent_again = {"num_sent_again": record.num_sent_again, "num_lost_tokens": record.num_lost_tokens}
    whole = {"num_replicas": len(rows), **sent_again, "imbalance": imbalance, "replicas": rows}
    return {"cluster": {**facts.cluster, **whole}}


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


_NO_METRICS = (
    *("scenario", "seed", "policy", "engine", "engine_defaults", "profile"),
    *("slo", "rejected_reasons", "warnings"),
)


def figures_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Every figure of a summary, by the names of docs/reference.md: `p99_ttft_ms`, `kv_cache.mean_use`."""
    ours = {key: value for key, value in summary["simbatch"].items() if key not in _NO_METRICS}
    share = summary["simbatch"]["profile"]["share_of_steps_in_range"]
    standard = {key: value for key, value in summary.items() if key != "simbatch"}
    return dict(_flat(standard | ours)) | {"profile.share_of_steps_in_range": share}


def _flat(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float | None]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        elif key != "refused" and (value is None or isinstance(value, (int, float))):
            yield f"{above}{key}", value
