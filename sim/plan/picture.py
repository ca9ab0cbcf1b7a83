"""plan.png: what each fleet costs an hour, against the latency (or share) that is limited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.plan.fleet import FleetPlan
from simbatch.sim.plan.words import fleet_label
from simbatch.sim.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (7.2, 4.4)  # inches


def write(path: Path, plan: FleetPlan) -> None:
    """The picture as a PNG."""
    with style.figure(path, *SIZE) as drawing:
        draw(drawing, plan)


def draw(drawing: Figure, plan: FleetPlan) -> None:
    """A point a shape that keeps the limits, the chosen one among them; the first limit as a line."""
    limit, down = plan.limits[0], plan.limits[0].metric.aim == "lower"
    points = [
        (cost, value, fleet_label(plan, sizing))
        for sizing in plan.ranked
        if (cost := plan.cost_per_hour(sizing)) is not None
        and sizing.verdict is not None
        and (value := sizing.verdict.values[limit.metric.key]) is not None
    ]
    style.headline(drawing, f"Fleets that keep the limits at {plan.demand.rate:g} req/s")
    axes = drawing.add_subplot()
    axes.set_xlabel("cost of the fleet ($/h)")
    axes.set_ylabel(limit.metric.title)
    costs, values = [cost for cost, _, _ in points] or [1.0], [value for _, value, _ in points]
    style.value_axis(axes, "x", [0.0, 1.12 * max(costs)], is_time=False, from_zero=True)
    shown = [*values, limit.bound]
    style.value_axis(axes, "y", shown, is_time=limit.metric.kind == "ms", from_zero=min(shown) < max(shown) / 4)
    axes.axhline(limit.bound, color=style.LIMIT, linewidth=1.1, linestyle="--")
    bound = style.duration_text(limit.bound) if limit.metric.kind == "ms" else limit.metric.text(limit.bound)
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": style.LIMIT, "fontsize": 8, "ha": "right"}
    axes.text(0.995, limit.bound, f"limit {bound}", va="bottom" if down else "top", **at)
    for i, (cost, value, _) in enumerate(points):
        look: dict[str, Any] = (
            {"color": style.PALETTE[0], "marker": "o", "s": 36} if i else {"color": style.PALETTE[2], "s": 140}
        )
        axes.scatter([cost], [value], zorder=3, **({"marker": "*"} | look))
    style.label_apart(axes, points)
    if points:
        axes.scatter([], [], marker="*", s=90, color=style.PALETTE[2], label="the cheapest")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
