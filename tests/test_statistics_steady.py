"""What a run says of its steady state, and when it says nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.coverage import Case, one_seat
from simbatch import Scenario, simulate
from simbatch.sim.metrics.steady import is_overloaded
from simbatch.sim.report.console import steady_line
from simbatch.sim.report.result import Result
from simbatch.sim.statistics.series import BatchMeans


def queue(load: float, num_prompts: int = 4000, kind: str = "M/G/1", seed: int = 0, **changes: Any) -> Scenario:
    return Case(kind, load, num_prompts, 1).scenario().override({"seed": seed, **changes})


def steady(scenario: Scenario) -> dict[str, Any]:
    block: dict[str, Any] = simulate(scenario).summary["simbatch"]["steady_state"]
    return block


@pytest.fixture(scope="module")
def calm() -> Result:
    return simulate(queue(0.5))


@pytest.mark.parametrize("kind", ["M/G/1", "M/D/1"])
def test_the_benchmark_s_recursion_is_the_engine_to_the_picosecond(kind: str) -> None:
    scenario = queue(0.8, 2000, kind)
    engine, recursion = simulate(scenario).record.requests, one_seat(scenario).requests
    for column in ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps", "num_output_tokens"):
        assert getattr(engine, column).tolist() == getattr(recursion, column).tolist()


def test_the_mean_of_the_requests_between_by_batches(calm: Result) -> None:
    block = calm.summary["simbatch"]["steady_state"]
    first, last = block["left_out_first"], block["left_out_last"]
    assert first == 400
    arrival_s, e2el_s = calm.requests["arrival_s"], calm.requests["e2el_s"]
    limit_s = arrival_s[-1] - np.quantile(e2el_s, 0.99)
    assert arrival_s[-last - 1] <= limit_s < arrival_s[-last]
    expected = BatchMeans(1000 * e2el_s[first:-last]).mean()
    assert block["mean_e2el_ms"]["value"] == pytest.approx(expected.estimate)
    assert block["mean_e2el_ms"]["high"] == pytest.approx(expected.high)
    assert expected.holds(Case("M/G/1", 0.5, 0, 1).truth_ms)
    assert (block["refused"], block["num_batches"]) == (None, 20)
    assert "batches of 1,000 requests are needed" in block["p99_e2el_ms"]["refused"]


def test_the_run_s_own_figures_are_those_of_all_requests(calm: Result) -> None:
    assert calm.summary["mean_e2el_ms"] == pytest.approx(1000 * calm.requests["e2el_s"].mean())
    assert calm.summary["mean_e2el_ms"] != calm.summary["simbatch"]["steady_state"]["mean_e2el_ms"]["value"]


def test_the_line_of_the_report(calm: Result) -> None:
    line = steady_line(calm.summary["simbatch"]["steady_state"])
    assert line.startswith("Steady state: E2EL mean 0.2")
    assert "(95 % interval 0." in line
    assert "over 20 batches; left out: the first 400 requests as warm-up, the last " in line


def test_constant_figures_are_known_exactly() -> None:
    arrival = {"process": "constant", "request_rate": 5}
    block = steady(queue(0.5, 1000, "M/D/1", **{"workload.arrival": arrival}))
    for key in ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms"):
        assert block[key]["low"] == pytest.approx(block[key]["high"])
        assert block[key]["refused"] is None


def test_single_tokens_have_no_tpot_and_an_e2el() -> None:
    one = {"workload.output_len": {"distribution": "fixed", "mean": 1}}
    block = steady(queue(0.005, 1000, **one))
    assert block["mean_tpot_ms"] == {
        "value": None,
        "low": None,
        "high": None,
        "refused": "too short: 0 requests are left, 200 are needed",
    }
    assert block["mean_e2el_ms"]["refused"] is None


@pytest.mark.parametrize(
    ("load", "num_prompts", "changes", "reason"),
    [
        (1.2, 2000, {}, "overloaded"),
        (1.05, 20_000, {}, "overloaded"),  # few wait compared with all that came, and always more
        (0.5, 200, {}, "too short: 17"),
        (0.5, 2000, {"workload.arrival": {"process": "all_at_once"}}, "nothing arrived over time"),
        (
            0.5,
            2000,
            {"workload.arrival": {"process": "ramp", "ramp_up_start_rps": 1, "ramp_up_end_rps": 7}},
            "the request rate never stays the same",
        ),
        (
            0.5,
            2000,
            {"workload.arrival": {"process": "on_off", "request_rate": 8, "on_s": 30, "off_s": 30}},
            "too short: the arrivals go up and down",
        ),
        (
            0.5,
            2000,
            {"workload.arrival": {"process": "daily", "request_rate": 5, "period_s": 100}},
            "too short: the arrivals go up and down 3.",
        ),
    ],
)
def test_what_is_refused(load: float, num_prompts: int, changes: dict[str, Any], reason: str) -> None:
    block = steady(queue(load, num_prompts, **changes))
    assert block["refused"].startswith(reason)
    assert block["mean_e2el_ms"] == {"value": None, "low": None, "high": None, "refused": None}
    assert reason in steady_line(block)
    assert json.dumps(block)  # plain data


def test_bursts_that_come_often_enough_are_a_steady_state() -> None:
    arrival = {"process": "on_off", "request_rate": 8, "on_s": 5, "off_s": 5}
    block = steady(queue(0.5, 3000, **{"workload.arrival": arrival}))
    assert block["refused"] is None
    assert block["mean_e2el_ms"]["low"] > 0


def test_a_part_that_is_not_known_well_refuses_the_whole() -> None:
    """Outputs of very different lengths hide a slow queue in E2EL; TTFT shows it."""
    block = steady(queue(0.9, 1500, "M/G/1"))
    assert "independent ones, and 100 are needed" in block["mean_ttft_ms"]["refused"]
    assert block["mean_e2el_ms"]["refused"] is not None
    assert block["mean_e2el_ms"]["value"] > 0


@pytest.mark.parametrize("load", [0.8, 0.95])
@pytest.mark.parametrize("burstiness", [1.0, 0.25])
def test_a_system_that_bears_its_load_is_never_called_overloaded(load: float, burstiness: float) -> None:
    gamma = {"process": "gamma", "request_rate": 10 * load, "burstiness": burstiness, "rescale": False}
    records = [one_seat(queue(load, seed=seed, **{"workload.arrival": gamma})) for seed in range(100)]
    assert sum(map(is_overloaded, records)) <= 1


def test_a_little_too_much_is_noticed_when_the_run_is_long() -> None:
    records = [one_seat(queue(1.05, 40_000, seed=seed)) for seed in range(20)]
    assert all(map(is_overloaded, records))
