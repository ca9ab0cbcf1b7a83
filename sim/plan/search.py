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

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, TypeVar

from simbatch.sim.errors import UserError
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.plan.demand import Demand, Settings
from simbatch.sim.plan.kinds import ReplicaKind
from simbatch.sim.results.runs import Summary, refusal_of
from simbatch.sim.scenario import Resolved, resolve
from simbatch.sim.tuning.goal import Limit

Found = TypeVar("Found")
Key = TypeVar("Key", bound=Hashable)
Asked = list[tuple[Settings, int]]
Asking = Generator[Asked, list[Summary], Found]
Evaluate = Callable[[Sequence[tuple[Settings, int]]], list[Summary]]

PRECISION = 1.05  # of one replica's capacity
BETTER = 1.08  # by which settings must raise it
ALONE = 0.05  # with so few requests in the system on average, a lower rate changes nothing
MAX_REFUSED = 0.001  # share of the requests that may be rejected or refused
SEQS, TOKENS = "engine.max_num_seqs", "engine.max_num_batched_tokens"
SEQS_TRIED, TOKENS_TRIED = (32, 64, 128, 256, 512), (1024, 2048, 4096, 8192, 16384)
ROUTERS = ("least_requests", "prefix_aware", "round_robin")
REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    """What the runs of one fleet at one rate say of the limits: the worst run of each figure."""

    values: Mapping[str, float | None]
    excess: Mapping[str, float]  # by which share each limit is broken (above 0) or kept (below)
    is_overloaded: bool
    refused_share: float
    throughput: float  # requests per second, the least
    output_throughput: float
    input_throughput: float
    concurrency: float

    @classmethod
    def of(cls, summaries: Sequence[Summary], limits: Sequence[Limit]) -> Verdict:
        """Of the runs under several seeds."""
        figures = [{limit.metric.key: limit.metric.of(summary) for limit in limits} for summary in summaries]
        worst = [max(figures, key=lambda run, key=limit: key.excess(run[key.metric.key])) for limit in limits]  # type: ignore[misc]
        values = {limit.metric.key: run[limit.metric.key] for limit, run in zip(limits, worst, strict=True)}
        return cls(
            values=values,
            excess={limit.metric.key: limit.excess(values[limit.metric.key]) for limit in limits},
            is_overloaded=any(refusal_of(summary) == OVERLOADED for summary in summaries),
            refused_share=max(map(_refused_share, summaries)),
            throughput=min(float(summary["request_throughput"] or 0.0) for summary in summaries),
            output_throughput=_mean([float(summary["output_throughput"] or 0.0) for summary in summaries]),
            input_throughput=_mean([_input_throughput(summary) for summary in summaries]),
            concurrency=max(summary["simbatch"]["mean_concurrent_requests"] or 0.0 for summary in summaries),
        )

    @property
    def broken(self) -> dict[str, float]:
        """What is broken, by which share; a growing queue and refused requests among them."""
        found = {key: excess for key, excess in self.excess.items() if excess > 0}
        if self.is_overloaded:
            found[OVERLOADED] = inf
        if self.refused_share > MAX_REFUSED:
            found[REFUSED] = self.refused_share
        return found

    @property
    def is_kept(self) -> bool:
        """Whether every limit is kept."""
        return not self.broken

    @property
    def margin(self) -> float:
        """By how much the limit that is nearest is kept; below 0 where it is broken."""
        return -max([*self.excess.values(), *self.broken.values()], default=-1.0)

    @property
    def nearest(self) -> str | None:
        """What is broken most, or would be next."""
        return max(self.broken or self.excess, key=lambda key: (self.broken or self.excess)[key], default=None)


@dataclass(frozen=True)
class Option:
    """Engine settings, and the router before them."""

    engine: Mapping[str, Any]
    router: str


@dataclass
class Sizing:
    """What came of one kind: `replicas` keep the limits (None: no number does), under `option`, as `verdict` says.

    `capacity` is one replica's, in requests per second; `refusal` says why the kind cannot be simulated at all.
    """

    kind: ReplicaKind
    option: Option
    capacity: float | None = None
    replicas: int | None = None
    verdict: Verdict | None = None
    one_fewer: Verdict | None = None
    refusal: str | None = None
    runners_up: list[Option] = field(default_factory=list)

    @property
    def num_gpus(self) -> int | None:
        """GPUs of all replicas."""
        return None if self.replicas is None else self.replicas * self.kind.tensor_parallel_size


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
    ) -> None:
        self.kind, self.demand, self.limits, self.seeds, self.routers = kind, demand, limits, seeds, routers
        self.max_replicas = max_replicas
        self._own = _settings_of_kind(kind, demand)

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
        if replicas > 1:
            settings |= {"cluster": {"replicas": replicas, "router": {"name": option.router}}}
        return settings

    def judge(self, fleets: Sequence[Settings]) -> Asking[list[Verdict]]:
        """Each under every seed."""
        summaries = yield [(settings, seed) for settings in fleets for seed in self.seeds]
        n = len(self.seeds)
        return [Verdict.of(summaries[i * n : (i + 1) * n], self.limits) for i in range(len(fleets))]

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


def _settings_of_kind(kind: ReplicaKind, demand: Demand) -> Settings:
    """The profile; a number of blocks belongs to the scenario's own alone."""
    own = demand.scenario.profile
    if kind.reference == own:
        return {}
    drop = {"engine.num_gpu_blocks_override": None} if demand.scenario.engine.num_gpu_blocks_override else {}
    return {"profile": kind.reference, **drop}


def _refused_share(summary: Summary) -> float:
    requests = summary["simbatch"]["requests"]
    lost = sum(int(requests.get(kind, 0)) for kind in ("rejected", "refused"))
    return lost / max(1, int(requests["total"]))


def _input_throughput(summary: Summary) -> float:
    duration = summary["duration"]
    return float(summary["total_input_tokens"]) / duration if duration else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
