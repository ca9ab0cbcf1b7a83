"""A plan: each kind of replica sized, the cheapest fleet chosen, and what a growing traffic or a failure does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

from simbatch.sim.plan.demand import Demand, Settings
from simbatch.sim.plan.kinds import ReplicaKind
from simbatch.sim.plan.prices import per_million
from simbatch.sim.plan.search import Asking, Evaluate, KindSearch, Sizing, Verdict, resolved_with, together
from simbatch.sim.results.runs import Summary
from simbatch.sim.search.bands import NUM_DRAWS, Bands, all_settings, bands_from
from simbatch.sim.tuning.goal import Limit

GROWTH_PRECISION, MAX_GROWTH = 1.05, 8.0
MAX_TIMES, MAX_MORE = 2, 4  # a draw that needs more replicas than twice as many and four is not followed further


@dataclass(frozen=True)
class Rules:
    """How a fleet is counted and paid for."""

    spare: int = 0
    gpus_per_node: int | None = None
    max_gpus: int = 512

    def max_replicas(self, kind: ReplicaKind) -> int:
        """Those that serve, beside the spare ones."""
        return self.max_gpus // kind.tensor_parallel_size - self.spare

    def paid_gpus(self, sizing: Sizing) -> int | None:
        """GPUs that are paid for, the spare ones too: whole nodes where they are rented so."""
        return None if sizing.replicas is None else self.gpus_of(sizing.kind, sizing.replicas)

    def gpus_of(self, kind: ReplicaKind, replicas: int) -> int:
        """GPUs that are paid for where so many replicas serve."""
        gpus = (replicas + self.spare) * kind.tensor_parallel_size
        return gpus if self.gpus_per_node is None else ceil(gpus / self.gpus_per_node) * self.gpus_per_node

    def cost_per_hour(self, sizing: Sizing) -> float | None:
        """US dollars; None without a price or a number."""
        gpus, price = self.paid_gpus(sizing), sizing.kind.price
        return None if gpus is None or price is None else gpus * price.per_hour


@dataclass(frozen=True)
class Growth:
    """The limits hold up to `factor` times the traffic, and `breaks` is what breaks first above it."""

    factor: float
    breaks: str | None


@dataclass(frozen=True)
class FleetBands:
    """The chosen fleet under draws of what its profile is in doubt about, and how many replicas each draw needs."""

    bands: Bands
    replicas: Sequence[int | None]  # None: no number of them keeps the limits

    @property
    def low(self) -> int | None:
        """The fewest."""
        return min((n for n in self.replicas if n is not None), default=None)

    @property
    def high(self) -> int | None:
        """The most; None where some draw needs more than there may be."""
        return None if None in self.replicas else max(n for n in self.replicas if n is not None)


@dataclass
class FleetPlan:
    """What was asked, what each kind comes to, and the one that is chosen."""

    demand: Demand
    limits: tuple[Limit, ...]
    rules: Rules
    sizings: list[Sizing]
    seeds: list[int]
    growth: Growth | None = None
    one_down: Verdict | None = None
    banded: FleetBands | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def chosen(self) -> Sizing | None:
        """The cheapest that keeps the limits; without prices the one with the fewest GPUs."""
        return self.ranked[0] if self.ranked and self.ranked[0].replicas is not None else None

    @property
    def ranked(self) -> list[Sizing]:
        """The cheapest first; what has no price behind what has one, what keeps the limits with no number last."""
        return sorted(self.sizings, key=self._order)

    def cost_per_hour(self, sizing: Sizing) -> float | None:
        """Of this fleet, spare replicas too."""
        return self.rules.cost_per_hour(sizing)

    def cost_per_million(self, sizing: Sizing, tokens: str = "output") -> float | None:
        """US dollars for a million output (or input) tokens of the whole fleet's."""
        verdict = sizing.verdict
        if verdict is None:
            return None
        rate = verdict.output_throughput if tokens == "output" else verdict.input_throughput
        return per_million(self.cost_per_hour(sizing), rate)

    def _order(self, sizing: Sizing) -> tuple[float, ...]:
        cost = self.cost_per_hour(sizing)
        gpus = self.rules.paid_gpus(sizing)
        margin = 0.0 if sizing.verdict is None else -sizing.verdict.margin
        return (gpus is None, cost is None, cost or 0.0, gpus or 0.0, margin)


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
) -> FleetPlan:
    """Size every kind side by side, choose, and look round the choice; UserError at a router that does not exist."""
    for router in routers:
        demand.scenario.override(
            {"cluster": {"replicas": 2, "router": {"name": router}}}, origin="--router"
        ).build_router()
    searches = [KindSearch(kind, demand, limits, seeds, routers, rules.max_replicas(kind)) for kind in kinds]
    sized = together({i: search.size() for i, search in enumerate(searches)}, evaluate)
    plan = FleetPlan(demand, tuple(limits), rules, list(sized.values()), list(seeds))
    if plan.chosen is not None:
        search = searches[plan.sizings.index(plan.chosen)]
        looks: dict[str, Asking[Any]] = {"growth": _grow(search, plan.chosen, rules), "down": _one_down(search, plan)}
        looked = together(looks, evaluate)
        plan.growth, plan.one_down = looked["growth"], looked["down"]
        if num_draws:
            plan.banded = _bands(search, plan.chosen, evaluate, num_draws)
    return plan


