"""The capacity of queues whose capacity is known."""

from __future__ import annotations

from typing import Any

import pytest

from simbatch import Scenario, UserError
from simbatch.sim.search.capacity import Capacity, at_rate, capacity_limits, find_capacity, rates_of
from simbatch.sim.search.capacity_report import content, report
from simbatch.sim.search.tune_goal import Limit
from simbatch.sim.search.tune_run import Runner

SERVICE_S = 0.01


def one_server(rate: float = 20.0, num_prompts: int = 2500, **workload: Any) -> Scenario:
    """M/D/1: Poisson arrivals, one seat, and each request is one step of 10 ms."""
    data: dict[str, Any] = {
        "profile": {"num_gpu_blocks": 1000, "max_model_len": 64, "step_time": {"base_s": SERVICE_S}},
        "engine": {"max_num_seqs": 1},
        "workload": {
            "num_prompts": num_prompts,
            "arrival": {"process": "poisson", "request_rate": rate},
            "prompt_len": {"distribution": "fixed", "mean": 10},
            "output_len": {"distribution": "fixed", "mean": 1},
            **workload,
        },
    }
    return Scenario.from_dict(data)


def capacity(scenario: Scenario, *limits: str, replications: int = 8) -> Capacity:
    kept = capacity_limits(scenario, tuple(map(Limit.parse, limits)))
    return find_capacity(scenario, kept, Runner(scenario, jobs=1), replications)


@pytest.mark.parametrize(("busy", "start"), [(0.5, 3.0), (0.7, 300.0)])
def test_the_interval_holds_the_capacity_of_m_d_1(busy: float, start: float) -> None:
    mean_ms = 1000 * SERVICE_S * (1 + busy / (2 * (1 - busy)))  # Pollaczek and Khinchine
    found = capacity(one_server(start), f"mean_e2el_ms={mean_ms}")
    assert found.interval is not None
    assert found.interval.holds(busy / SERVICE_S)
    assert found.interval.half_width < 0.05 * found.interval.estimate
    assert not found.is_upper_bound
    assert max(found.binding(), key=found.binding().__getitem__) == f"mean_e2el_ms <= {mean_ms:g}"


def test_where_latency_hardly_matters_the_queue_binds() -> None:
    found = capacity(one_server(num_prompts=2000), "p99_e2el_ms=100000", replications=6)
    assert found.interval is not None
    assert 0.9 / SERVICE_S < found.interval.estimate < 1.1 / SERVICE_S
    assert list(found.binding()) == ["overloaded"]
    assert found.is_upper_bound
    assert "a queue that keeps growing" in report(found)


def test_a_limit_below_the_service_time_is_an_answer() -> None:
    found = capacity(one_server(num_prompts=200), "p99_e2el_ms=9", replications=2)
    assert (found.is_feasible, found.interval) == (False, None)
    assert "No rate holds" in report(found)
    assert found.binding() == {"p99_e2el_ms <= 9": 2}
    answer = content(found, 1)
    assert (answer["feasible"], answer["rate"], answer["set"]) == (False, None, None)


def test_a_rate_that_never_fails_is_said() -> None:
    scenario = one_server(num_prompts=50, max_concurrency=1)
    found = capacity(scenario, "mean_e2el_ms=10.5", replications=2)
    assert (found.is_feasible, found.interval) == (True, None)
    assert "No rate fails" in report(found)


def test_the_slo_names_the_latency_that_binds() -> None:
    scenario = one_server(num_prompts=500).override({"slo": {"ttft_ms": 30, "e2el_ms": 10000}})
    found = capacity(scenario, replications=3)
    assert str(found.limits[0]) == "simbatch.slo_share.all >= 0.99"
    assert found.binding()["slo.ttft_ms"] == 3


def test_every_rate_is_raised_alike() -> None:
    bursts = {"process": "on_off", "request_rate": 8, "off_request_rate": 2, "on_s": 5, "off_s": 5}
    scenario = one_server(arrival=bursts)
    assert at_rate(scenario, 16) == {"workload.arrival.request_rate": 16, "workload.arrival.off_request_rate": 4}


def test_users_who_wait_have_no_rate() -> None:
    with pytest.raises(UserError, match="no request rate"):
        rates_of(one_server(arrival={"process": "closed_loop", "max_concurrency": 4}))


def test_without_slo_and_limit_there_is_nothing_to_meet() -> None:
    with pytest.raises(UserError, match="has no SLO"):
        capacity_limits(one_server(), ())
