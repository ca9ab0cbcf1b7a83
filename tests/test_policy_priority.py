"""priority: its decisions by hand, and how far ageing lets classes drift apart (Jackson, 1962)."""

from __future__ import annotations

import numpy as np
import pytest

from simbatch import Result, Scenario
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from tests.engine_cases import MS, Row
from tests.policy_scenarios import lognormal, serving, under
from tests.test_policies import serve


class TestDecisions:
    def test_high_goes_before_normal_and_no_seat_stays_empty(self) -> None:
        rows: list[Row] = [(0, 4, 5, 1, ()) for _ in range(4)] + [(0, 4, 5, 0, ()) for _ in range(2)]
        record = serve(Priority(max_batch_size=3), rows)
        assert [index for index, _, _ in (record.steps or [])[0].scheduled] == [4, 5, 0]

    def test_nobody_starves(self) -> None:
        """High ones keep arriving faster than they are served; the normal one waits for `ageing_s`, not for ever."""
        high = [(i * 40 * MS, 4, 5, 0, ()) for i in range(200)]
        rows = sorted([*high, (100 * MS, 4, 5, 1, ())], key=lambda row: (row[0], row[3]))
        normal = rows.index((100 * MS, 4, 5, 1, ()))
        waits = {}
        for ageing_s in (1.0, 1000.0):
            requests = serve(Priority(max_batch_size=1, ageing_s=ageing_s), rows).requests
            waits[ageing_s] = (requests.scheduled_ps[normal] - requests.arrival_ps[normal]) / 10**12
        assert 1.0 <= waits[1.0] < 2.0
        assert waits[1000.0] == max(waits.values()) > 7.0  # without ageing, behind them all

    def test_the_last_in_its_order_is_preempted(self) -> None:
        """Room for 12 blocks of 16; the high one, admitted last, keeps its blocks."""
        rows: list[Row] = [(0, 60, 40, 1, ()), (0, 60, 40, 1, ()), (10 * MS, 60, 40, 0, ())]
        record = serve(Priority(), rows, num_gpu_blocks=14, max_model_len=128)
        assert record.requests.num_preemptions[2] == 0
        assert record.requests.num_preemptions[1] > 0
        vllm = serve(VLLM(), rows, num_gpu_blocks=14, max_model_len=128)
        assert vllm.requests.num_preemptions[2] > 0


def chats(rate: float, seed: int) -> Scenario:
    """Chats on 16 seats, which carry about 4 a second; one in five is high, one in five low."""
    return serving(
        "rtx4090-llama-3.1-8b-bf16",
        500,
        rate,
        seed=seed,
        engine={"max_num_seqs": 16},
        prompt_len=lognormal(600, 1.0, 4096),
        output_len=lognormal(150, 0.8, 1024),
        priorities={"high": 0.2, "normal": 0.6, "low": 0.2},
    )


def ttft_s(result: Result, priority: int, q: float) -> float:
    requests = result.requests
    return float(np.percentile(requests["ttft_s"][requests["priority"] == priority], q))


def mean_ttft_s(result: Result, priority: int) -> float:
    requests = result.requests
    return float(requests["ttft_s"][requests["priority"] == priority].mean())


@pytest.mark.parametrize("seed", range(2))
class TestSource:
    def test_the_high_class_does_not_feel_the_load(self, seed: int) -> None:
        """Where first come, first served lets everybody wait, the high class waits for a seat alone."""
        for rate in (5, 6):
            fcfs, aged = under(chats(rate, seed), "vllm"), under(chats(rate, seed), "priority", ageing_s=20.0)
            assert ttft_s(fcfs, 0, 99) > 8
            assert ttft_s(aged, 0, 99) < 0.3 * ttft_s(fcfs, 0, 99)
            assert mean_ttft_s(aged, 0) < mean_ttft_s(aged, 1) < mean_ttft_s(aged, 2)

    def test_the_others_pay_and_all_together_do_not(self, seed: int) -> None:
        fcfs, aged = under(chats(5, seed), "vllm").summary, under(chats(5, seed), "priority", ageing_s=20.0).summary
        assert aged["mean_ttft_ms"] < 1.1 * fcfs["mean_ttft_ms"]
        assert aged["output_throughput"] > 0.95 * fcfs["output_throughput"]

    def test_ageing_bounds_what_the_low_class_pays(self, seed: int) -> None:
        """The mean waits of two classes come to differ by their ageing, drawn out as the queue is by overload."""
        for rate in (5, 8):
            aged, strict = (under(chats(rate, seed), "priority", ageing_s=s) for s in (3.0, 1e6))
            overload = max(rate / aged.summary["request_throughput"], 1.0)
            assert 0.6 * 6 < mean_ttft_s(aged, 2) - mean_ttft_s(aged, 0) < 1.1 * 6 * overload
            assert ttft_s(strict, 2, 99) > 1.3 * ttft_s(aged, 2, 99)
