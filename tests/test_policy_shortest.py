"""The shortest first. `sjf`: by predicted output.

`srpt`: who has least left goes first, and takes a seat when that is worth it.

`mlfq`: short answers first, found out by what they have used.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from simbatch import Scenario
from simbatch.policies.mlfq import MultiLevelFeedback
from simbatch.policies.sjf import ShortestJobFirst
from simbatch.policies.srpt import ShortestRemainingFirst
from simbatch.sim.cost.model import LinearCost
from tests.engine_cases import MS, Row
from tests.made_scenarios import in_order, lognormal, serve, serving, under

RTX4090 = "rtx4090-llama-3.1-8b-bf16"
PROMPTS_COST = LinearCost(10 * MS, MS, MS, 0)


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


def mean_latency_s(request_rate: float, policy: str, **parameters: object) -> float:
    lengths = {"prompt_len": lognormal(200, 1.0, 2048), "output_len": lognormal(200, 1.5, 2048)}
    latencies = []
    for seed in range(3):
        scenario = serving(
            "h100-llama-3.1-8b-bf16", 600, request_rate, seed=seed, engine={"max_num_seqs": 32}, **lengths
        )
        latencies.append(under(scenario, policy, **parameters).summary["mean_e2el_ms"] / 1000)
    return float(np.mean(latencies))


class TestPredictedLengths:
    """SSJF and learning to rank: mean latency against first come, first served, by load and by predictor."""

    def test_under_load_it_wins_and_the_gain_shrinks_with_the_predictors_error(self) -> None:
        fcfs = mean_latency_s(24, "vllm")
        oracle, good, poor, useless = (
            mean_latency_s(24, "sjf", predictor_error=error) for error in (0.0, 1.0, 2.0, 10.0)
        )
        assert oracle < 0.7 * fcfs
        assert oracle < good < 0.95 * poor
        assert poor < 0.9 * useless
        assert useless == pytest.approx(fcfs, rel=0.25)

    def test_the_gain_grows_with_the_load_from_nothing(self) -> None:
        gains = [1 - mean_latency_s(rate, "sjf") / mean_latency_s(rate, "vllm") for rate in (10, 20, 24)]
        assert gains[0] == pytest.approx(0, abs=0.01)
        assert gains[1] > 0.03
        assert gains[2] > gains[1] + 0.1

    def test_a_bound_costs_some_of_the_gain(self) -> None:
        fcfs, free = mean_latency_s(24, "vllm"), mean_latency_s(24, "sjf")
        bounded = mean_latency_s(24, "sjf", max_overtaking_s=5.0)
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
        rows: list[Row] = [(0, 40, 20, 0, ()), (55 * MS, 4, output, 0, ())]
        for weigh, is_taken in ((True, is_worth_it), (False, True)):
            policy = ShortestRemainingFirst(predictor_error=0, weigh_recompute=weigh)
            record = serve(policy, rows, cost=PROMPTS_COST, max_num_seqs=1, num_gpu_blocks=99)
            assert (record.requests.num_preemptions[0] == 1) == is_taken

    def test_a_newcomer_that_does_not_fit_holds_back_nobody_who_runs(self) -> None:
        """Ten blocks: it is the shortest and needs seven; two are free, and the one that would give way has four."""
        rows: list[Row] = [(0, 50, 12, 0, ()), (0, 50, 100, 0, ()), (25 * MS, 110, 1, 0, ())]
        policy = ShortestRemainingFirst(predictor_error=0, preemptible_share=0.1)
        record = serve(policy, rows, num_gpu_blocks=11, max_model_len=160)
        assert [len(row.scheduled) for row in (record.steps or [])[:12]] == [2] * 12


class Served(NamedTuple):
    """Means over two or three seeds."""

    latency_s: float
    ttft_s: float
    latency_per_token_s: float
    num_recomputed_tokens: float


def served(scenarios: list[Scenario], policy: str, parameters: dict[str, Any]) -> Served:
    rows = []
    for scenario in scenarios:
        result = under(scenario, policy, **parameters)
        e2el_s = result.requests["e2el_s"]
        per_token_s = (e2el_s / result.requests["num_output_tokens"]).mean()
        rows.append((e2el_s.mean(), result.requests["ttft_s"].mean(), per_token_s, result.record.num_recomputed_tokens))
    return Served(*np.mean(rows, axis=0))


@cache
def chat(policy: str, request_rate: float) -> Served:
    """Eight requests a step on an RTX 4090: prompts of 200 tokens, outputs of 100 with a long tail."""
    is_mlfq = policy == "mlfq"  # its seats are of all who have begun, and its steps hold eight of them
    engine, parameters = {"max_num_seqs": 64 if is_mlfq else 8}, {"max_batch_size": 8} if is_mlfq else {}
    lengths = {"prompt_len": lognormal(200, 1.0, 4000), "output_len": lognormal(100, 2.0, 2000)}
    of = [serving(RTX4090, 150, request_rate, seed=seed, engine=engine, **lengths) for seed in range(2)]
    return served(of, policy, parameters)


@cache
def long_prompts(policy: str, **parameters: object) -> Served:
    """Prompts of 1500 tokens for outputs of 60, and memory for ten: what a seat costs is dear to compute again."""
    engine = {"num_gpu_blocks_override": 1000, "max_model_len": 8192, "enable_prefix_caching": False}
    lengths = {"prompt_len": lognormal(1500, 0.3, 4000), "output_len": lognormal(60, 1.5, 1000)}
    return served([serving(RTX4090, 100, 5.0, seed=n, engine=engine, **lengths) for n in range(3)], policy, parameters)


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


class TestMlfqByHand:
    """One request a step; a step takes 10 ms, and 1 ms for each decode in it: tokens at 10, 21, 32, ... ms."""

    ROWS: ClassVar[list[Row]] = [(0, 4, 20, 0, ()), (35 * MS, 4, 2, 0, ())]

    def test_who_has_used_its_quantum_makes_way_and_keeps_its_blocks(self) -> None:
        """The first has used 32 of 30 ms when the second comes; at 43 ms its step is over, and it stands aside."""
        requests = serve(MultiLevelFeedback(quantum_s=0.03, max_batch_size=1), self.ROWS).requests
        assert (requests.finish_ps / MS).tolist() == [10 + 19 * 11 + 21, 43 + 10 + 11]
        assert requests.num_preemptions.tolist() == [0, 0]

    def test_until_then_it_is_first_come_first_served(self) -> None:
        requests = serve(MultiLevelFeedback(quantum_s=0.3, max_batch_size=1), self.ROWS).requests
        assert (requests.finish_ps / MS).tolist() == [10 + 19 * 11, 10 + 19 * 11 + 21]

    def test_where_seats_are_short_it_loses_them(self) -> None:
        requests = serve(MultiLevelFeedback(quantum_s=0.03, max_batch_size=1), self.ROWS, max_num_seqs=1).requests
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
        rows: list[Row] = [(0, 100, 2, 0, ()), (0, 40, 2, 0, ()), (0, 4, 2, 0, ())]
        policy = MultiLevelFeedback(quantum_s=0.03, max_batch_size=1)
        record = serve(policy, rows, cost=PROMPTS_COST, max_num_seqs=9, num_gpu_blocks=99)
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


class TestFastServe:
    """Wu et al., figure 11: latency per token against the request rate, by both orders in the same engine."""

    def test_under_load_short_answers_no_longer_wait_behind_long_ones(self) -> None:
        fcfs, mlfq = (chat(policy, 6.0) for policy in ("vllm", "mlfq"))
        assert mlfq.latency_s < 0.85 * fcfs.latency_s
        assert mlfq.latency_per_token_s < 0.5 * fcfs.latency_per_token_s
        assert mlfq.ttft_s < 0.2 * fcfs.ttft_s

    def test_it_needs_to_know_nothing_to_come_near_a_predictor(self) -> None:
        fcfs, mlfq, sjf = (chat(policy, 6.0).latency_s for policy in ("vllm", "mlfq", "sjf"))
        assert fcfs - mlfq > 0.5 * (fcfs - sjf)

    def test_at_low_load_there_is_nothing_to_gain(self) -> None:
        assert chat("mlfq", 2.0).latency_s == pytest.approx(chat("vllm", 2.0).latency_s, rel=0.01)
