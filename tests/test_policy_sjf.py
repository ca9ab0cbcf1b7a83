"""`sjf`: the shortest predicted output first."""

from __future__ import annotations

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.policies.sjf import ShortestJobFirst
from simbatch.sim.engine.record import RunRecord
from tests.engine_cases import MS, Row
from tests.test_policies import serve


def in_order(record: RunRecord) -> list[int]:
    return record.requests.scheduled_ps.argsort(kind="stable").tolist()


class TestByHand:
    """One seat; a step takes 10 ms, and 1 ms for each decode in it."""

    def test_the_shortest_first(self) -> None:
        rows: list[Row] = [(0, 4, n, 0, ()) for n in (9, 3, 30, 6)]
        assert in_order(serve(ShortestJobFirst(predictor_error=0), rows, max_num_seqs=1)) == [1, 3, 0, 2]

    def test_nobody_who_runs_is_interrupted(self) -> None:
        rows: list[Row] = [(0, 4, 100, 0, ()), (15 * MS, 4, 1, 0, ())]
        record = serve(ShortestJobFirst(predictor_error=0), rows, max_num_seqs=1)
        assert record.requests.scheduled_ps[1] == (10 + 99 * 11) * MS
        assert record.requests.num_preemptions.tolist() == [0, 0]

    def test_with_a_bound_a_request_is_put_off_by_a_share_of_it(self) -> None:
        """30 tokens at 0 s stand at 30 / (30 + 10) = 0.75 s; 10 tokens at 0.2 s stand at 0.7, at 0.3 s at 0.8 s."""
        policy = ShortestJobFirst(predictor_error=0, max_overtaking_s=1.0, typical_output_tokens=10)
        first: Row = (0, 4, 29, 0, ())  # stands at 29 / 39 = 0.74 and runs until 0.32 s, when all have come
        rows: list[Row] = [first, (0, 4, 30, 0, ()), (200 * MS, 4, 10, 0, ()), (300 * MS, 4, 10, 0, ())]
        assert in_order(serve(policy, rows, max_num_seqs=1)) == [0, 2, 1, 3]
        assert policy.starvation_bound_s() == 1.0

    def test_the_order_is_the_predictors(self) -> None:
        """The worse it is, the more pairs stand the wrong way round; what is predicted is never far off on average."""
        rows: list[Row] = [(0, 4, n, 0, ()) for n in range(1, 100)]
        wrong = []
        for error in (0.0, 0.5, 2.0):
            order = in_order(serve(ShortestJobFirst(predictor_error=error), rows, max_num_seqs=1))
            wrong.append(sum(a > b for i, a in enumerate(order) for b in order[i:]))
        assert wrong[0] == 0
        assert 0 < wrong[1] < wrong[2] < 99 * 98 / 4  # half of the pairs: no better than chance


def mean_latency_s(request_rate: float, **policy: object) -> float:
    latencies = []
    for seed in range(3):
        scenario = Scenario.from_dict(
            {
                "profile": "h100-llama-3.1-8b-bf16",
                "seed": seed,
                "engine": {"max_num_seqs": 32},
                "policy": policy,
                "workload": {
                    "num_prompts": 600,
                    "request_rate": request_rate,
                    "prompt_len": {"distribution": "lognormal", "mean": 200, "cv": 1.0, "max": 2048},
                    "output_len": {"distribution": "lognormal", "mean": 200, "cv": 1.5, "max": 2048},
                },
            }
        )
        latencies.append(simulate(scenario).summary["mean_e2el_ms"] / 1000)
    return float(np.mean(latencies))


class TestPredictedLengths:
    """SSJF and learning to rank: mean latency against first come, first served, by load and by predictor."""

    def test_under_load_it_wins_and_the_gain_shrinks_with_the_predictors_error(self) -> None:
        fcfs = mean_latency_s(24, name="vllm")
        oracle, good, poor, useless = (
            mean_latency_s(24, name="sjf", predictor_error=error) for error in (0.0, 1.0, 2.0, 10.0)
        )
        assert oracle < 0.7 * fcfs
        assert oracle < good < 0.95 * poor
        assert poor < 0.9 * useless
        assert useless == pytest.approx(fcfs, rel=0.25)

    def test_the_gain_grows_with_the_load_from_nothing(self) -> None:
        gains = [1 - mean_latency_s(rate, name="sjf") / mean_latency_s(rate, name="vllm") for rate in (10, 20, 24)]
        assert gains[0] == pytest.approx(0, abs=0.01)
        assert gains[1] > 0.03
        assert gains[2] > gains[1] + 0.1

    def test_a_bound_costs_some_of_the_gain(self) -> None:
        fcfs, free = mean_latency_s(24, name="vllm"), mean_latency_s(24, name="sjf")
        bounded = mean_latency_s(24, name="sjf", max_overtaking_s=5.0)
        assert free < bounded < fcfs
