"""Random engine scenarios, small enough to run by the hundred and nasty enough to reach every branch."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.policies.adaptive import Adaptive
from simbatch.policies.fixed import Fixed
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.host import FrontEndTimes, HostTimes, LaunchTimes, NoiseDraws, WindowCost
from simbatch.sim.cost.model import CostModel, LinearCost, PiecewiseLinear, TwoRegimeCost
from simbatch.sim.cost.step_time import Ratios, StepNoise
from simbatch.sim.engine import run, stepwise
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.plugins.policy import POLICIES, EngineView, Policy, RequestView
from simbatch.sim.plugins.testing import MS, ListSource, Row, random_config, random_cost, random_source
from simbatch.sim.scheduler.config import EngineConfig

__all__ = ["MS", "Case", "ListSource", "Row", "itl_ps", "random_case"]

# Of two requests of one priority and one moment of arrival vLLM preempts the longer running one: with memory for one of
# them they take each other's blocks for ever. The engine gives up after a million steps, here after fewer.
stepwise.MAX_FRUITLESS_STEPS = 5_000

NOISE = StepNoise(
    decode=Ratios(share=(0, 0.5, 0.9, 0.99, 1), ratio=(0.92, 0.95, 1.05, 1.5, 2.05)),
    mixed=Ratios(share=(0, 1), ratio=(0.6, 1.4)),
)


@dataclass
class Case:
    config: EngineConfig
    cost: CostModel
    policy: Policy
    source: ListSource
    noise_seed: int | None = None
    spread: dict[str, Ratios] | None = None  # of launches, by kind

    def noise(self) -> NoiseDraws | None:
        """Draws from their beginning, for one run."""
        return None if self.noise_seed is None else NOISE.draws(self.noise_seed)

    def host_noise(self) -> LaunchDraws | None:
        """Draws of launches from their beginning, for one run."""
        return None if self.spread is None else LaunchDraws(self.spread)

    def run(self, **options: Any) -> RunRecord:
        """Simulate it."""
        draws = {"noise": self.noise(), "host_noise": self.host_noise()}
        return run(self.config, self.cost, self.policy, self.source, **draws, **options)


class LaunchDraws:
    """Draws of launches, as simple as they can be."""

    def __init__(self, spread: dict[str, Ratios]) -> None:
        self._tables = {kind: ratios.table() for kind, ratios in spread.items()}
        self._rng = random.Random(1)

    def draws_for(self, kind: str) -> bool:
        return kind in self._tables

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        return mean_ps * self._tables[kind][self._rng.randrange(1 << 14)] >> 24


def timed_case(seed: int) -> Case:
    """A random case whose host and front end take times of every order of magnitude beside the device's."""
    rng = random.Random(seed)
    case = random_case(seed)
    case.noise_seed = rng.choice([None, None, None, seed])
    case.config = replace(case.config, **random_times(rng))
    if rng.random() < 0.4:
        case.spread = dict.fromkeys(rng.choice([("piecewise", "none"), ("none",), ("graph", "none")]), NOISE.mixed)
    if rng.random() < 0.3:
        case.source.max_concurrency, case.source.think_time_ps = rng.choice([1, 3, 16]), rng.choice([0, 20 * MS])
    return case


