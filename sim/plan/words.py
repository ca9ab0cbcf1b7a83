"""A plan in words: its one sentence, what limits each fleet, and how they are called."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.plan.demand import REFUSED, Verdict
from simbatch.sim.plan.search import Sizing
from simbatch.sim.search.bands import Band
from simbatch.sim.text import number
from simbatch.sim.tuning.goal import Limit

if TYPE_CHECKING:
    from simbatch.sim.plan import FleetPlan


def sentence(plan: FleetPlan) -> str:
    """The answer."""
    return _fleet_sentence(plan, plan.chosen) if plan.chosen is not None else _refusal_sentence(plan)


def _fleet_sentence(plan: FleetPlan, sizing: Sizing) -> str:
    verdict = sizing.verdict
    assert verdict is not None
    how = f"{_settings_words(sizing)}{_router_words(sizing)}"
    parts = [
        f"{fleet_label(plan, sizing)}{_between_words(plan)} with {how}: {_cost(plan, sizing)}",
        ", ".join(_figure(limit, verdict, band_of(plan, limit, verdict)) for limit in plan.limits),
    ]
    if plan.one_down is not None:
        parts.append(f"with one replica down: {_one_down_words(plan, plan.one_down)}")
    if plan.growth is not None and plan.growth.breaks is not None:
        breaks, factor = metric_words(plan.growth.breaks), plan.growth.factor
        parts.append(f"the first to break as traffic grows: {breaks}, above {factor:.3g} times")
    return "; ".join(parts) + "."


def fleet_label(plan: FleetPlan, sizing: Sizing) -> str:
    """`7 x H200 TP1, 1 of them spare`, `5 x H200 TP1 + 1 x H100 TP1`; of none the kind alone."""
    spare = plan.rules.spare
    count = "" if sizing.replicas is None else f"{sizing.replicas + spare} x "
    return f"{count}{shape_label(sizing)}{f', {spare} of them spare' if spare and count else ''}"


def shape_label(sizing: Sizing) -> str:
    """`H200 TP1`, `H200 TP1 + 1 x H100 TP1`."""
    beside = sizing.beside
    return sizing.kind.label if beside is None else f"{sizing.kind.label} + {beside.replicas} x {beside.kind.label}"


def _between_words(plan: FleetPlan) -> str:
    """`(5 to 7 in nine draws of ten; 3 with fp8 weights)`, in replicas."""
    words = []
    if plan.banded is not None:
        low, high = ("more" if n is None else str(n + plan.rules.spare) for n in (plan.banded.low, plan.banded.high))
        words.append(f"{low if low == high else f'{low} to {high}'} in nine draws of ten")
    chosen = plan.chosen
    words += [
        f"{other.replicas + plan.rules.spare} with {other.kind.weights} weights"
        for other in plan.other_weights
        if other.replicas is not None and chosen is not None and other.replicas < (chosen.replicas or 0)
    ]
    return f" ({'; '.join(words)})" if words else ""


def _one_down_words(plan: FleetPlan, verdict: Verdict) -> str:
    """The figures; where the queue then grows for ever they say nothing."""
    if verdict.is_overloaded:
        return "overloaded"
    figures = ", ".join(_figure(limit, verdict) for limit in plan.limits)
    return figures if verdict.is_kept else f"not kept ({figures})"


def _refusal_sentence(plan: FleetPlan) -> str:
    """Which limit, and by how much, where it is nearest to being kept."""
    closest = nearest(plan)
    if closest is None or closest.verdict is None:
        reasons = {sizing.refusal for sizing in plan.sizings if sizing.refusal is not None}
        return f"No fleet keeps the limits: none of the profiles can be simulated so ({'; '.join(sorted(reasons))})."
    return f"No fleet keeps the limits. Nearest comes {closest.kind.label}: {limited_by(plan, closest)}."


def nearest(plan: FleetPlan) -> Sizing | None:
    """What breaks its limits by least; None where nothing could be simulated."""
    tried = [sizing for sizing in plan.sizings if sizing.verdict is not None]
    return max(tried, key=lambda sizing: sizing.verdict.margin if sizing.verdict else -inf, default=None)


def limited_by(plan: FleetPlan, sizing: Sizing) -> str:
    """What keeps the kind from being smaller, or from serving at all."""
    if sizing.refusal is not None:
        return sizing.refusal
    if sizing.replicas is None and sizing.verdict is not None:
        return "; ".join(_excess(plan, name, excess, sizing.verdict) for name, excess in sizing.verdict.broken.items())
    if sizing.beside is not None:
        return "a mixed group, put in the place of more of the first kind"
    if sizing.one_fewer is None:
        return "one replica is enough"
    name = sizing.one_fewer.nearest
    return f"{metric_words(name)} with one fewer" if name is not None else "-"


def _excess(plan: FleetPlan, name: str, excess: float, verdict: Verdict) -> str:
    """`P99 TPOT 70.1 ms, limit 60: 17 % above`."""
    limit = next((limit for limit in plan.limits if limit.metric.key == name), None)
    if limit is None:
        return "the queue keeps growing" if name == OVERLOADED else f"{excess:.1%} of the requests are refused"
    value = verdict.values[name]
    shown = limit.metric.text(value)
    far = f"{100 * excess:.0f} % beyond it" if excess < 1 else f"{1 + excess:.3g} times the limit"
    far = far if limit.bound else "which nothing keeps"
    return f"{metric_words(name)} {shown}, limit {limit.metric.text(limit.bound)}: {far}"


def _figure(limit: Limit, verdict: Verdict, band: Band | None = None) -> str:
    value = verdict.values[limit.metric.key]
    between = "" if band is None else f" [{_text(limit, band.low)}, {_text(limit, band.high)}]"
    unit = " ms" if limit.metric.kind == "ms" else ""
    return f"{metric_words(limit.metric.key)} {_text(limit, value)}{unit}{between}"


def _text(limit: Limit, value: float | None) -> str:
    """Milliseconds of three digits and more without any behind the point."""
    if limit.metric.kind != "ms":
        return limit.metric.text(value)
    return number(value, 0 if value is not None and value >= 100 else 1)


def metric_words(name: str) -> str:
    """A metric's label without its unit."""
    if name == OVERLOADED:
        return "a queue that keeps growing"
    if name == REFUSED:
        return "refused requests"
    return REGISTRY[name].title


