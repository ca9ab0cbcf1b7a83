"""A planned fleet: what was asked, what each kind of replica comes to, which is chosen, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from simbatch.sim.cost.sections import kwh_per_million
from simbatch.sim.plan.demand import Demand, Verdict
from simbatch.sim.plan.kinds import ReplicaKind, per_million
from simbatch.sim.plan.search import FleetPart, KindSearch, Sizing, settings_of_kind
from simbatch.sim.search.bands import Bands
from simbatch.sim.search.cells import Settings
from simbatch.sim.tuning.goal import Limit


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
