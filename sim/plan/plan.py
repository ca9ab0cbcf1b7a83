"""How a plan is made: each kind of replica sized, mixed with others, the cheapest fleet chosen, and looked round at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simbatch.sim.plan.around import fleet_bands, grow, one_down
from simbatch.sim.plan.demand import Demand
from simbatch.sim.plan.fleet import FleetPlan, Rules
from simbatch.sim.plan.kinds import ReplicaKind
from simbatch.sim.plan.mixed import mixed
from simbatch.sim.plan.search import Asking, Evaluate, FleetPart, KindSearch, together
from simbatch.sim.search.bands import NUM_DRAWS
from simbatch.sim.tuning.goal import Limit


def make_plan(
    demand: Demand,
    kinds: Sequence[ReplicaKind],
    limits: Sequence[Limit],
    evaluate: Evaluate,
    *,
    routers: Sequence[str],
    seeds: Sequence[int],
    rules: Rules,
    num_draws: int = NUM_DRAWS,
    others_of: Callable[[ReplicaKind], Sequence[ReplicaKind]] = lambda _: (),
) -> FleetPlan:
    """Size every kind side by side, mix, choose, and look round the choice; UserError at a router that does not exist.

    `others_of` are the kinds of a GPU with other weights, which are sized once that GPU is chosen.
    """
    for router in routers:
        demand.scenario.override(
            {"cluster": {"replicas": 2, "router": {"name": router}}}, origin="--router"
        ).build_router()

    def search_of(kind: ReplicaKind, beside: FleetPart | None = None) -> KindSearch:
        return KindSearch(kind, demand, limits, seeds, routers, rules.max_replicas(kind), beside)

    sized = together({i: search_of(kind).size() for i, kind in enumerate(kinds)}, evaluate)
    plan = FleetPlan(demand, tuple(limits), rules, list(sized.values()), list(seeds))
    if plan.chosen is None:
        return plan
    plan.mixes = together({0: mixed(search_of, plan)}, evaluate)[0]
    plan.sizings += [mix for mix in plan.mixes if mix.verdict is not None and mix.verdict.is_kept]
    chosen = plan.chosen
    search = search_of(chosen.kind, chosen.beside)
    others = others_of(chosen.kind) if chosen.beside is None else ()
    looks: dict[str, Asking[Any]] = {"growth": grow(search, chosen, rules), "down": one_down(search, plan)}
    looks |= {kind.label: search_of(kind).size() for kind in others}
    looked = together(looks, evaluate)
    plan.growth, plan.one_down, *plan.other_weights = looked.values()
    if num_draws:
        plan.banded = fleet_bands(search, chosen, evaluate, num_draws)
    return plan
