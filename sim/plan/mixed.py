"""Fleets of two kinds that cost less than the cheapest of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

from simbatch.sim.plan.fleet import FleetPlan
from simbatch.sim.plan.kinds import ReplicaKind
from simbatch.sim.plan.search import Asking, FleetPart, KindSearch, Sizing

MAX_FEWER = 2  # replicas of the cheapest fleet that others may take the place of


def mixed(search_of: Callable[[ReplicaKind, FleetPart], KindSearch], plan: FleetPlan) -> Asking[list[Sizing]]:
    """Replicas of another kind in place of one or two of the cheapest fleet's, where that costs less; all are tried.

    For example 5 x H200 + 1 x H100 in place of 6 x H200, where the H100 serves what is over.
    """
    best = plan.chosen
    assert best is not None
    found = []
    for other in [each for each in plan.sizings if each.kind is not best.kind and each.replicas is not None]:
        for part, replicas in _mixes(plan, best, other):
            search = search_of(best.kind, part)
            (verdict,) = yield from search.judge([search.fleet(plan.demand.rate, replicas, best.option)])
            found.append(Sizing(best.kind, best.option, best.capacity, replicas, verdict, beside=part))
            if verdict.is_kept:
                break
    return found


def _mixes(plan: FleetPlan, best: Sizing, other: Sizing) -> Iterator[tuple[FleetPart, int]]:
    """One and two replicas fewer of the best kind beside as many of the other as serve the rest, the cheapest first."""
    assert best.replicas is not None
    assert best.capacity is not None
    assert other.capacity is not None
    mixes = []
    for replicas in range(max(1, best.replicas - MAX_FEWER), best.replicas):
        rest = max(0.0, plan.demand.rate - replicas * best.capacity)
        for beside in (least := max(1, ceil(rest / other.capacity)), least + 1):
            part = FleetPart(other.kind, beside, other.option.engine)
            mix = Sizing(best.kind, best.option, replicas=replicas, beside=part)
            if plan.is_cheaper(mix, best):
                mixes.append((plan.cost_per_hour(mix) or 0.0, replicas, part))
    yield from ((part, replicas) for _, replicas, part in sorted(mixes, key=lambda mix: mix[:2]))
