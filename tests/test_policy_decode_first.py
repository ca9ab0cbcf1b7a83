"""decode_first: its decisions by hand, and decode-prioritising schedulers as Sarathi-Serve (OSDI 2024) finds them."""

from __future__ import annotations

import pytest

from simbatch.policies.decode_first import DecodeFirst
from tests.engine_cases import MS, Row
from tests.policy_scenarios import CONVERSATIONS, serving, under
from tests.test_policies import batch_sizes, serve


class TestDecisions:
    def test_who_comes_while_others_decode_waits_for_the_last_of_them(self) -> None:
        rows: list[Row] = [(0, 4, 2, 0, ()), (0, 4, 4, 0, ()), (15 * MS, 4, 2, 0, ())]
        record = serve(DecodeFirst(), rows)
        assert [[i for i, _, _ in row.scheduled] for row in record.steps or []] == [[0, 1], [0, 1], [1], [1], [2], [2]]

    def test_a_batch_is_filled_before_anybody_decodes(self) -> None:
        """Three prompts of 200 in steps of 256 tokens; the fourth finds no seat."""
        record = serve(DecodeFirst(max_batch_size=3), [(0, 200, 2, 0, ()) for _ in range(4)])
        tokens = [{i: n for i, n, _ in row.scheduled} for row in record.steps or []]
        assert tokens == [{0: 200, 1: 56}, {1: 144, 2: 112}, {2: 88}, {0: 1, 1: 1, 2: 1}, {3: 200}, {3: 1}]

    def test_who_comes_while_the_batch_is_filled_is_in_it(self) -> None:
        record = serve(DecodeFirst(), [(0, 250, 3, 0, ()), (5 * MS, 250, 3, 0, ()), (15 * MS, 250, 3, 0, ())])
        assert batch_sizes(record) == [1, 1, 1, 3, 3]

    def test_out_of_blocks_the_last_admitted_gives_way(self) -> None:
        record = serve(DecodeFirst(), [(0, 60, 40, 0, ()) for _ in range(2)], num_gpu_blocks=12, max_model_len=128)
        assert record.requests.num_preemptions.tolist() == [0, 1]
        assert (record.requests.status == 0).all()


class TestSource:
    """Figure 2 and section 3: the least time between tokens and the lowest throughput."""

    def test_least_tail_of_itl_and_lowest_throughput_under_load(self) -> None:
        scenario = serving("a100-llama-3.1-8b-bf16", 100, 8, **CONVERSATIONS)
        decode_first = under(scenario, "decode_first", max_batch_size=32).summary
        for other in ("prefill_first", "vllm", "sarathi"):
            summary = under(scenario, other).summary
            assert decode_first["p99_itl_ms"] < 0.6 * summary["p99_itl_ms"], other
            assert decode_first["output_throughput"] < 0.8 * summary["output_throughput"], other
            assert decode_first["mean_ttft_ms"] > 3 * summary["mean_ttft_ms"], other

    @pytest.mark.parametrize("prompt", [500, 4000])
    def test_prompts_disturb_nobody_whatever_their_length(self, prompt: int) -> None:
        """The tail of the time between tokens stays near its median; what is left are batches of several sizes."""
        lengths = {"prompt_len": {"distribution": "fixed", "mean": prompt}, "output_len": CONVERSATIONS["output_len"]}
        summary = under(serving("a100-llama-3.1-8b-bf16", 100, 4, **lengths), "decode_first").summary
        assert summary["p99_itl_ms"] < 1.6 * summary["median_itl_ms"]
