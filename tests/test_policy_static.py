"""`static`: batches of at most so many requests, formed for at most so long."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from simbatch import Scenario, simulate
from simbatch.policies.static import Static
from simbatch.sim.engine.record import RunRecord
from tests.engine_cases import MS, Row
from tests.test_policies import batch_sizes, serve


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


@dataclass
class Load:
    """Means over two seeds."""

    batch_size: float
    requests_per_busy_s: float
    latency_s: float


def load(request_rate: float, num_prompts: int, **parameters: float) -> Load:
    rows = []
    for seed in range(2):
        scenario = Scenario.from_dict(
            {
                "profile": "h100-llama-3.1-8b-bf16",
                "seed": seed,
                "engine": {"batching": "static"},
                "policy": {"name": "static", **parameters},
                "workload": {
                    "num_prompts": num_prompts,
                    "request_rate": request_rate,
                    "prompt_len": {"distribution": "fixed", "mean": 200},
                    "output_len": {"distribution": "fixed", "mean": 50},
                },
            }
        )
        result = simulate(scenario)
        summary, ours = result.summary, result.summary["simbatch"]
        per_busy_s = summary["request_throughput"] / ours["device_busy_share"]
        rows.append((ours["batch_size"]["mean"], per_busy_s, summary["mean_e2el_ms"] / 1000))
    return Load(*np.mean(rows, axis=0))


class TestDelayedBatching:
    """Clipper's figure of delayed batching, and Triton's dynamic batcher: fuller batches for later answers."""

    def test_a_longer_delay_makes_fuller_batches_that_serve_more_per_busy_second_and_answer_later(
        self,
    ) -> None:
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