def _grow(search: KindSearch, sizing: Sizing, rules: Rules) -> Asking[Growth]:
    """How many times the traffic all replicas bear, the spare ones too; to 5 %."""
    assert sizing.replicas is not None
    replicas, rate = sizing.replicas + rules.spare, search.demand.rate
    held, failed, factor, breaks = 1.0, inf, 1.25, None
    while failed > held * GROWTH_PRECISION and held < MAX_GROWTH:
        (verdict,) = yield from search.judge([search.fleet(rate * factor, replicas, sizing.option)])
        if verdict.is_kept:
            held = factor
        else:
            failed, breaks = factor, verdict.nearest
        factor = held * 1.5 if failed == inf else (held * failed) ** 0.5
    return Growth(held, breaks)


def _one_down(search: KindSearch, plan: FleetPlan) -> Asking[Verdict | None]:
    """All traffic on one replica fewer than are paid for; None of a single one."""
    sizing = plan.chosen
    assert sizing is not None
    assert sizing.replicas is not None
    left = sizing.replicas + plan.rules.spare - 1
    if left < 1:
        return None
    (verdict,) = yield from search.judge([search.fleet(search.demand.rate, left, sizing.option)])
    return verdict


def _bands(search: KindSearch, sizing: Sizing, evaluate: Evaluate, num_draws: int) -> FleetBands:
    """All draws side by side, each at the size that was chosen, then at those round it."""
    one = resolved_with(search.demand, search.fleet(search.demand.rate, 1, sizing.option))
    drawn = all_settings(one, num_draws)
    found = together({i: _of_draw(search, sizing, drawn[i], i < num_draws) for i in range(len(drawn))}, evaluate)
    replicas = [n for _, n in list(found.values())[:num_draws]]
    return FleetBands(bands_from(one, [summary for summary, _ in found.values()]), replicas)


def _of_draw(
    search: KindSearch, sizing: Sizing, drawn: Mapping[str, Any], is_sized: bool
) -> Asking[tuple[Summary, int | None]]:
    """What a draw says of the chosen size, and (where it `is_sized`) the smallest one that it needs."""
    assert sizing.replicas is not None
    replicas, seed = sizing.replicas, search.seeds[0]
    (first,) = yield [({**search.fleet(search.demand.rate, replicas, sizing.option), **drawn}, seed)]
    is_kept = Verdict.of([first], search.limits).is_kept
    step = -1 if is_kept else max(1, replicas // 10)
    smallest = replicas if is_kept else None
    if not is_sized:
        return first, smallest
    while 1 <= (replicas := replicas + step) <= search.max_replicas:
        (summary,) = yield [({**search.fleet(search.demand.rate, replicas, sizing.option), **drawn}, seed)]
        if Verdict.of([summary], search.limits).is_kept:
            smallest = replicas
            if step > 0:
                break
        elif step < 0 or replicas > MAX_TIMES * sizing.replicas + MAX_MORE:
            break
    return first, smallest


def fleet_settings(plan: FleetPlan, sizing: Sizing, replicas: int) -> Settings:
    """The changes of the scenario that make it this fleet, whatever its size."""
    search = KindSearch(sizing.kind, plan.demand, plan.limits, plan.seeds, [sizing.option.router], 1)
    return search.fleet(plan.demand.rate, replicas, sizing.option)
