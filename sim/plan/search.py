"""The smallest fleet of one kind of replica that keeps the limits: bounds from one replica first, then clusters.

1. The capacity of one replica: the highest rate at which the limits hold, to 5 %. A run that is overloaded says what it
   got through, which is where the next one is tried.
2. Engine settings that the scenario leaves open: which of them hold at 8 % more, and at 8 % more again.
3. Clusters from rate / capacity replicas on: one fewer while that holds, one more while it does not. One replica fewer
   is tried with the other routers and the next best settings too, before it is given up.

What a search asks for it yields as (settings, seed) pairs, and is sent the summaries: searches of several kinds go on
side by side, and what they ask in one round is simulated in parallel (`together`).
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, inf
from typing import Any, TypeVar

from simbatch.sim.errors import UserError
from simbatch.sim.plan.demand import Demand, Verdict
from simbatch.sim.plan.kinds import ReplicaKind
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Evaluate, Settings, Summary
from simbatch.sim.scenario import Resolved, resolve
from simbatch.sim.tuning.goal import SEQS, TOKENS, Limit

Found = TypeVar("Found")
Key = TypeVar("Key", bound=Hashable)
Asked = list[tuple[Settings, int]]
Asking = Generator[Asked, list[Summary], Found]

PRECISION = 1.05  # of one replica's capacity
BETTER = 1.08  # by which settings must raise it
ALONE = 0.05  # with so few requests in the system on average, a lower rate changes nothing
SEQS_TRIED, TOKENS_TRIED = (32, 64, 128, 256, 512), (1024, 2048, 4096, 8192, 16384)
ROUTERS = ("least_requests", "prefix_aware", "round_robin")


@dataclass(frozen=True)
class Option:
    """Engine settings, and the router before them."""

    engine: Mapping[str, Any]
    router: str


@dataclass(frozen=True)
class FleetPart:
    """Replicas of another kind that serve beside those of the first."""

    kind: ReplicaKind
    replicas: int
    engine: Mapping[str, Any]


@dataclass
class Sizing:
    """What came of one kind: `replicas` keep the limits (None: no number does), under `option`, as `verdict` says.

    `capacity` is one replica's, in requests per second; `refusal` says why the kind cannot be simulated at all. In a
    mixed fleet others serve `beside` them, whose number stays.
    """

    kind: ReplicaKind
    option: Option
    capacity: float | None = None
    replicas: int | None = None
    verdict: Verdict | None = None
    one_fewer: Verdict | None = None
    refusal: str | None = None
    runners_up: list[Option] = field(default_factory=list)
    beside: FleetPart | None = None


def together(askings: Mapping[Key, Asking[Found]], evaluate: Evaluate) -> dict[Key, Found]:
    """Let searches go on side by side to their ends; what they ask in one round is one call of `evaluate`."""
    found: dict[Key, Found] = {}
    answers: dict[Key, list[Summary] | None] = dict.fromkeys(askings)
    while answers:
        asked: dict[Key, Asked] = {}
        for key, answer in answers.items():
            try:
                asked[key] = next(askings[key]) if answer is None else askings[key].send(answer)
            except StopIteration as end:
                found[key] = end.value
        summaries = iter(evaluate([pair for pairs in asked.values() for pair in pairs]) if asked else [])
        answers = {key: [next(summaries) for _ in pairs] for key, pairs in asked.items()}
    return {key: found[key] for key in askings}


class KindSearch:
    """One kind's search; its methods are parts of the dialogue that `together` leads."""

    def __init__(
        self,
        kind: ReplicaKind,
        demand: Demand,
        limits: Sequence[Limit],
        seeds: Sequence[int],
        routers: Sequence[str],
        max_replicas: int,
        beside: FleetPart | None = None,
    ) -> None:
        self.kind, self.demand, self.limits, self.seeds, self.routers = kind, demand, limits, seeds, routers
        self.max_replicas, self.beside = max_replicas, beside
        self._own = settings_of_kind(kind, demand)

    def size(self) -> Asking[Sizing]:
        """The whole search."""
        option = Option({}, self.routers[0])
        if self.max_replicas < 1:
            return Sizing(self.kind, option, refusal="one replica and the spare ones are more GPUs than --max-gpus")
        if (refusal := self.refusal({})) is not None:
            return Sizing(self.kind, option, refusal=refusal)
        capacity, verdict = yield from self.capacity({})
        ranked = yield from self.better_settings(capacity or self.demand.rate / self.max_replicas / BETTER)
        if capacity is None and not ranked:
            return Sizing(self.kind, option, verdict=verdict)
        options = [Option(engine, self.routers[0]) for engine in [*(engine for _, engine in ranked), {}]]
        capacity = ranked[0][0] if ranked else capacity
        sizing = Sizing(self.kind, options[0], capacity, runners_up=options[1:3])
        yield from self.settle(sizing)
        return sizing

    def refusal(self, engine: Mapping[str, Any]) -> str | None:
        """Why vLLM would not start so, or the profile is not to be had so."""
        return refusal_of_settings(self.demand, {**self._own, **engine})

    def fleet(self, rate: float, replicas: int, option: Option) -> Settings:
        """The changes of the scenario that make it this fleet at this rate."""
        settings = {**self._own, **self.demand.settings(rate), **option.engine}
        if self.beside is not None:
            groups = [{"replicas": replicas}, self._group_beside(self.beside, option)]
            return settings | {"cluster": {"groups": groups, "router": {"name": option.router}}}
        if replicas > 1:
            settings |= {"cluster": {"replicas": replicas, "router": {"name": option.router}}}
        return settings

    def _group_beside(self, part: FleetPart, option: Option) -> dict[str, Any]:
        """The other kind's replicas, without the settings that the first kind's have of their own."""
        changed = {**dict.fromkeys(option.engine), **settings_of_kind(part.kind, self.demand), **part.engine}
        engine = {key.removeprefix("engine."): value for key, value in changed.items() if key != "profile"}
        return {"replicas": part.replicas, "profile": part.kind.reference, "engine": engine}

    def judge(self, fleets: Sequence[Settings]) -> Asking[list[Verdict]]:
        """Each under every seed."""
        summaries = yield [(settings, seed) for settings in fleets for seed in self.seeds]
        table = Experiment.of(product(range(len(fleets)), [None], self.seeds), summaries)
        return [Verdict.of(runs.summaries, self.limits) for _, _, runs in table]

    def capacity(self, engine: Mapping[str, Any]) -> Asking[tuple[float | None, Verdict]]:
        """One replica's highest rate, and what the lowest one that was tried says where none holds."""
        option, held, failed, rate = Option(engine, self.routers[0]), 0.0, inf, self.demand.rate
        while True:
            (verdict,) = yield from self.judge([self.fleet(rate, 1, option)])
            if verdict.is_kept:
                held = rate
                if failed == inf:  # the whole traffic fits on one: more is not asked
                    return held, verdict
            else:
                failed = rate
                if not held and (verdict.concurrency < ALONE or rate * self.max_replicas < self.demand.rate):
                    return None, verdict
            if failed <= PRECISION * held:
                return held, verdict
            rate = (held * failed) ** 0.5 if held else min(failed / 2, max(verdict.throughput * 0.9, failed / 16))

    def better_settings(self, capacity: float) -> Asking[list[tuple[float, Mapping[str, Any]]]]:
        """Settings that raise the capacity, best first, each with the highest rate at which it was seen to hold.

        Tokens a step come first, then sequences beside the best of them.
        """
        ranked: list[tuple[float, Mapping[str, Any]]] = []
        for key, values in ((TOKENS, TOKENS_TRIED), (SEQS, SEQS_TRIED)):
            if key.removeprefix("engine.") in self.demand.scenario.engine.model_fields_set:
                continue
            best, engine = ranked[0] if ranked else (capacity, {})
            ranked = (yield from self._race(best, [{**engine, key: value} for value in values])) + ranked
        return ranked

    def _race(self, capacity: float, choices: list[Mapping[str, Any]]) -> Asking[list[tuple[float, Mapping[str, Any]]]]:
        """Which of them hold above the capacity, and how far: at 8 % more each round, until none is left."""
        alive = [engine for engine in choices if self.refusal(engine) is None]
        ranked: list[tuple[float, Mapping[str, Any]]] = []
        rate = capacity * BETTER
        while alive and rate < self.demand.rate * BETTER:
            verdicts = yield from self.judge([self.fleet(rate, 1, Option(engine, self.routers[0])) for engine in alive])
            held = sorted(((verdict.margin, i) for i, verdict in enumerate(verdicts) if verdict.is_kept), reverse=True)
            alive = [alive[i] for _, i in held]
            ranked = [(rate, engine) for engine in alive] + [entry for entry in ranked if entry[1] not in alive]
            rate *= BETTER
        return ranked

    def settle(self, sizing: Sizing) -> Asking[None]:
        """From rate / capacity replicas on to the number where one fewer fails."""
        assert sizing.capacity is not None
        replicas = max(1, ceil(self.demand.rate / sizing.capacity - 1e-9))
        step = max(1, replicas // 20)
        kept = None
        while replicas <= self.max_replicas:
            (verdict,) = yield from self.judge([self.fleet(self.demand.rate, replicas, sizing.option)])
            sizing.verdict = verdict
            if verdict.is_kept:
                kept = replicas
                break
            replicas += step
        if kept is None:
            return
        sizing.replicas = kept
        while sizing.replicas > 1 and (yield from self._one_fewer(sizing)):
            pass

    def _one_fewer(self, sizing: Sizing) -> Asking[bool]:
        """Whether one replica fewer holds: as it is, else with another router, or the next best settings."""
        assert sizing.replicas is not None
        replicas = sizing.replicas - 1
        (verdict,) = yield from self.judge([self.fleet(self.demand.rate, replicas, sizing.option)])
        if verdict.is_kept:
            sizing.replicas, sizing.verdict = replicas, verdict
            return True
        sizing.one_fewer = verdict
        others = [Option(sizing.option.engine, router) for router in self.routers if replicas > 1]
        others = [option for option in [*others, *sizing.runners_up] if option != sizing.option]
        verdicts = yield from self.judge([self.fleet(self.demand.rate, replicas, option) for option in others])
        for option, found in zip(others, verdicts, strict=True):
            if found.is_kept:
                sizing.option, sizing.replicas, sizing.verdict = option, replicas, found
                return True
        return False


def resolved_with(demand: Demand, settings: Settings) -> Resolved:
    """One replica with everything looked up."""
    return resolve(demand.scenario.override(settings, origin="plan"))


def refusal_of_settings(demand: Demand, settings: Settings) -> str | None:
    """What is wrong with these settings, in one line; None where they start."""
    try:
        resolved_with(demand, settings)
    except UserError as error:
        return error.problems[0].rule
    return None


def settings_of_kind(kind: ReplicaKind, demand: Demand) -> Settings:
    """The profile; a number of blocks belongs to the scenario's own alone."""
    own = demand.scenario.profile
    if kind.reference == own:
        return {}
    drop = {"engine.num_gpu_blocks_override": None} if demand.scenario.engine.num_gpu_blocks_override else {}
    return {"profile": kind.reference, **drop}