def random_times(rng: random.Random) -> dict[str, Any]:
    """Settings of a host and a front end."""

    def up_to(most_ps: int) -> int:
        return rng.choice([0, rng.randrange(most_ps // 100 + 1), rng.randrange(most_ps), rng.randrange(most_ps)])

    def launch() -> LaunchTimes:
        return LaunchTimes(up_to(15 * MS), up_to(MS), up_to(2 * MS), up_to(MS // 50))

    host = HostTimes(
        graph=launch(),
        piecewise=launch(),
        none=launch(),
        update_base_ps=up_to(3 * MS),
        update_per_seq_ps=up_to(MS // 10),
        admit_base_ps=up_to(3 * MS),
        admit_per_prompt_token_ps=up_to(MS // 100),
        lag_ps=up_to(6 * MS),
        tail_ps=up_to(6 * MS),
    )
    front_end = FrontEndTimes(
        per_request_ps=up_to(8 * MS),
        per_prompt_token_ps=up_to(MS // 10),
        per_chunk_ps=up_to(2 * MS),
        network_ps=up_to(MS),
    )
    return {
        "host": rng.choice([None, host, host, host]),
        "front_end": rng.choice([None, front_end, front_end]),
        "max_capture_size": rng.choice([0, 4, 16, 512]),
        "api_server_count": rng.choice([1, 1, 3]),
        "max_num_queued_reqs": rng.choice([None, None, 4]),
        "max_num_queued_tokens": rng.choice([None, None, 600]),
    }


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    policy = random_policy(rng)
    config = random_config(rng, policy, is_vllm=isinstance(policy, VLLM))
    source = random_source(rng, config.max_model_len)
    case = Case(config, random_cost(rng), policy, source, rng.choice([None, seed]))
    if rng.random() < 0.4:
        case.cost = with_windows(case.cost, rng)
    return case


def with_windows(cost: LinearCost, rng: random.Random) -> TwoRegimeCost:
    """These four terms, and layers with a window that fills in the prompt, while it decodes, or never."""
    window = WindowCost(rng.choice([1, 8, 17, 60, 200, 10_000]), rng.choice([0, 777, 55_000]), 99_000, 1 << 30)
    tokens = [cost.base_ps + cost.per_prefill_token_ps * n for n in (0, 1000)]
    return TwoRegimeCost(
        decode=PiecewiseLinear([0, 1000], [cost.decode_ps(0), cost.decode_ps(1000)]),
        decode_context_ps=cost.decode_context_ps,
        tokens=PiecewiseLinear([0, 1000], tokens),
        seq_ps=cost.per_decode_seq_ps,
        seq_token_ps=0,
        context_ps=cost.per_context_token_ps,
        prefill_context_ps=cost.per_context_token_ps,
        attention_s=1e-9,
        windows=window,
    )


def random_policy(rng: random.Random) -> Policy:
    """vLLM's own in a third of the cases, one that ships, or one that takes several decisions in wild ways."""
    kind = rng.randrange(3)
    if kind == 0:
        return VLLM()
    if kind == 1:
        return wild_policy(rng)
    return rng.choice(
        [
            Fixed(batch_size=rng.choice([1, 3, 8])),
            Adaptive(target_tpot_ms=rng.choice([5, 20, 60]), adjustment_interval=rng.choice([1, 3])),
            Priority(max_batch_size=8, ageing_s=rng.choice([0.1, 3.0])),
            POLICIES.load(rng.choice(POLICIES.shipped), {}, folder=Path()),
        ]
    )


def wild_policy(rng: random.Random) -> Policy:
    """Some of all decisions but the whole plan, each from what a policy may look at."""
    chosen = {name: rng.choice(answers) for name, answers in WILD.items() if rng.random() < 0.4}
    if "lane" in chosen:
        chosen["order"] = lambda self, request: self.served[request.priority]
    kind = type(
        "Wild", (Policy,), {"disciplines": ("continuous", "static"), "__annotations__": {}, **COUNTING, **chosen}
    )
    return kind()


def _count(self: Any, request: RequestView) -> None:
    self.served[request.priority] += request.num_prompt_tokens
    self.kept.append(request)


def _start(self: Any, _engine: EngineView) -> None:
    self.served = dict.fromkeys(range(3), 0)
    self.kept: list[RequestView] = []


def _all_that_is_shown(self: Any) -> int:
    """A number made of everything that views kept since their admission say now."""
    return sum(
        3 * view.num_computed_tokens
        + 5 * view.num_output_tokens
        + 7 * view.num_wanted_tokens
        + 11 * view.num_preemptions
        + 13 * round(1e6 * (view.ttft_s or 0))
        for view in self.kept
    )


def _listen(self: Any, request: RequestView) -> None:
    self.served[request.priority] += _all_that_is_shown(self) % 23


def _late(limit_s: float) -> Any:
    return lambda self, request, engine: (
        "late" if engine.now_s - request.arrival_s + engine.step_time_s(request.num_prompt_tokens) > limit_s else None
    )


def _hold(delay_s: float, size: int) -> Any:
    return lambda self, head, engine: engine.now_s if engine.num_waiting >= size else head.arrival_s + delay_s


def _within(answer: Any, limit: str) -> Any:
    return lambda self, engine: max(1, min(getattr(engine, limit), answer(engine)))


COUNTING = {"predictor_error": 0.5, "start": _start, "admitted": _count}
WILD: dict[str, list[Any]] = {
    "order": [
        lambda self, request: request.predicted_output_tokens,
        lambda self, request: request.num_output_tokens % 3,
    ],
    "lane": [lambda self, request: request.priority],
    "hold": [_hold(0.01, 2), _hold(0.1, 5)],
    "shed": [
        _late(0.05),
        _late(0.2),
        lambda self, request, engine: "odd" if _all_that_is_shown(self) % 19 == 5 else None,
    ],
    "finished": [_listen],
    "reject": [
        lambda self, request, engine: (
            "slow" if engine.step_time_s(request.num_prompt_tokens) > 0.03 and engine.num_decoding > 2 else None
        )
    ],
    "victim": [lambda self, running: running[len(running) // 2]],
    "seats": [
        _within(
            lambda engine: engine.num_running + (engine.free_blocks > 0.3 * engine.num_usable_blocks), "max_num_seqs"
        ),
        _within(lambda engine: 1 + engine.num_waiting, "max_num_seqs"),
        _within(lambda engine: 1 + int(engine.step_time_s(0) * 1e3) % 7, "max_num_seqs"),
        lambda self, engine: 1 + _all_that_is_shown(self) % engine.max_num_seqs,
    ],
    "token_budget": [
        _within(lambda engine: engine.num_decoding + 8, "max_num_batched_tokens"),
        _within(lambda engine: int(engine.step_time_s(16) * 1e6) % 40, "max_num_batched_tokens"),
        _within(lambda engine: engine.num_waiting + 1, "max_num_batched_tokens"),
        lambda self, engine: 1 + _all_that_is_shown(self) % engine.max_num_batched_tokens,
    ],
}


FIGURES = ("num_steps", "num_preemptions", "num_recomputed_tokens", "num_truncated", "end_ps", "num_not_sent")
FIGURES += ("front_end_late_ps",)


def itl_ps(record: RunRecord) -> Counter[int]:
    """Every gap between two tokens of a request, token by token."""
    gaps = Counter(record.gaps.tolist())
    for row in record.token_rows:
        for j in range(row["num_steps"]):
            gaps[int(row["duration_ps"] + j * row["slope_ps"])] += int(row["num_regular"])
    return +gaps


def assert_same(expected: RunRecord, found: RunRecord, but: tuple[str, ...] = ()) -> None:
    """Request by request, in every column that is not in `but`, in every gap of tokens and in the run's own figures."""
    for field in fields(expected.requests):
        one, other = getattr(expected.requests, field.name), getattr(found.requests, field.name)
        if field.name not in but:
            assert np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other, field.name
    for name in FIGURES:
        assert getattr(expected, name) == getattr(found, name), name
    assert itl_ps(found) == itl_ps(expected)
