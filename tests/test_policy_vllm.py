"""vllm: its decisions by hand, and iteration-level against request-level batching (Orca, OSDI 2022, section 6)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from simbatch.policies.vllm import VLLM
from tests.engine_cases import MS, Row
from tests.policy_scenarios import lognormal, serving, under
from tests.test_policies import batch_sizes, serve


class TestDecisions:
    """Against vLLM's real scheduler: `make parity`."""

    def test_who_ends_leaves_at_once_and_the_next_takes_the_seat(self) -> None:
        record = serve(VLLM(), [(0, 4, n, 0, ()) for n in (4, 1, 2, 2)], max_num_seqs=2)
        assert [[i for i, _, _ in row.scheduled] for row in record.steps or []] == [[0, 1], [0, 2], [0, 2], [0, 3], [3]]

    def test_decodes_first_and_the_prompt_gets_what_is_left(self) -> None:
        record = serve(VLLM(), [(0, 4, 3, 0, ()), (5 * MS, 150, 1, 0, ())], max_num_batched_tokens=100)
        tokens = [{i: n for i, n, _ in row.scheduled} for row in record.steps or []]
        assert tokens == [{0: 4}, {0: 1, 1: 99}, {0: 1, 1: 51}]

    def test_out_of_blocks_the_last_admitted_starts_again(self) -> None:
        record = serve(VLLM(), [(0, 60, 40, 0, ()) for _ in range(2)], num_gpu_blocks=12, max_model_len=128)
        assert record.requests.num_preemptions.tolist() == [0, 1]
        (step,) = (row for row in record.steps or [] if row.preempted)
        assert step.preempted == [1]
        assert batch_sizes(record)[step.step :] == [1] * (len(record.steps or []) - step.step)

    def test_by_priority_if_the_engine_says_so(self) -> None:
        rows: list[Row] = [(0, 4, 2, 1, ()), (0, 4, 2, 0, ())]
        record = serve(VLLM(), rows, max_num_seqs=1, scheduling_policy="priority")
        assert record.requests.scheduled_ps.argsort().tolist() == [1, 0]


class TestSource:
    """Orca's lengths: prompts of 32 to 512 tokens, here with outputs of one mean and several spreads; 32 seats."""

    PROFILE = "a100-llama-3.1-8b-bf16"

    def both(self, rate: float | None, seed: int, output_len: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        lengths = {"prompt_len": {"distribution": "uniform", "min": 32, "max": 512}, "output_len": output_len}
        scenarios = [
            serving(self.PROFILE, 300, rate, seed=seed, engine={"max_num_seqs": 32, "batching": batching}, **lengths)
            for batching in ("continuous", "static")
        ]
        return under(scenarios[0], "vllm").summary, under(scenarios[1], "fixed", batch_size=32).summary

    @pytest.mark.parametrize("seed", range(2))
    def test_the_gap_grows_with_the_spread_of_outputs(self, seed: int) -> None:
        """Of one length both are alike (figure 11); else a request-level batch waits for its longest member."""
        spreads = [{"distribution": "fixed", "mean": 200}, *(lognormal(200, cv, 2000) for cv in (0.5, 1.0, 1.5))]
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
