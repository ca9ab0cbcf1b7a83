"""Policies that choose the batch. fixed: its decisions by hand, and what a batch size trades (Pope et al., MLSys 2023,
figure 1).

`static`: batches of at most so many requests, formed for at most so long.

adaptive: its decisions by hand, and where Clipper's AIMD settles (NSDI 2017, section 4.3.1, figure 4).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from simbatch import Result
from simbatch.policies.adaptive import Adaptive
from simbatch.policies.fixed import Fixed
from simbatch.policies.static import Static
from simbatch.sim.engine.record import RunRecord
from tests.engine_cases import MS, Row
from tests.made_scenarios import all_at_once, batch_sizes, fixed, lognormal, serve, serving, under


class TestFixedDecisions:
    def test_at_most_so_many_run_and_seats_are_filled_at_once(self) -> None:
        record = serve(Fixed(batch_size=3), all_at_once(7))
        assert batch_sizes(record) == [3] * 10 + [1] * 5

    def test_static_batches_wait_for_the_whole_batch(self) -> None:
        rows = [(0, 4, n, 0, ()) for n in (5, 1, 3, 2)]
        record = serve(Fixed(batch_size=2), rows, batching="static")
        assert batch_sizes(record) == [2, 1, 1, 1, 1, 2, 2, 1]

    def test_the_engine_has_the_last_word(self) -> None:
        assert max(batch_sizes(serve(Fixed(batch_size=100), all_at_once(50)))) == 16


class TestFixedSource:
    LENGTHS: ClassVar = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(100, 0.5, 500)}

    def test_each_doubling_serves_more_by_less_and_costs_latency(self) -> None:
        """Nearly double at first, when the weights are what a step reads; next to nothing when it computes."""
        for seed in range(2):
            scenario = serving("rtx4090-llama-3.1-8b-bf16", 300, None, seed=seed, **self.LENGTHS)
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
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 300, 2, **self.LENGTHS)
        small, right, large = (under(scenario, "fixed", batch_size=n).summary for n in (2, 32, 128))
        assert small["mean_e2el_ms"] > 5 * right["mean_e2el_ms"]
        assert large["mean_e2el_ms"] == right["mean_e2el_ms"]


def arrivals(*times_ms: int, output: int = 5) -> list[Row]:
    return [(time_ms * MS, 4, output, 0, ()) for time_ms in times_ms]


def starts_ms(record: RunRecord) -> list[float]:
    return (record.requests.scheduled_ps / MS).tolist()


class TestByHand:
    """A step takes 10 ms, and 1 ms for each decode in it: five tokens alone are 10 + 4 * 11 = 54 ms."""

    def test_a_full_batch_starts_at_once(self) -> None:
        record = serve(Static(max_batch_size=2, max_delay_s=1.0), arrivals(0, 10), batching="static")
        assert starts_ms(record) == [10, 10]

    def test_else_it_starts_when_the_first_has_waited_long_enough(self) -> None:
        record = serve(Static(max_batch_size=3, max_delay_s=0.1), arrivals(0, 60, 500), batching="static")
        assert starts_ms(record) == [100, 100, 600]

    def test_who_has_waited_behind_a_batch_waits_no_longer(self) -> None:
        record = serve(Static(max_batch_size=3, max_delay_s=0.1), arrivals(0, 150, output=30), batching="static")
        assert starts_ms(record) == [100, 100 + 10 + 29 * 11]

    def test_without_a_delay_whoever_is_there_is_the_batch(self) -> None:
        record = serve(Static(max_batch_size=2, max_delay_s=0.0), arrivals(0, 1, 2, 3), batching="static")
        assert batch_sizes(record) == [1] * 5 + [2] * 5 + [1] * 5
        assert starts_ms(record) == [0, 54, 54, 54 + 10 + 4 * 12]


class Load(NamedTuple):
    """Means over two seeds."""

    batch_size: float
    requests_per_busy_s: float
    latency_s: float


def load(request_rate: float, num_prompts: int, **parameters: float) -> Load:
    rows = []
    for seed in range(2):
        lengths = {"prompt_len": fixed(200), "output_len": fixed(50)}
        engine = {"batching": "static"}
        scenario = serving("h100-llama-3.1-8b-bf16", num_prompts, request_rate, seed=seed, engine=engine, **lengths)
        summary = under(scenario, "static", **parameters).summary
        ours = summary["simbatch"]
        per_busy_s = summary["request_throughput"] / ours["device_busy_share"]
        rows.append((ours["batch_size"]["mean"], per_busy_s, summary["mean_e2el_ms"] / 1000))
    return Load(*np.mean(rows, axis=0))


class TestDelayedBatching:
    """Clipper's figure of delayed batching, and Triton's dynamic batcher: fuller batches for later answers."""

    def test_a_longer_delay_makes_fuller_batches_that_serve_more_per_busy_second_and_answer_later(self) -> None:
        """At 8 requests a second; one batch of 50 tokens lasts 0.3 s, of one request or of thirty."""
        found = [load(8, 200, max_delay_s=delay_s) for delay_s in (0.0, 0.5, 1.0, 2.0)]
        for before, after in pairwise(found):
            assert after.batch_size > 1.3 * before.batch_size
            assert after.requests_per_busy_s > 1.3 * before.requests_per_busy_s
            assert after.latency_s > 1.1 * before.latency_s

    def test_where_batches_are_full_anyhow_the_delay_does_nothing(self) -> None:
        none, half_a_second = load(200, 960, max_delay_s=0.0), load(200, 960, max_delay_s=0.5)
        assert half_a_second.batch_size == pytest.approx(none.batch_size, rel=0.1)
        assert half_a_second.latency_s == pytest.approx(none.latency_s, rel=0.1)

    def test_under_load_a_larger_batch_serves_more_and_answers_sooner(self) -> None:
        small, large = (load(40, 400, max_batch_size=size, max_delay_s=0.1) for size in (4, 32))
        assert large.requests_per_busy_s > 2 * small.requests_per_busy_s
        assert large.latency_s < small.latency_s / 2


class TestAdaptiveDecisions:
    def test_it_grows_from_one_by_at_least_one(self) -> None:
        """int(1 * 1.5) is 1: written the usual way, growth would never start."""
        policy, sizes = Adaptive(target_tpot_ms=1000, adjustment_interval=2), []
        policy.start(View(max_num_seqs=16))
        for _ in range(8):
            sizes.append(policy.seats(View(max_num_seqs=16)))
            for _ in range(2):
                policy.finished(Finished(tpot_s=0.011))
        assert sizes == [1, 2, 3, 4, 6, 9, 13, 16]  # by a half, at least by one, never above the engine's seats
        assert max(batch_sizes(serve(Adaptive(target_tpot_ms=1000), all_at_once(200)))) == 16

    def test_additive_growth_is_by_one(self) -> None:
        policy = Adaptive(target_tpot_ms=1000, adjustment_interval=2, growth="additive", max_batch_size=5)
        assert max(batch_sizes(serve(policy, all_at_once(60)))) == 5

    @pytest.mark.parametrize("n", [7, 20])
    def test_above_the_target_it_shrinks_to_seven_tenths(self, n: int) -> None:
        policy = Adaptive(target_tpot_ms=5, min_batch_size=2, max_batch_size=64)
        policy.start(View(max_num_seqs=64))
        policy._batch_size = n
        for _ in range(10):
            policy.finished(Finished(tpot_s=0.006))
        assert policy.seats(View(max_num_seqs=64)) == int(n * 0.7)

    def test_between_the_bounds_it_stays(self) -> None:
        policy = Adaptive(target_tpot_ms=10, min_batch_size=4)
        policy.start(View(max_num_seqs=64))
        for tpot_s in (0.0081, 0.0099) * 10:
            policy.finished(Finished(tpot_s=tpot_s))
        assert policy.seats(View(max_num_seqs=64)) == 4

    def test_one_token_has_no_tpot_and_does_not_count(self) -> None:
        policy = Adaptive(target_tpot_ms=50, adjustment_interval=1)
        policy.start(View(max_num_seqs=64))
        policy.finished(Finished(tpot_s=None))
        assert policy.seats(View(max_num_seqs=64)) == 1

    def test_it_holds_the_target_that_users_feel(self) -> None:
        """A decode costs 10 ms + 1 ms a sequence: 16 ms TPOT is reached with 6, whatever the queue."""
        rows = [(0, 4, 20, 0, ()) for _ in range(400)]
        record = serve(Adaptive(target_tpot_ms=16, adjustment_interval=5, growth="additive"), rows)
        settled = batch_sizes(record)[len(record.steps or []) // 2 :]
        assert min(settled[:-20]) >= 3
        assert max(settled) <= 7

    def test_two_targets_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="only one of"):
            Adaptive(target_tpot_ms=5, target_ttft_ms=5)


class TestAdaptiveSource:
    """Everybody wants service at once, and TPOT must stay under 30 ms."""

    TARGET_MS = 30.0
    LENGTHS: ClassVar = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(150, 0.5, 500)}

    def settled(self, result: Result) -> tuple[float, float, float]:
        """Of the second half to finish: tokens a second, mean TPOT (ms), share over the target."""
        requests = result.requests
        late = np.argsort(requests["finish_s"])[len(requests["finish_s"]) // 2 :]
        tpot_ms = requests["tpot_s"][late] * 1000
        lasted_s = np.ptp(requests["finish_s"][late])
        served = requests["num_output_tokens"][late].sum() / lasted_s
        return float(served), float(np.nanmean(tpot_ms)), float((tpot_ms > self.TARGET_MS).mean())

    @pytest.mark.parametrize("growth", ["additive", "multiplicative"])
    @pytest.mark.parametrize("seed", range(2))
    def test_it_settles_under_the_target_and_far_above_a_small_batch(self, growth: str, seed: int) -> None:
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 1500, None, seed=seed, **self.LENGTHS)
        small, large = (self.settled(under(scenario, "fixed", batch_size=n)) for n in (4, 128))
        parameters = {"target_tpot_ms": self.TARGET_MS, "max_batch_size": 128, "growth": growth}
        served, tpot_ms, missed = self.settled(under(scenario, "adaptive", **parameters))
        assert 0.75 * self.TARGET_MS < tpot_ms < self.TARGET_MS
        assert missed < 0.05 < 0.8 < large[2]
        assert served > 5 * small[0]

    def test_a_laxer_target_makes_larger_batches(self) -> None:
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 800, None, **self.LENGTHS)
        served = [
            self.settled(under(scenario, "adaptive", target_tpot_ms=ms, max_batch_size=128))[0] for ms in (20, 30, 45)
        ]
        assert served[0] < 0.7 * served[1] < 0.7 * 0.85 * served[2]


class Finished:
    """A finished request, as far as feedback looks at it."""

    def __init__(self, tpot_s: float | None) -> None:
        self.tpot_s = tpot_s

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"feedback on TPOT has no business with {name}")


class View:
    """An engine, as far as a batch size looks at it."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
