"""Cost against latency, a point a fleet."""

from __future__ import annotations

from pathlib import Path

from simbatch.sim.plan.fleet import FleetPlan
from simbatch.sim.plan.words import fleet_label
from simbatch.sim.report import style


def draw(path: Path, plan: FleetPlan) -> None:
    """Cost against the latency that the first limit names, a point a shape; its limit as a line."""
    limit = plan.limits[0]
    points = [
        (cost, value, sizing)
        for sizing in plan.ranked
        if (cost := plan.cost_per_hour(sizing)) is not None
        and sizing.verdict is not None
        and (value := sizing.verdict.values[limit.metric.key]) is not None
    ]
    with style.figure(path, 6.4, 4.2) as drawing:
        axes = drawing.add_subplot()
        for i, (cost, value, sizing) in enumerate(points):
            axes.plot([cost], [value], "o", color=style.PALETTE[0] if i else style.PALETTE[2], markersize=7)
            axes.annotate(fleet_label(plan, sizing), (cost, value), xytext=(6, 4), textcoords="offset points")
        axes.axhline(limit.bound, color=style.LIMIT, linewidth=1, linestyle="--")
        axes.set_xlim(0, 1.25 * max((cost for cost, _, _ in points), default=1.0))
        axes.set_ylim(0, 1.15 * max(limit.bound, *(value for _, value, _ in points)) if points else None)
        axes.set_xlabel("cost of the fleet ($/h)")
        axes.set_ylabel(limit.metric.label)
        style.headline(drawing, f"Fleets that keep the limits at {plan.demand.rate:g} req/s")
