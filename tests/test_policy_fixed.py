"""fixed: its decisions by hand, and what a batch size trades (Pope et al., MLSys 2023, figure 1)."""

from __future__ import annotations

from itertools import pairwise

from simbatch.policies.fixed import Fixed
from tests.policy_scenarios import lognormal, serving, under
from tests.test_policies import all_at_once, batch_sizes, serve


class TestDecisions:
    def test_at_most_so_many_run_and_seats_are_filled_at_once(self) -> None:
        record = serve(Fixed(batch_size=3), all_at_once(7))
        assert batch_sizes(record) == [3] * 10 + [1] * 5

    def test_static_batches_wait_for_the_whole_batch(self) -> None:
        rows = [(0, 4, n, 0, ()) for n in (5, 1, 3, 2)]
        record = serve(Fixed(batch_size=2), rows, batching="static")
        assert batch_sizes(record) == [2, 1, 1, 1, 1, 2, 2, 1]

    def test_the_engine_has_the_last_word(self) -> None:
        assert max(batch_sizes(serve(Fixed(batch_size=100), all_at_once(50)))) == 16


class TestSource:
    def test_each_doubling_serves_more_by_less_and_costs_latency(self) -> None:
        """Nearly double at first, when the weights are what a step reads; next to nothing when it computes."""
        lengths = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(100, 0.5, 500)}
        for seed in range(2):
            scenario = serving("rtx4090-llama-3.1-8b-bf16", 300, None, seed=seed, **lengths)
            results = [under(scenario, "fixed", batch_size=2**i).summary for i in range(8)]
            served = [summary["output_throughput"] for summary in results]
            gains = [after / before for before, after in pairwise(served)]
            assert gains[0] > 1.8
            assert gains[-1] < 1.25
            assert all(after < before + 0.05 for before, after in pairwise(gains[1:]))
            tpot = [summary["mean_tpot_ms"] for summary in results]
            assert tpot == sorted(tpot)
            assert tpot[-1] > 2.5 * tpot[0]

    def test_more_seats_than_requests_change_nothing(self) -> None:
        """At a load that 32 seats carry, the seats beyond stay empty."""
        lengths = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(100, 0.5, 500)}
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 300, 2, **lengths)
        small, right, large = (under(scenario, "fixed", batch_size=n).summary for n in (2, 32, 128))
        assert small["mean_e2el_ms"] > 5 * right["mean_e2el_ms"]
        assert large["mean_e2el_ms"] == right["mean_e2el_ms"]
