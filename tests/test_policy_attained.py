"""By what has been used. `mlfq`: short answers first, found out by what they have used.

Program-level attained service: short programs end sooner under load, long ones pay for it.

Warm requests first: conversations are used before they are evicted, and nobody starves for it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.policies.mlfq import MultiLevelFeedback
from simbatch.policies.plas import ProgramAttainedService
from simbatch.policies.vllm import VLLM
from simbatch.policies.warm_first import WarmFirst
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import turns_of, whole_prompts
from tests.engine_cases import MS, ListSource, Row
from tests.test_policies import serve


class TestByHand:
    """One request a step; a step takes 10 ms, and 1 ms for each decode in it: tokens at 10, 21, 32, ... ms."""

    def test_who_has_used_its_quantum_makes_way_and_keeps_its_blocks(self) -> None:
        """The first has used 32 of 30 ms when the second comes; at 43 ms its step is over, and it stands aside."""
        rows: list[Row] = [(0, 4, 20, 0, ()), (35 * MS, 4, 2, 0, ())]
        requests = serve(MultiLevelFeedback(quantum_s=0.03, max_batch_size=1), rows).requests
        assert (requests.finish_ps / MS).tolist() == [10 + 19 * 11 + 21, 43 + 10 + 11]
        assert requests.num_preemptions.tolist() == [0, 0]

    def test_until_then_it_is_first_come_first_served(self) -> None:
        rows: list[Row] = [(0, 4, 20, 0, ()), (35 * MS, 4, 2, 0, ())]
        requests = serve(MultiLevelFeedback(quantum_s=0.3, max_batch_size=1), rows).requests
        assert (requests.finish_ps / MS).tolist() == [10 + 19 * 11, 10 + 19 * 11 + 21]

    def test_where_seats_are_short_it_loses_them(self) -> None:
        rows: list[Row] = [(0, 4, 20, 0, ()), (35 * MS, 4, 2, 0, ())]
        requests = serve(MultiLevelFeedback(quantum_s=0.03, max_batch_size=1), rows, max_num_seqs=1).requests
        assert requests.finish_ps[1] == (43 + 10 + 11) * MS
        assert requests.num_preemptions.tolist() == [1, 0]

    def test_a_level_below_has_twice_the_quantum(self) -> None:
        """The first sinks at 32 ms and at 32 + 66 ms; each time the other, on the level above by then, comes first."""
        rows: list[Row] = [(0, 4, 30, 0, ()), (0, 4, 30, 0, ())]
        record = serve(MultiLevelFeedback(quantum_s=0.03, max_batch_size=1), rows)
        turns = [row.scheduled[0][0] for row in record.steps or []]
        assert turns[:18] == [0] * 3 + [1] * 3 + [0] * 6 + [1] * 6

    def test_a_long_prompt_skips_the_levels_that_it_would_use_up(self) -> None:
        """A prompt token takes 1 ms: the first's 100 need 110, the level of 120; the second's 40 that of 60 ms."""
        config = EngineConfig(
            max_num_seqs=9,
            max_num_batched_tokens=256,
            max_model_len=256,
            num_gpu_blocks=99,
            enable_prefix_caching=False,
        )
        rows: list[Row] = [(0, 100, 2, 0, ()), (0, 40, 2, 0, ()), (0, 4, 2, 0, ())]
        policy = MultiLevelFeedback(quantum_s=0.03, max_batch_size=1)
        record = run(config, LinearCost(10 * MS, MS, MS, 0), policy, ListSource(rows))
        assert record.requests.first_token_ps.argsort().tolist() == [2, 1, 0]

    def test_nobody_starves(self) -> None:
        """Short ones keep the device busy for 4 s; the long one, sunk, rises each time it has waited for 0.2 s."""
        short: list[Row] = [(i * 20 * MS, 4, 2, 0, ()) for i in range(200)]
        rows = [(0, 4, 30, 0, ()), *short]
        finish_s = {}
        for promote_s in (0.2, 100.0):
            policy = MultiLevelFeedback(quantum_s=0.03, max_batch_size=1, promote_s=promote_s)
            finish_s[promote_s] = serve(policy, rows).requests.finish_ps[0] / 10**12
        assert finish_s[0.2] < 2.5
        assert finish_s[100.0] > 4.0


@dataclass
class Served:
    """Means over two seeds."""

    latency_s: float
    latency_per_token_s: float
    ttft_s: float


def served(policy: str, request_rate: float) -> Served:
    """Eight requests a step on an RTX 4090; outputs of 100 tokens with a long tail."""
    is_mlfq, rows = policy == "mlfq", []
    for seed in range(2):
        scenario = Scenario.from_dict(
            {
                "profile": "rtx4090-llama-3.1-8b-bf16",
                "seed": seed,
                "engine": {"max_num_seqs": 64 if is_mlfq else 8},
                "policy": {"name": policy, **({"max_batch_size": 8} if is_mlfq else {})},
                "workload": {
                    "num_prompts": 150,
                    "request_rate": request_rate,
                    "prompt_len": {"distribution": "lognormal", "mean": 200, "cv": 1.0, "max": 4000},
                    "output_len": {"distribution": "lognormal", "mean": 100, "cv": 2.0, "max": 2000},
                },
            }
        )
        requests = simulate(scenario).requests
        latency_s = requests["e2el_s"]
        per_token_s = latency_s / requests["num_output_tokens"]
        rows.append([column.mean() for column in (latency_s, per_token_s, requests["ttft_s"])])
    return Served(*np.mean(rows, axis=0))


class TestFastServe:
    """Wu et al., figure 11: latency per token against the request rate, by both orders in the same engine."""

    def test_under_load_short_answers_no_longer_wait_behind_long_ones(self) -> None:
        fcfs, mlfq = (served(policy, 6.0) for policy in ("vllm", "mlfq"))
        assert mlfq.latency_s < 0.85 * fcfs.latency_s
        assert mlfq.latency_per_token_s < 0.5 * fcfs.latency_per_token_s
        assert mlfq.ttft_s < 0.2 * fcfs.ttft_s

    def test_it_needs_to_know_nothing_to_come_near_a_predictor(self) -> None:
        fcfs, mlfq, sjf = (served(policy, 6.0).latency_s for policy in ("vllm", "mlfq", "sjf"))
        assert fcfs - mlfq > 0.5 * (fcfs - sjf)

    def test_at_low_load_there_is_nothing_to_gain(self) -> None:
        assert served("mlfq", 2.0).latency_s == pytest.approx(served("vllm", 2.0).latency_s, rel=0.01)


ENGINE = EngineConfig(
    max_num_seqs=4, max_num_batched_tokens=1024, max_model_len=8192, num_gpu_blocks=4000, enable_prefix_caching=True
)


def conversations(num: int, turns: list[int], *, gap_s: float, think_s: float = 0, seed: int = 1) -> ListSource:
    """Sessions that begin at random times, of one of these lengths each."""
    rng, awaited, delays, arrivals = random.Random(seed), list[list[int]](), list[int](), list[int]()
    now = 0
    for _ in range(num):
        now += int(rng.expovariate(1 / gap_s) * 1000) * MS
        for turn in range(rng.choice(turns)):
            awaited.append([len(awaited) - 1] if turn else [])
            delays.append(int(rng.expovariate(1 / think_s) * 1000) * MS if turn and think_s else 0)
            arrivals.append(0 if turn else now)
    outputs = [rng.randint(50, 150) for _ in awaited]
    known = turns_of(awaited, delays)
    prompts = whole_prompts(known, [rng.randint(100, 250) for _ in awaited], outputs)
    return ListSource([(a, p, o, 0, ()) for a, p, o in zip(arrivals, prompts, outputs, strict=True)], turns=known)


def figures(engine: EngineConfig, policy: Policy, source: ListSource) -> SessionFigures:
    found = SessionFigures.of(run(engine, LinearCost(6 * MS, 10**8, 9 * 10**7, 351), policy, source))
    assert found is not None
    return found


def durations_s(policy: Policy, source: ListSource) -> tuple[float, float]:
    """Mean time to finish of short and of long sessions."""
    sessions = figures(ENGINE, policy, source)
    assert source.turns is not None
    begun, ended = sessions._bounds_ps
    is_long = np.bincount(np.asarray(source.turns.session)) > 3
    took_s = (ended - begun) / 1e12
    return float(took_s[~is_long].mean()), float(took_s[is_long].mean())


def test_short_programs_end_sooner_under_load_and_promotion_bounds_what_long_ones_pay() -> None:
    source = conversations(150, [1, 1, 1, 2, 3, 15], gap_s=0.5)
    vllm, plas = durations_s(VLLM(), source), durations_s(ProgramAttainedService(), source)
    assert plas[0] < 0.5 * vllm[0]
    promoted = durations_s(ProgramAttainedService(promote_s=2), source)
    assert plas[0] < promoted[0] < vllm[0]
    assert vllm[1] < promoted[1] < 0.8 * plas[1]


def test_without_load_nothing_changes() -> None:
    source = conversations(20, [1, 3, 9], gap_s=30, seed=3)
    assert durations_s(ProgramAttainedService(), source) == durations_s(VLLM(), source)


@pytest.mark.parametrize("seed", [1, 2])
def test_more_is_found_in_a_cache_that_cannot_hold_all(seed: int) -> None:
    """Conversations of 8 turns, of which memory holds a part: SGLang's section 3 as a trend."""
    engine = replace(ENGINE, num_gpu_blocks=2000, max_num_seqs=12)
    source = conversations(100, [8], gap_s=0.6, think_s=4, seed=seed)
    vllm, warm = figures(engine, VLLM(), source), figures(engine, WarmFirst(), source)
    assert share(warm) > 2 * share(vllm)
    assert mean(warm, "without_thinking") < 0.7 * mean(vllm, "without_thinking")
    roomy = replace(engine, num_gpu_blocks=20_000)
    assert share(figures(roomy, WarmFirst(), source)) == pytest.approx(share(figures(roomy, VLLM(), source)), rel=0.02)


def share(sessions: SessionFigures) -> float:
    found = sessions.later_cached_tokens_share()
    assert found is not None
    return found


def mean(sessions: SessionFigures, name: str) -> float:
    found = sessions.latencies[name]["mean"]
    assert found is not None
    return found
