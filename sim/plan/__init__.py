"""How many GPUs of which type, in which shape and at what cost, keep the limits for a traffic (docs/plan.md).

Each kind of replica is sized, mixed with others, the cheapest fleet chosen, and looked round at: how far the traffic
may grow, one replica down, and the bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

from simbatch.sim.cost.sections import kwh_per_million
from simbatch.sim.plan.demand import Demand, Verdict
from simbatch.sim.plan.kinds import ReplicaKind, per_million
from simbatch.sim.plan.search import Asking, FleetPart, KindSearch, Sizing, resolved_with, settings_of_kind, together
from simbatch.sim.results.runs import Evaluate, Settings, Summary
from simbatch.sim.search.bands import NUM_DRAWS, Bands, all_settings, bands_from
from simbatch.sim.tuning.goal import Limit

GROWTH_PRECISION, MAX_GROWTH = 1.05, 8.0
MAX_FEWER = 2  # replicas of the cheapest fleet that others may take the place of
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
        return None if sizing.replicas is None else self.gpus_with(sizing, sizing.replicas)

    def gpus_with(self, sizing: Sizing, replicas: int) -> int:
        """GPUs that are paid for where so many replicas of the first kind serve."""
        return sum(gpus for _, gpus in self._paid(sizing, replicas))

    def cost_per_hour(self, sizing: Sizing) -> float | None:
        """US dollars; None without a price or a number."""
        if sizing.replicas is None:
            return None
        cost = 0.0
        for kind, gpus in self._paid(sizing, sizing.replicas):
            if kind.price is None:
                return None
            cost += gpus * kind.price.per_hour
        return cost

    def _paid(self, sizing: Sizing, replicas: int) -> Iterator[tuple[ReplicaKind, int]]:
        """GPUs by kind; the spare replicas are of the first."""
        yield sizing.kind, self._whole_nodes((replicas + self.spare) * sizing.kind.tensor_parallel_size)
        if sizing.beside is not None:
            kind = sizing.beside.kind
            yield kind, self._whole_nodes(sizing.beside.replicas * kind.tensor_parallel_size)

    def _whole_nodes(self, gpus: int) -> int:
        return gpus if self.gpus_per_node is None else ceil(gpus / self.gpus_per_node) * self.gpus_per_node


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
    mixes: list[Sizing] = field(default_factory=list)  # cheaper fleets of two kinds that were tried
    other_weights: list[Sizing] = field(default_factory=list)  # the chosen GPU's, smaller or larger fleets
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

    def kwh_per_million(self, sizing: Sizing) -> float | None:
        """Energy of the GPUs for a million output tokens; None of a profile that does not know its power."""
        verdict, power = sizing.verdict, sizing.kind.power
        if verdict is None or power is None or sizing.replicas is None or sizing.beside is not None:
            return None
        gpus = sizing.replicas * sizing.kind.tensor_parallel_size
        tokens = (verdict.output_throughput + verdict.input_throughput) / gpus
        spare = self.rules.spare * sizing.kind.tensor_parallel_size * power.idle_w
        return kwh_per_million(gpus * power.watts(verdict.busy_share, tokens) + spare, verdict.output_throughput)

    def is_cheaper(self, sizing: Sizing, other: Sizing) -> bool:
        """Whether it costs less; where a price is missing, whether it takes fewer GPUs."""
        costs = [self.cost_per_hour(each) for each in (sizing, other)]
        gpus = [self.rules.paid_gpus(each) or 0 for each in (sizing, other)]
        return gpus[0] < gpus[1] if None in costs else (costs[0] or 0.0) < (costs[1] or 0.0)

    def _order(self, sizing: Sizing) -> tuple[float, ...]:
        cost, gpus = self.cost_per_hour(sizing), self.rules.paid_gpus(sizing)
        margin = 0.0 if sizing.verdict is None else -sizing.verdict.margin
        return (gpus is None, cost is None, cost or 0.0, gpus or 0.0, margin)


def fleet_settings(plan: FleetPlan, sizing: Sizing, replicas: int) -> Settings:
    """The changes of the scenario that make it this fleet, whatever its size."""
    routers = [sizing.option.router]
    search = KindSearch(sizing.kind, plan.demand, plan.limits, plan.seeds, routers, 1, sizing.beside)
    return search.fleet(plan.demand.rate, replicas, sizing.option)


def engines_of(plan: FleetPlan, sizing: Sizing) -> list[tuple[FleetPart, Settings]]:
    """Each kind's replicas, the spare ones too, and the changes of the scenario that make it one engine of them."""
    assert sizing.replicas is not None
    parts = [FleetPart(sizing.kind, sizing.replicas + plan.rules.spare, sizing.option.engine)]
    parts += [] if sizing.beside is None else [sizing.beside]
    return [(part, {**settings_of_kind(part.kind, plan.demand), **part.engine}) for part in parts]


def grow(search: KindSearch, sizing: Sizing, rules: Rules) -> Asking[Growth]:
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


def one_down(search: KindSearch, plan: FleetPlan) -> Asking[Verdict | None]:
    """All traffic on one replica fewer than are paid for; None of a single one."""
    sizing = plan.chosen
    assert sizing is not None
    assert sizing.replicas is not None
    left = sizing.replicas + plan.rules.spare - 1
    if left < 1:
        return None
    (verdict,) = yield from search.judge([search.fleet(search.demand.rate, left, sizing.option)])
    return verdict


def fleet_bands(search: KindSearch, sizing: Sizing, evaluate: Evaluate, num_draws: int) -> FleetBands:
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
        demand.router(router)

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