def other_weights_lines(plan: FleetPlan) -> list[str]:
    """What other weights on the chosen GPU come to."""
    found = []
    for other in plan.other_weights:
        cost = plan.cost_per_hour(other)
        what = limited_by(plan, other) if other.replicas is None else "" if cost is None else f"{cost:,.2f} $/h"
        found.append(f"{fleet_label(plan, other)}: {what}")
    return found


def mixed_lines(plan: FleetPlan) -> list[str]:
    """What came of fleets of two kinds."""
    if plan.chosen is None or len([each for each in plan.sizings if each.replicas is not None]) < 2:
        return []
    if not plan.mixes:
        return ["Mixed groups: no two kinds together cost less than the cheapest alone."]
    found = []
    for mix in plan.mixes:
        assert mix.verdict is not None
        broken = [_excess(plan, name, excess, mix.verdict) for name, excess in mix.verdict.broken.items()]
        found.append(f"  {fleet_label(plan, mix)}: {'; '.join(broken) or 'keeps the limits'}")
    return ["Mixed groups that cost less than the cheapest of one kind:", *found]


def _settings_words(sizing: Sizing) -> str:
    shown = [f"{key.removeprefix('engine.')} {value}" for key, value in sizing.option.engine.items()]
    return ", ".join(shown) or "the engine's settings as they stand"


def _router_words(sizing: Sizing) -> str:
    return "" if sizing.replicas == 1 and sizing.beside is None else f", router {sizing.option.router}"


def _cost(plan: FleetPlan, sizing: Sizing) -> str:
    cost, gpus = plan.cost_per_hour(sizing), plan.rules.paid_gpus(sizing)
    if cost is None:
        return f"{gpus} GPU-hours an hour (no price for {sizing.kind.gpu}: --price {sizing.kind.gpu}=...)"
    million = plan.cost_per_million(sizing)
    return f"{cost:,.2f} $/h, {number(million)} $ per million output tokens"


def band_of(plan: FleetPlan, limit: Limit, verdict: Verdict) -> Band | None:
    """Of the chosen fleet, as it stands, alone."""
    is_chosen = plan.chosen is not None and verdict is plan.chosen.verdict
    return plan.banded.bands.of(limit.metric) if plan.banded is not None and is_chosen else None
