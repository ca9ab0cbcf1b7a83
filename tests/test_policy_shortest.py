"""The shortest first. `sjf`: by predicted output.

`srpt`: who has least left goes first, and takes a seat when that is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.policies.sjf import ShortestJobFirst
from simbatch.policies.srpt import ShortestRemainingFirst
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.scheduler.config import EngineConfig
from tests.engine_cases import MS, ListSource, Row
from tests.test_policies import serve


def in_order(record: RunRecord) -> list[int]:
    return record.requests.scheduled_ps.argsort(kind="stable").tolist()


class TestSjfByHand:
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


class TestSrptByHand:
    """One seat; a step takes 10 ms, and 1 ms for each decode in it: tokens at 10, 21, 32, ... ms."""

    @pytest.mark.parametrize(
        ("output", "scheduled_ms", "why"),
        [
            (2, 32, "at 32 ms the first has 20 - 3 = 17 tokens left, more than 2"),
            (16, 32, "more than 16, too"),
            (17, 10 + 19 * 11, "but not more than 17"),
        ],
    )
    def test_a_shorter_newcomer_takes_the_seat(self, output: int, scheduled_ms: int, why: str) -> None:
        rows: list[Row] = [(0, 4, 20, 0, ()), (25 * MS, 4, output, 0, ())]
        requests = serve(ShortestRemainingFirst(predictor_error=0), rows, max_num_seqs=1).requests
        assert requests.scheduled_ps[1] == scheduled_ms * MS, why
        assert requests.num_preemptions.tolist() == [int(scheduled_ms == 32), 0]

    @pytest.mark.parametrize(("arrival_ms", "scheduled_ms"), [(40, 43), (50, 10 + 9 * 11)])
    def test_who_has_its_share_keeps_the_seat(self, arrival_ms: int, scheduled_ms: int) -> None:
        """Half of ten tokens are there at 54 ms."""
        rows: list[Row] = [(0, 4, 10, 0, ()), (arrival_ms * MS, 4, 1, 0, ())]
        policy = ShortestRemainingFirst(predictor_error=0, preemptible_share=0.5)
        assert serve(policy, rows, max_num_seqs=1).requests.scheduled_ps[1] == scheduled_ms * MS

    @pytest.mark.parametrize(("output", "is_worth_it"), [(9, True), (12, False)])
    def test_what_is_computed_again_is_weighed(self, output: int, is_worth_it: bool) -> None:
        """A prompt token takes 1 ms. At 61 ms the first has 41 tokens, as long as 41 / 11 = 3.7 steps; two are held up
        by it: the newcomer must be shorter than the 18 that are left by more than 7.5."""
        config = EngineConfig(
            max_num_seqs=1,
            max_num_batched_tokens=256,
            max_model_len=256,
            num_gpu_blocks=99,
            enable_prefix_caching=False,
        )
        rows: list[Row] = [(0, 40, 20, 0, ()), (55 * MS, 4, output, 0, ())]
        for weigh, is_taken in ((True, is_worth_it), (False, True)):
            policy = ShortestRemainingFirst(predictor_error=0, weigh_recompute=weigh)
            record = run(config, LinearCost(10 * MS, MS, MS, 0), policy, ListSource(rows))
            assert (record.requests.num_preemptions[0] == 1) == is_taken

    def test_a_newcomer_that_does_not_fit_holds_back_nobody_who_runs(self) -> None:
        """Ten blocks: it is the shortest and needs seven; two are free, and the one that would give way has four."""
        rows: list[Row] = [(0, 50, 12, 0, ()), (0, 50, 100, 0, ()), (25 * MS, 110, 1, 0, ())]
        policy = ShortestRemainingFirst(predictor_error=0, preemptible_share=0.1)
        record = serve(policy, rows, num_gpu_blocks=11, max_model_len=160)
        assert [len(row.scheduled) for row in (record.steps or [])[:12]] == [2] * 12


@dataclass
class Served:
    """Means over two or three seeds."""

    latency_s: float
    ttft_s: float
    num_recomputed_tokens: float


def served(
    policy: str, engine: dict[str, object], workload: dict[str, object], seeds: int, **parameters: object
) -> Served:
    rows = []
    for seed in range(seeds):
        scenario = Scenario.from_dict(
            {
                "profile": "rtx4090-llama-3.1-8b-bf16",
                "seed": seed,
                "engine": engine,
                "policy": {"name": policy, **parameters},
                "workload": workload,
            }
        )
        result = simulate(scenario)
        mean_s = (result.summary[key] / 1000 for key in ("mean_e2el_ms", "mean_ttft_ms"))
        rows.append((*mean_s, result.record.num_recomputed_tokens))
    return Served(*np.mean(rows, axis=0))


def chat(policy: str, request_rate: float) -> Served:
    """Prompts of 200 tokens, outputs of 100 with a long tail, eight seats."""
    workload = {
        "num_prompts": 150,
        "request_rate": request_rate,
        "prompt_len": {"distribution": "lognormal", "mean": 200, "cv": 1.0, "max": 4000},
        "output_len": {"distribution": "lognormal", "mean": 100, "cv": 2.0, "max": 2000},
    }
    return served(policy, {"max_num_seqs": 8}, workload, 2)


@cache
def long_prompts(policy: str, **parameters: object) -> Served:
    """Prompts of 1500 tokens for outputs of 60, and memory for ten: what a seat costs is dear to compute again."""
    engine = {"num_gpu_blocks_override": 1000, "max_model_len": 8192, "enable_prefix_caching": False}
    workload = {
        "num_prompts": 100,
        "request_rate": 5.0,
        "prompt_len": {"distribution": "lognormal", "mean": 1500, "cv": 0.3, "max": 4000},
        "output_len": {"distribution": "lognormal", "mean": 60, "cv": 1.5, "max": 1000},
    }
    return served(policy, engine, workload, 3, **parameters)


class TestTrail:
    """Shahout et al.: mean latency and mean TTFT by request rate, and by how late a request may be preempted."""

    def test_under_load_latency_and_ttft_are_far_below_first_come_first_served(self) -> None:
        fcfs, sjf, srpt = (chat(policy, 6.0) for policy in ("vllm", "sjf", "srpt"))
        assert srpt.latency_s < 0.8 * fcfs.latency_s
        assert srpt.ttft_s < 0.3 * fcfs.ttft_s
        assert srpt.latency_s < 0.95 * sjf.latency_s  # what preemption adds
        assert srpt.ttft_s < 0.5 * sjf.ttft_s

    def test_at_low_load_there_is_nothing_to_gain(self) -> None:
        assert chat("srpt", 2.0).latency_s == pytest.approx(chat("vllm", 2.0).latency_s, rel=0.01)

    def test_the_later_a_request_may_be_preempted_the_more_is_computed_again_and_the_longer_all_wait(self) -> None:
        """Where that is dear; the paper's rule alone."""
        never, early, late = (
            long_prompts("srpt", preemptible_share=share, weigh_recompute=False) for share in (0.0, 0.2, 1.0)
        )
        assert 10 * never.num_recomputed_tokens < early.num_recomputed_tokens < 0.95 * late.num_recomputed_tokens
        assert 1.3 * never.latency_s < early.latency_s < 0.97 * late.latency_s

    def test_weighed_preemption_never_costs_what_unweighed_does(self) -> None:
        unweighed, weighed = (long_prompts("srpt", weigh_recompute=weigh) for weigh in (False, True))
        fcfs = long_prompts("vllm")
        assert weighed.num_recomputed_tokens < 0.5 * unweighed.num_recomputed_tokens
        assert weighed.latency_s < fcfs.latency_s < 0.8 * unweighed.latency_s
        assert weighed.ttft_s < 0.8 * fcfs.ttft_s
