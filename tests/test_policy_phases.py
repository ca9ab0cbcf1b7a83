"""Prompts against decodes. decode_first: decisions by hand, and decode-prioritising schedulers as Sarathi-Serve (OSDI
2024) finds them.

prefill_first: its decisions by hand, and the generation stalls of Sarathi-Serve (OSDI 2024, section 3, figure 1).

sarathi: its budget by hand, and the trade-off of Sarathi-Serve (OSDI 2024, sections 4 and 5).

vllm: its decisions by hand, and iteration-level against request-level batching (Orca, OSDI 2022, section 6).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from simbatch.policies.decode_first import DecodeFirst
from simbatch.policies.prefill_first import PrefillFirst
from simbatch.policies.sarathi import Sarathi
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from tests.engine_cases import MS, Row
from tests.made_scenarios import (
    CONVERSATIONS,
    batch_sizes,
    fixed,
    in_order,
    in_steps,
    lognormal,
    serve,
    serving,
    tokens,
    under,
    uniform,
)


class TestDecodeFirstDecisions:
    def test_who_comes_while_others_decode_waits_for_the_last_of_them(self) -> None:
        rows: list[Row] = [(0, 4, 2, 0, ()), (0, 4, 4, 0, ()), (15 * MS, 4, 2, 0, ())]
        record = serve(DecodeFirst(), rows)
        assert in_steps(record) == [[0, 1], [0, 1], [1], [1], [2], [2]]

    def test_a_batch_is_filled_before_anybody_decodes(self) -> None:
        """Three prompts of 200 in steps of 256 tokens; the fourth finds no seat."""
        record = serve(DecodeFirst(max_batch_size=3), [(0, 200, 2, 0, ()) for _ in range(4)])
        assert tokens(record) == [{0: 200, 1: 56}, {1: 144, 2: 112}, {2: 88}, {0: 1, 1: 1, 2: 1}, {3: 200}, {3: 1}]

    def test_who_comes_while_the_batch_is_filled_is_in_it(self) -> None:
        record = serve(DecodeFirst(), [(0, 250, 3, 0, ()), (5 * MS, 250, 3, 0, ()), (15 * MS, 250, 3, 0, ())])
        assert batch_sizes(record) == [1, 1, 1, 3, 3]

    def test_out_of_blocks_the_last_admitted_gives_way(self) -> None:
        record = serve(DecodeFirst(), [(0, 60, 40, 0, ()) for _ in range(2)], num_gpu_blocks=12, max_model_len=128)
        assert record.requests.num_preemptions.tolist() == [0, 1]
        assert (record.requests.status == 0).all()


class TestDecodeFirstSource:
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
        lengths = {"prompt_len": fixed(prompt), "output_len": CONVERSATIONS["output_len"]}
        summary = under(serving("a100-llama-3.1-8b-bf16", 100, 4, **lengths), "decode_first").summary
        assert summary["p99_itl_ms"] < 1.6 * summary["median_itl_ms"]


class TestPrefillFirstDecisions:
    def test_a_newcomer_stops_those_who_decode(self) -> None:
        rows: list[Row] = [(0, 4, 4, 0, ()), (15 * MS, 4, 2, 0, ())]
        record = serve(PrefillFirst(), rows)
        assert in_steps(record) == [[0], [0], [1], [0, 1], [0]]

    def test_a_long_prompt_stops_them_for_all_of_its_chunks(self) -> None:
        rows: list[Row] = [(0, 4, 3, 0, ()), (5 * MS, 240, 1, 0, ())]
        record = serve(PrefillFirst(), rows, max_num_batched_tokens=100)
        assert tokens(record) == [{0: 4}, {1: 100}, {1: 100}, {1: 40}, {0: 1}, {0: 1}]

    def test_without_a_seat_for_the_newcomer_nobody_stops(self) -> None:
        rows: list[Row] = [(0, 4, 4, 0, ()), (5 * MS, 4, 2, 0, ())]
        record = serve(PrefillFirst(max_batch_size=1), rows)
        assert in_steps(record) == [[0], [0], [0], [0], [1], [1]]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_out_of_blocks_the_last_admitted_gives_way(self, is_async: bool) -> None:
        rows: list[Row] = [(0, 60, 40, 0, ()) for _ in range(2)]
        record = serve(PrefillFirst(), rows, num_gpu_blocks=12, max_model_len=128, async_scheduling=is_async)
        assert record.requests.num_preemptions[0] == 0
        assert record.requests.num_preemptions[1] > 0
        assert (record.requests.status == 0).all()


class TestPrefillFirstSource:
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
        results = [under(scenario, name, max_batch_size=32) for name in ("prefill_first", "decode_first")]
        prefill_first, decode_first = (result.summary["output_throughput"] for result in results)
        assert prefill_first > 1.25 * decode_first


US = MS // 1000
ROWS: list[Row] = [(0, 4, 9, 0, ()), (5 * MS, 500, 1, 0, ())]


def chunks(policy: Sarathi, rows: list[Row], cost: LinearCost) -> list[dict[int, int]]:
    return tokens(serve(policy, rows, cost=cost, max_num_batched_tokens=512, max_model_len=1024))


class TestSarathiDecisions:
    def test_the_largest_multiple_of_the_smallest_chunk_within_the_bound(self) -> None:
        """10 ms, 0.1 ms a prompt token, 1 ms a decode: 25 ms have room for 140 tokens beside one decode."""
        steps = chunks(Sarathi(target_tpot_ms=25, tile_tokens=20), ROWS, LinearCost(10 * MS, 100 * US, MS, 0))
        assert steps[:5] == [{0: 4}, *[{0: 1, 1: 140}] * 3, {0: 1, 1: 80}]

    def test_nobody_decodes_and_the_step_takes_all(self) -> None:
        steps = chunks(Sarathi(target_tpot_ms=25), [(0, 700, 1, 0, ())], LinearCost(10 * MS, 100 * US, MS, 0))
        assert steps == [{0: 512}, {0: 188}]

    def test_prompts_get_the_smallest_chunk_even_over_the_bound(self) -> None:
        steps = chunks(Sarathi(target_tpot_ms=5, tile_tokens=64), ROWS, LinearCost(10 * MS, 100 * US, MS, 0))
        assert steps[1] == {0: 1, 1: 64}

    def test_a_chunk_pays_for_what_it_attends_to(self) -> None:
        """0.05 ms a token of context: the further a prompt is, the smaller its chunks."""
        cost = LinearCost(10 * MS, 0, MS, 50 * US)
        sizes = [step[1] for step in chunks(Sarathi(target_tpot_ms=25, tile_tokens=20), ROWS, cost)[1:8]]
        assert sizes[0] == 260  # (25 - 11) ms are 280 tokens of context, and the decode has 5
        assert sizes[1] == 20
        assert sizes == sorted(sizes, reverse=True)


class TestSarathiSource:
    PROFILE = "a100-llama-3.1-8b-bf16"  # the paper's GPU; its model is Mistral-7B

    @pytest.mark.parametrize("target_ms", [25, 50, 100])
    def test_the_tail_of_itl_is_the_bound_at_every_load(self, target_ms: int) -> None:
        for seed, rate in enumerate((2, 4, 8)):
            scenario = serving(self.PROFILE, 150, rate, seed=seed, **CONVERSATIONS)
            tail_ms = under(scenario, "sarathi", target_tpot_ms=target_ms).summary["p99_itl_ms"]
            assert 0.9 * target_ms < tail_ms <= 1.05 * target_ms  # it reckons the device's time, not the host's

    def test_the_stalls_go_and_the_throughput_stays(self) -> None:
        """Figure 2 and section 5.1, between the two extremes: vLLM's throughput without vLLM's tail."""
        scenario = serving(self.PROFILE, 150, 4, **CONVERSATIONS)
        sarathi = under(scenario, "sarathi", target_tpot_ms=50).summary
        prefill_first = under(scenario, "prefill_first").summary
        assert sarathi["p99_itl_ms"] < 0.3 * prefill_first["p99_itl_ms"]
        assert sarathi["output_throughput"] > 0.97 * prefill_first["output_throughput"]
        assert sarathi["mean_ttft_ms"] > 1.1 * prefill_first["mean_ttft_ms"]  # the price

    def test_a_tight_bound_costs_throughput(self) -> None:
        """Section 5.4: small chunks prefill at less than the full rate, which shows under load."""
        scenario = serving(self.PROFILE, 150, 8, **CONVERSATIONS)
        results = [under(scenario, "sarathi", target_tpot_ms=ms) for ms in (25, 50, 100)]
        throughput = [result.summary["output_throughput"] for result in results]
        assert throughput[0] < 0.9 * throughput[1] < throughput[2]

    def test_capacity_doubles_under_a_strict_slo_and_less_under_a_relaxed_one(self) -> None:
        """Figures 10 and 11: P99 of ITL within 5 or 25 decode steps of 32 requests with 4,096 tokens, 22 ms here."""
        strict_ms, relaxed_ms = 111, 555
        at = {rate: serving(self.PROFILE, 150, rate, **CONVERSATIONS) for rate in (3, 5, 6)}
        assert under(at[3], "prefill_first").summary["p99_itl_ms"] > 1.3 * strict_ms
        assert under(at[5], "prefill_first").summary["p99_itl_ms"] < 0.8 * relaxed_ms
        doubled = under(at[6], "sarathi", target_tpot_ms=strict_ms).summary
        assert doubled["p99_itl_ms"] <= strict_ms
        assert doubled["median_ttft_ms"] < 1000  # no queue: the paper bounds the median scheduling delay by 2 s


class TestVllmDecisions:
    """Against vLLM's real scheduler: `make parity`."""

    def test_who_ends_leaves_at_once_and_the_next_takes_the_seat(self) -> None:
        record = serve(VLLM(), [(0, 4, n, 0, ()) for n in (4, 1, 2, 2)], max_num_seqs=2)
        assert in_steps(record) == [[0, 1], [0, 2], [0, 2], [0, 3], [3]]

    def test_decodes_first_and_the_prompt_gets_what_is_left(self) -> None:
        record = serve(VLLM(), [(0, 4, 3, 0, ()), (5 * MS, 150, 1, 0, ())], max_num_batched_tokens=100)
        assert tokens(record) == [{0: 4}, {0: 1, 1: 99}, {0: 1, 1: 51}]

    def test_out_of_blocks_the_last_admitted_starts_again(self) -> None:
        record = serve(VLLM(), [(0, 60, 40, 0, ()) for _ in range(2)], num_gpu_blocks=12, max_model_len=128)
        assert record.requests.num_preemptions.tolist() == [0, 1]
        (step,) = (row for row in record.steps or [] if row.preempted)
        assert step.preempted == [1]
        assert batch_sizes(record)[step.step :] == [1] * (len(record.steps or []) - step.step)

    def test_by_priority_if_the_engine_says_so(self) -> None:
        rows: list[Row] = [(0, 4, 2, 1, ()), (0, 4, 2, 0, ())]
        record = serve(VLLM(), rows, max_num_seqs=1, scheduling_policy="priority")
        assert in_order(record) == [1, 0]


