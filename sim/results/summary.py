"""summary.json: the keys of `vllm bench serve` in its order, and everything of ours under `simbatch`.

The figures come from the registry. One that the layout here does not place goes to the end of its block, so that a new
figure is an entry of the registry alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_MS
from simbatch.sim.engine.record import REFUSED, REJECTED, RunRecord
from simbatch.sim.results.by_replica import cluster_block
from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.fairness import fair_share_ratios, fairness
from simbatch.sim.results.groups import Groups, Tenants, counts
from simbatch.sim.results.metrics import STATISTICS, Number
from simbatch.sim.results.overload import warnings_of
from simbatch.sim.results.registry import LATENCIES, REGISTRY
from simbatch.sim.results.run_figures import RunFigures
from simbatch.sim.results.steady import steady_state
from simbatch.sim.results.time_share import bound_by

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
    figures = RunFigures(record, facts)
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
