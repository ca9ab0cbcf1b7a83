"""prefill_first: its decisions by hand, and the generation stalls of Sarathi-Serve (OSDI 2024, section 3, figure 1)."""

from __future__ import annotations

import pytest

from simbatch.policies.prefill_first import PrefillFirst
from tests.engine_cases import MS, Row
from tests.policy_scenarios import CONVERSATIONS, serving, under
from tests.test_policies import serve


class TestDecisions:
    def test_a_newcomer_stops_those_who_decode(self) -> None:
        rows: list[Row] = [(0, 4, 4, 0, ()), (15 * MS, 4, 2, 0, ())]
        record = serve(PrefillFirst(), rows)
        assert [[i for i, _, _ in row.scheduled] for row in record.steps or []] == [[0], [0], [1], [0, 1], [0]]

    def test_a_long_prompt_stops_them_for_all_of_its_chunks(self) -> None:
        rows: list[Row] = [(0, 4, 3, 0, ()), (5 * MS, 240, 1, 0, ())]
        record = serve(PrefillFirst(), rows, max_num_batched_tokens=100)
        tokens = [{i: n for i, n, _ in row.scheduled} for row in record.steps or []]
        assert tokens == [{0: 4}, {1: 100}, {1: 100}, {1: 40}, {0: 1}, {0: 1}]

    def test_without_a_seat_for_the_newcomer_nobody_stops(self) -> None:
        rows: list[Row] = [(0, 4, 4, 0, ()), (5 * MS, 4, 2, 0, ())]
        record = serve(PrefillFirst(max_batch_size=1), rows)
        assert [[i for i, _, _ in row.scheduled] for row in record.steps or []] == [[0], [0], [0], [0], [1], [1]]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_out_of_blocks_the_last_admitted_gives_way(self, is_async: bool) -> None:
        rows: list[Row] = [(0, 60, 40, 0, ()) for _ in range(2)]
        record = serve(PrefillFirst(), rows, num_gpu_blocks=12, max_model_len=128, async_scheduling=is_async)
        assert record.requests.num_preemptions[0] == 0
        assert record.requests.num_preemptions[1] > 0
        assert (record.requests.status == 0).all()


class TestSource:
    def test_the_tail_of_itl_grows_with_load_and_the_throughput_does_not_suffer(self) -> None:
        """Figure 1b: the median hardly moves while the 99th percentile multiplies."""
        light, heavy = (serving("a100-llama-3.1-8b-bf16", 100, rate, **CONVERSATIONS) for rate in (1, 6))
        at_light, at_heavy = under(light, "prefill_first").summary, under(heavy, "prefill_first").summary
        assert at_heavy["p99_itl_ms"] > 5 * at_light["p99_itl_ms"]
        assert at_heavy["p99_itl_ms"] > 8 * at_heavy["median_itl_ms"]
        for other in ("vllm", "sarathi"):
            summary = under(heavy, other).summary
            assert at_heavy["output_throughput"] > 0.93 * summary["output_throughput"], other
            assert at_heavy["mean_ttft_ms"] < summary["mean_ttft_ms"], other
            assert at_heavy["p99_itl_ms"] > 2 * summary["p99_itl_ms"], other

    @pytest.mark.parametrize("seed", range(2))
    def test_it_serves_more_than_decodes_first(self, seed: int) -> None:
        """Under load, with 32 seats: newcomers take the seats of those who have ended at once."""
        scenario = serving("a100-llama-3.1-8b-bf16", 100, 8, seed=seed, **CONVERSATIONS)
        serves = {
            name: under(scenario, name, max_batch_size=32).summary["output_throughput"]
            for name in ("prefill_first", "decode_first")
        }
        assert serves["prefill_first"] > 1.25 * serves["decode_first"]
