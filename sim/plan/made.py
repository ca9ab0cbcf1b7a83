"""What makes a plan real: `vllm serve` for each replica, the router's settings, the scenario that gives it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simbatch.sim.plan.fleet import FleetPlan, engines_of, fleet_settings
from simbatch.sim.plan.search import Sizing
from simbatch.sim.plugins.router import Router
from simbatch.sim.scenario import resolve
from simbatch.sim.tuning.vllm_flags import vllm_serve


def serve_lines(plan: FleetPlan) -> list[str]:
    """`vllm serve` for each kind of replica, and what the router before them is set to."""
    return list(_serve_lines(plan))


def _serve_lines(plan: FleetPlan) -> Iterator[str]:
    sizing = plan.chosen
    if sizing is None:
        return
    engines = engines_of(plan, sizing)
    count = sum(part.replicas for part, _ in engines)
    for part, settings in engines:
        if count > 1:
            yield f"# {part.replicas} x {part.kind.label}, each:"
        yield vllm_serve(plan.demand.scenario, settings)
    if count > 1:
        name = sizing.option.router
        router = plan.demand.scenario.override({"cluster": {"replicas": 2, "router": {"name": name}}}).build_router()
        shown = "".join(f", {key} {value}" for key, value in router.parameters().items() if value is not None)
        yield f"# router before all {count}: {name}{shown}"
        if source := _source_of(router):
            yield f"#   {source}"


def _source_of(router: Router) -> str:
    """Which gateways do alike, as its docstring says it."""
    _, found, source = " ".join((type(router).__doc__ or "").split()).partition("Source")
    return f"{found}{source}"


def scenario_content(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    """The scenario that gives the figures of the answer again: the replicas that serve, without the spare ones."""
    assert sizing.replicas is not None
    scenario = plan.demand.scenario.override(fleet_settings(plan, sizing, sizing.replicas), origin="plan")
    return resolve(scenario).dump() | {"seed": plan.seeds[0]}