class TestVllmSource:
    """Orca's lengths: prompts of 32 to 512 tokens, here with outputs of one mean and several spreads; 32 seats."""

    PROFILE = "a100-llama-3.1-8b-bf16"

    def both(self, rate: float | None, seed: int, output_len: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        lengths = {"prompt_len": uniform(32, 512), "output_len": output_len}
        scenarios = [
            serving(self.PROFILE, 300, rate, seed=seed, engine={"max_num_seqs": 32, "batching": batching}, **lengths)
            for batching in ("continuous", "static")
        ]
        return under(scenarios[0], "vllm").summary, under(scenarios[1], "fixed", batch_size=32).summary

    @pytest.mark.parametrize("seed", range(2))
    def test_the_gap_grows_with_the_spread_of_outputs(self, seed: int) -> None:
        """Of one length both are alike (figure 11); else a request-level batch waits for its longest member."""
        spreads = [fixed(200), *(lognormal(200, cv, 2000) for cv in (0.5, 1.0, 1.5))]
        ratios = []
        for output_len in spreads:
            iteration, request = self.both(None, seed, output_len)
            ratios.append(iteration["output_throughput"] / request["output_throughput"])
            assert iteration["mean_e2el_ms"] < 1.02 * request["mean_e2el_ms"] / ratios[-1] ** 0.5
        assert 0.97 < ratios[0] < 1.1
        assert ratios[1] > 1.5
        assert all(after > 1.1 * before for before, after in pairwise(ratios))

    @pytest.mark.parametrize("seed", range(2))
    def test_more_throughput_at_the_same_latency(self, seed: int) -> None:
        """Figure 10: at four times the load, latency is still lower."""
        output_len = lognormal(200, 1.0, 2000)
        _, request = self.both(1.5, seed, output_len)
        iteration, _ = self.both(6, seed, output_len)
        assert iteration["median_e2el_ms"] < 0.9 * request["median_e2el_ms"]
        assert iteration["output_throughput"] > 3 * request["output_throughput"]
