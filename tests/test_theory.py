"""Queueing theory: where the answer is known, the simulation gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from simbatch.policies.fixed import Fixed
from simbatch.policies.vllm import VLLM
from simbatch.sim.clock import PS_PER_S, to_ps
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scheduler.config import EngineConfig
from tests.engine_cases import MS, ListSource

STEP_S = 0.010
CONSTANT_STEP = LinearCost(to_ps(STEP_S), 0, 0, 0)


def engine(max_num_seqs: int, batching: str = "continuous") -> EngineConfig:
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        num_gpu_blocks=10_000,
        enable_prefix_caching=False,
        batching=batching,
    )


def serve(arrivals_s: np.ndarray, outputs: np.ndarray, max_num_seqs: int = 1) -> RunRecord:
    rows = [(to_ps(a), 1, int(n), 0, ()) for a, n in zip(arrivals_s, outputs, strict=True)]
    return run(engine(max_num_seqs), CONSTANT_STEP, VLLM(), ListSource(rows))


def mean_wait_s(record: RunRecord) -> float:
    requests = record.requests
    warm = len(requests) // 10
    return float((requests.scheduled_ps - requests.arrival_ps)[warm:].mean() / PS_PER_S)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("service", ["one token", "geometric"])
def test_mean_wait_is_pollaczek_khinchine(load: float, service: str) -> None:
    """One seat and a constant step: M/D/1 with one output token, M/G/1 with geometric outputs, within 3 errors."""
    mean_tokens = 1.0 if service == "one token" else 5.0
    rate_per_s = load / (mean_tokens * STEP_S)
    variance = 0.0 if service == "one token" else mean_tokens * (mean_tokens - 1) * STEP_S**2
    second_moment = variance + (mean_tokens * STEP_S) ** 2
    expected_s = rate_per_s * second_moment / (2 * (1 - load))
    waits = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 77])
        outputs = rng.geometric(1 / mean_tokens, 4000)
        waits.append(mean_wait_s(serve(rng.exponential(1 / rate_per_s, 4000).cumsum(), outputs)))
    error_s = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert abs(np.mean(waits) - expected_s) < 3 * error_s


@pytest.mark.parametrize(("gap_s", "expected"), [(0.015, "nobody waits"), (0.008, "the queue grows by 2 ms each")])
def test_d_d_1_is_exact(gap_s: float, expected: str) -> None:
    record = serve(np.arange(50) * gap_s, np.ones(50, dtype=int))
    waits_ps = record.requests.scheduled_ps - record.requests.arrival_ps
    growth_ps = 0 if expected == "nobody waits" else 2 * MS
    assert waits_ps.tolist() == [i * growth_ps for i in range(50)]
    assert (record.requests.finish_ps - record.requests.scheduled_ps == 10 * MS).all()


def test_several_seats_in_lockstep_worked_by_hand() -> None:
    """Two seats, steps of 10 ms; all numbers in ms.

    A arrives at 0 with 3 tokens, B at 4 with 2, C at 5 with 1, D at 21 with 1.
    0-10: A. 10-20: A, B (C finds both seats taken). 20-30: A, B; both end. 30-40: C, D.
    """
    record = serve(np.array([0.0, 0.004, 0.005, 0.021]), np.array([3, 2, 1, 1]), max_num_seqs=2)
    requests = record.requests
    assert (requests.scheduled_ps // MS).tolist() == [0, 10, 30, 30]
    assert (requests.first_token_ps // MS).tolist() == [10, 20, 40, 40]
    assert (requests.finish_ps // MS).tolist() == [30, 30, 40, 40]
    assert record.num_steps == 4


def test_a_static_batch_runs_until_its_longest_member_ends() -> None:
    """Batches of two: (3 tokens, 1 token) end together at 30 ms; the third request waits for them, seat or no seat."""
    rows = [(0, 1, 3, 0, ()), (0, 1, 1, 0, ()), (0, 1, 2, 0, ())]
    record = run(engine(4, "static"), CONSTANT_STEP, Fixed(batch_size=2), ListSource(rows))
    assert (record.requests.scheduled_ps // MS).tolist() == [0, 0, 30]
    assert (record.requests.first_token_ps // MS).tolist() == [10, 10, 40]
    assert (record.requests.finish_ps // MS).tolist() == [30, 30, 50]
    assert record.segments["num_decodes"].tolist() == [0, 1, 0, 1]  # the ended member costs no more time


@pytest.mark.parametrize("draw", [lambda rng: rng.geometric(0.2, 500), lambda rng: rng.integers(1, 60, 500)])
def test_work_is_conserved(draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    """One seat: the device is busy exactly as long as all tokens take."""
    rng = np.random.default_rng(5)
    outputs = draw(rng)
    record = serve(rng.exponential(0.05, 500).cumsum(), outputs)
    spans = record.segments
    assert spans["num_steps"].sum() == outputs.sum()
    assert (spans["num_steps"] * spans["duration_ps"]).sum() == outputs.sum() * 10 * MS


@pytest.mark.parametrize(("is_async", "expected_ms"), [(False, 30), (True, 40)])
@pytest.mark.parametrize("late_ps", [0, 1])
def test_ties_are_exact(is_async: bool, expected_ms: int, late_ps: int) -> None:
    """An arrival at the very moment a step is planned is in it; a picosecond later it is not.

    Steps of 10 ms; 0.03 s is not a whole number of binary fractions of a second, yet three steps end at it exactly.
    Asynchronous: the step that starts at 30 ms was planned at 20 ms, so the next one has the newcomer.
    """
    config = dataclasses.replace(engine(4), async_scheduling=is_async)
    rows = [(0, 1, 10, 0, ()), (to_ps(0.03) + late_ps, 1, 1, 0, ())]
    record = run(config, CONSTANT_STEP, VLLM(), ListSource(rows))
    assert record.requests.scheduled_ps[1] == (expected_ms + (10 if late_ps else 0)) * MS
