"""adaptive: its decisions by hand, and where Clipper's AIMD settles (NSDI 2017, section 4.3.1, figure 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simbatch import Result
from simbatch.policies.adaptive import Adaptive
from tests.policy_scenarios import lognormal, serving, under
from tests.test_policies import all_at_once, batch_sizes, serve


class TestDecisions:
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


class TestSource:
    """Everybody wants service at once, and TPOT must stay under 30 ms."""

    TARGET_MS = 30.0

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
        lengths = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(150, 0.5, 500)}
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 1500, None, seed=seed, **lengths)
        small, large = (self.settled(under(scenario, "fixed", batch_size=n)) for n in (4, 128))
        parameters = {"target_tpot_ms": self.TARGET_MS, "max_batch_size": 128, "growth": growth}
        served, tpot_ms, missed = self.settled(under(scenario, "adaptive", **parameters))
        assert 0.75 * self.TARGET_MS < tpot_ms < self.TARGET_MS
        assert missed < 0.05 < 0.8 < large[2]
        assert served > 5 * small[0]

    def test_a_laxer_target_makes_larger_batches(self) -> None:
        lengths = {"prompt_len": lognormal(200, 0.5, 1000), "output_len": lognormal(150, 0.5, 500)}
        scenario = serving("rtx4090-llama-3.1-8b-bf16", 800, None, **lengths)
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
