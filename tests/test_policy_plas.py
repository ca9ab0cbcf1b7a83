"""Program-level attained service: short programs end sooner under load, long ones pay for it."""

from __future__ import annotations

import random

import numpy as np

from simbatch.policies.plas import ProgramAttainedService
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.plugins.testing.cases import MS, ListSource
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import turns_of, whole_prompts

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
