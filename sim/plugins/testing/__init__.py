"""The contract test of policies and routers alike: their rules, tried on random cases until one is broken.

Cases are small enough to run by the hundred, and nasty enough to reach all code.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from simbatch.sim.cost.host import HostTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.record import RunRecord, differences
from simbatch.sim.errors import UserError
from simbatch.sim.plugins import Plugin
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.chunk import RequestChunk
from simbatch.sim.workload.turns import Turns, turns_of, whole_prompts

MS = 10**9  # ps
CHUNK = 7  # requests, so that several are needed
NUM_GROUPS = 4  # of requests whose prompts begin alike
Row = tuple[int, int, int, int, tuple[int, ...]]  # arrival_ps, prompt, output, priority, hashes


class BrokenRuleError(AssertionError):
    """A policy or a router breaks a rule; says which, on which of the random cases, and how."""


class Case(Protocol):
    """An engine or a cluster, with its requests."""

    def run(self, made: Any, /, *, spans: bool) -> RunRecord:
        """Simulate it under a policy, behind a router."""


C = TypeVar("C", bound=Case)


@dataclass(frozen=True)
class TriedCase(Generic[C]):
    """What happened in one random case, simulated step by step; `again(spans=...)` is the same case and object."""

    made: Any
    case: C
    record: RunRecord
    again: Callable[..., RunRecord]


Rule = Callable[[TriedCase[C]], Iterator[str]]


@dataclass(frozen=True)
class Checked:
    """What was tried, and how much of it; `skipped` are rules that it is free of, with the reason."""

    num_cases: int
    num_requests: int
    num_steps: int
    num_replicas: int
    rules: tuple[str, ...]
    skipped: dict[str, str]


def check(
    made: Plugin,
    random_case: Callable[[int], C],
    rules: Mapping[str, Rule[C]],
    broken: type[BrokenRuleError],
    *,
    skipped: Mapping[str, str],
    num_cases: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Checked:
    """Try every rule on so many random cases from number `seed` on; raises `broken` at the first that does not hold."""
    says = f"{type(made).__name__} breaks the rule"
    if (fault := parameters_fault(made)) is not None:
        raise broken(f"{says} 'parameters': {fault}")
    asked = {name: rule for name, rule in rules.items() if name not in skipped}
    num_requests = num_steps = num_replicas = 0
    for number in range(seed, seed + num_cases):
        case = random_case(number)
        try:
            record = case.run(made, spans=False)
        except UserError as error:
            raise broken(f"{says} 'answers' in case {number}: {error}") from error
        num_requests, num_steps = num_requests + len(record.requests), num_steps + record.num_steps
        num_replicas += record.num_replicas
        for name, rule in asked.items():
            if fault := next(rule(TriedCase(made, case, record, partial(case.run, made))), None):
                raise broken(f"{says} {name!r} in case {number}: {fault}")
        if progress is not None:
            progress(number - seed + 1)
    names = ("parameters", "answers", *asked)
    return Checked(num_cases, num_requests, num_steps, num_replicas, names, dict(skipped))


def parameters_fault(made: Plugin) -> str | None:
    """Why what YAML and JSON give back does not make the same plugin; None where it does."""
    parameters = made.parameters()
    try:
        again = type(made)(**json.loads(json.dumps(parameters)))
    except (TypeError, ValueError) as error:
        return str(error)
    return None if again.parameters() == parameters else f"{again.parameters()} of {parameters}"


def determinism(trial: TriedCase[C]) -> Iterator[str]:
    """An object does what it did when it is run again: its state is made in `start`."""
    yield from differences(trial.record, trial.again(spans=False), "run again, the same object does otherwise")


def spans(trial: TriedCase[C]) -> Iterator[str]:
    """Leaping over steps in which nothing changes gives the same: nothing hangs on being asked at each of them."""
    yield from differences(trial.record, trial.again(spans=True), "leaping over steps differs")


@dataclass
class ListSource:
    """Requests from a list, in short chunks; the tenants, if any, are those of the list, one a request."""

    rows: list[Row]
    hash_block_tokens: int = 0
    max_concurrency: int | None = None
    think_time_ps: int = 0
    skipped: int = 0
    tenants: list[str | None] | None = None
    num_requests: int | None = None  # for progress bars, which nobody watches here
    turns: Turns | None = None

    def chunks(self) -> Iterator[RequestChunk]:
        """In order of arrival."""
        for i in range(0, len(self.rows), CHUNK):
            arrivals, prompts, outputs, priorities, hashes = map(list, zip(*self.rows[i : i + CHUNK], strict=True))
            yield RequestChunk(
                arrivals,
                prompts,
                outputs,
                priorities,
                hash_ids=hashes if self.hash_block_tokens else None,
                tenant=self.tenants[i : i + CHUNK] if self.tenants else None,
            )


def random_config(rng: random.Random, policy: Policy, *, is_vllm: bool = False) -> EngineConfig:
    """Any engine that the policy may meet; memory is short in half of them."""
    block_size, max_model_len = rng.choice([1, 4, 16, 16, 32]), rng.choice([64, 128, 256])
    per_request = -(-max_model_len // block_size)
    max_num_seqs = rng.choice([1, 2, 5, 16, 40])
    budget = max(max_num_seqs, rng.choice([16, 48, 64, 100, 256]))
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        num_gpu_blocks=1 + per_request + rng.choice([0, 1, per_request // 2, per_request * 2, per_request * 10]),
        block_size=block_size,
        enable_prefix_caching=rng.random() < 0.5,
        enable_chunked_prefill=rng.random() < 0.85 or budget < max_model_len,
        scheduling_policy="priority" if is_vllm and rng.random() < 0.3 else "fcfs",
        long_prefill_token_threshold=rng.choice([0, 0, 0, 10, 30]),
        long_prefill_token_threshold_adaptive=rng.random() < 0.3,
        watermark=rng.choice([0.0, 0.0, 0.05, 0.2]),
        scheduler_reserve_full_isl=rng.random() < 0.8,
        async_scheduling=rng.random() < 0.5,
        batching=rng.choice(policy.disciplines),
        host=rng.choice([None, None, HostTimes(admit_base_ps=MS)]),
        seed=rng.randrange(100),
    )


def random_cost(rng: random.Random) -> LinearCost:
    """Steps of 6 or 10 ms, with and without terms for tokens, sequences and contexts."""
    return LinearCost(
        rng.choice([6, 10]) * MS, rng.choice([0, 45_000_000]), rng.choice([0, 90_000_000]), rng.choice([0, 351, 35_000])
    )


def random_source(rng: random.Random, max_model_len: int) -> ListSource:
    """Prompts share beginnings of hashes of 4 tokens; some are too long; some arrive at the same moment."""
    now, rate, rows = 0, rng.choice([0, 3, 30, 200]), list[Row]()
    for i in range(rng.choice([5, 20, 60])):
        if rate and rng.random() < 0.8:
            now += int(rng.expovariate(rate) * 1000) * MS
        longest = max_model_len + 2 if rng.random() < 0.1 else max_model_len // 2
        prompt, group = rng.randint(1, longest), rng.randrange(NUM_GROUPS)
        shared = min(prompt // 4, rng.randint(0, 20))
        hashes = [group * 1000 + j for j in range(shared)] + [(i + 9) * 10_000 + j for j in range(prompt // 4 - shared)]
        rows.append((now, prompt, rng.randint(1, max_model_len // 2), rng.randrange(3), tuple(hashes)))
    limit = rng.choice([None, None, None, 3])
    tenants = [rng.choice(["a", "b", "c", None]) for _ in rows] if rng.random() < 0.5 else None
    return ListSource(rows, 4, limit, rng.choice([0, 10 * MS]) if limit else 0, tenants=tenants)


def in_sessions(source: ListSource, seed: int) -> ListSource:
    """The requests of a source as turns: some wait for others, which may come later in the list, or for several."""
    rng, n = random.Random(seed), len(source.rows)
    awaited: list[list[int]] = []
    for row in range(n):
        num_others = min(row, rng.choice([0, 1, 1, 1, 1, 2, 3]))
        near = range(max(0, row - rng.choice([1, 3, 10])), row)
        awaited.append(sorted(rng.sample(near, min(num_others, len(near)))))
    if rng.random() < 0.3:  # the other way round
        awaited = [[n - 1 - other for other in others] for others in reversed(awaited)]
    delays = [rng.choice([0, 0, 5 * MS, 100 * MS]) for _ in range(n)]
    turns = turns_of(awaited, delays)
    lengths = whole_prompts(turns, [rng.randint(1, 30) for _ in range(n)], [row[2] for row in source.rows])
    rows = [
        (row[0] if rng.random() < 0.5 else 0, length, *row[2:])
        for row, length in zip(source.rows, lengths, strict=True)
    ]
    if rng.random() < 0.7:  # prompts that go on with the conversation; else they have lengths of their own
        source = replace(source, rows=rows)
    tokens = rng.choice([0, 0, 10, 50])
    system = array("q", [rng.randrange(2) for _ in range(turns.num_sessions)])
    users = rng.choice([None, None, 1, 2])
    turns = replace(turns, num_system_tokens=tokens, system=system, max_sessions=users)
    has_hashes = rng.random() < 0.3
    return replace(source, turns=turns, max_concurrency=None, hash_block_tokens=source.hash_block_tokens * has_hashes)
