"""Arrival processes: vLLM's semantics, their statistics, and no dependence on chunks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.sim.errors import UserError
from simbatch.sim.workload import arrivals
from simbatch.sim.workload.arrivals import arrival_times
from simbatch.sim.workload.chunk import Purpose, stream
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.synthetic import length_draw

FIXED = {"distribution": "fixed", "mean": 10}


def times_s(num_prompts: int, seed: int = 0, **workload: Any) -> Any:
    data = {"num_prompts": num_prompts, "prompt_len": FIXED, "output_len": FIXED, **workload}
    process = Workload.model_validate(data).resolved_arrival()
    chunks = list(arrival_times(process, num_prompts, lambda: stream(seed, Purpose.ARRIVALS)))
    assert all(len(chunk) <= arrivals.CHUNK_SIZE for chunk in chunks)
    return np.concatenate(chunks) / 1e12


def gaps(times: Any) -> Any:
    return np.diff(times, prepend=0.0)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_burstiness(burstiness: float) -> None:
    found = gaps(times_s(100_000, request_rate=5, burstiness=burstiness))
    assert found.mean() == pytest.approx(0.2, rel=1e-9)  # rescaled: exact
    assert found.std() / found.mean() == pytest.approx(burstiness**-0.5, rel=0.03)
    assert found[0] > 0  # the first request comes after a gap


def test_the_last_arrival_is_rescaled_to_its_place_as_vllm_does() -> None:
    assert times_s(70_000, request_rate=7, burstiness=0.5)[-1] == pytest.approx(10_000, abs=1e-9)
    assert times_s(1, request_rate=4)[-1] == pytest.approx(0.25, abs=1e-12)


def test_rescaling_stretches_the_unscaled_process() -> None:
    scaled, plain = times_s(5_000, request_rate=3), times_s(5_000, request_rate=3, rescale=False)
    assert plain[-1] != pytest.approx(5_000 / 3, rel=1e-6)
    assert scaled == pytest.approx(plain * (5_000 / 3 / plain[-1]), rel=1e-9)


def test_the_gaps_are_numpys_gamma_with_vllms_parameters() -> None:
    plain = times_s(1_000, seed=3, request_rate=2, burstiness=0.5, rescale=False)
    expected = np.cumsum(stream(3, Purpose.ARRIVALS).gamma(0.5, 1 / (2 * 0.5), 1_000))
    assert plain == pytest.approx(expected, abs=1e-12)


def test_poisson_is_the_unscaled_process_of_burstiness_1() -> None:
    poisson = times_s(1_000, arrival={"process": "poisson", "request_rate": 2})
    assert poisson == pytest.approx(times_s(1_000, request_rate=2, rescale=False), abs=0)


def test_constant_gaps() -> None:
    assert times_s(4, request_rate=2, arrival={"process": "constant"}).tolist() == [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("process", [{"process": "all_at_once"}, {"process": "closed_loop", "max_concurrency": 2}])
def test_processes_without_times(process: dict[str, Any]) -> None:
    assert times_s(3, arrival=process).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("strategy", "middle"), [("linear", 55.0), ("exponential", 10.0)])
def test_a_ramps_rate_goes_by_the_requests_number(strategy: str, middle: float) -> None:
    end = 109 if strategy == "linear" else 100
    ramp = {"process": "ramp", "ramp_up_strategy": strategy, "ramp_up_start_rps": 1, "ramp_up_end_rps": end}
    found = gaps(times_s(200_001, arrival=ramp | {"burstiness": 100.0}))
    assert found[:50].mean() == pytest.approx(1, rel=0.06)
    assert 1 / found[99_000:101_000].mean() == pytest.approx(middle, rel=0.05)
    assert 1 / found[-500:].mean() == pytest.approx(end, rel=0.05)


def test_a_ramp_is_not_rescaled() -> None:
    ramp = {"process": "ramp", "ramp_up_start_rps": 2, "ramp_up_end_rps": 2}
    assert times_s(500, arrival=ramp) == pytest.approx(times_s(500, request_rate=2, rescale=False), rel=1e-12)


def test_on_off_has_its_rates_within_their_times() -> None:
    process = {"process": "on_off", "request_rate": 20, "off_request_rate": 2, "on_s": 10, "off_s": 30}
    found = times_s(130_000, arrival=process)
    in_burst = found % 40 < 10
    cycles = found[-1] / 40
    assert in_burst.sum() / cycles / 10 == pytest.approx(20, rel=0.03)
    assert (~in_burst).sum() / cycles / 30 == pytest.approx(2, rel=0.03)


def test_nothing_arrives_in_a_silent_pause() -> None:
    found = times_s(5_000, arrival={"process": "on_off", "request_rate": 5, "on_s": 2, "off_s": 8})
    assert (found % 10 <= 2 + 1e-9).all()
    assert found[-1] == pytest.approx(5_000, rel=0.1)


def test_a_day_has_its_peak_and_its_mean() -> None:
    day = {"process": "daily", "request_rate": 50, "amplitude": 0.8, "period_s": 1000, "peak_s": 250}
    found = times_s(250_000, arrival=day)
    by_hour = np.histogram(found % 1000, bins=20, range=(0, 1000))[0] / (found[-1] / 1000) / 50
    middles = np.arange(25, 1000, 50)
    assert by_hour == pytest.approx(50 * (1 + 0.8 * np.cos(2 * np.pi * (middles - 250) / 1000)), rel=0.06)
    assert 250_000 / found[-1] == pytest.approx(50, rel=0.02)


def test_a_day_whose_rate_falls_to_zero_has_ordered_times() -> None:
    found = times_s(20_000, arrival={"process": "daily", "request_rate": 10, "amplitude": 1, "period_s": 100})
    assert (np.diff(found) >= 0).all()


def test_a_run_longer_than_the_clock_is_refused() -> None:
    with pytest.raises(UserError, match=r"workload\.num_prompts: arrivals end after more than 9200000 s .*\(got 10\)"):
        times_s(10, request_rate=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    process=st.sampled_from(
        [
            {"process": "gamma", "request_rate": 5, "burstiness": 0.3},
            {"process": "constant", "request_rate": 3},
            {"process": "on_off", "request_rate": 5, "off_request_rate": 1, "on_s": 3, "off_s": 4},
            {"process": "ramp", "ramp_up_start_rps": 1, "ramp_up_end_rps": 5},
            {"process": "daily", "request_rate": 5, "period_s": 20},
        ]
    ),
    seed=st.integers(0, 2**63 - 1),
    num_prompts=st.integers(1, 60),
    chunk_size=st.integers(1, 25),
)
def test_chunks_do_not_change_the_times(process: dict[str, Any], seed: int, num_prompts: int, chunk_size: int) -> None:
    whole = times_s(num_prompts, seed, arrival=process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrivals, "CHUNK_SIZE", chunk_size)
        parts = times_s(num_prompts, seed, arrival=process)
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-9)
    assert (np.diff(whole) >= 0).all()


def draw(n: int = 200_000, folder: Path = Path(), **length: Any) -> Any:
    data = {"num_prompts": 1, "request_rate": 1, "prompt_len": length, "output_len": length}
    model = Workload.model_validate(data).prompt_len
    return length_draw(model, folder=folder, of="num_prompt_tokens")(np.random.default_rng(1), n)


def test_fixed() -> None:
    assert draw(3, distribution="fixed", mean=7).tolist() == [7, 7, 7]


def test_uniform_has_every_length_between_its_bounds() -> None:
    found = Counter(draw(distribution="uniform", min=3, max=7).tolist())
    assert set(found) == {3, 4, 5, 6, 7}
    assert all(n / 40_000 == pytest.approx(1, rel=0.05) for n in found.values())


def test_uniform_by_mean_and_cv() -> None:
    found = draw(distribution="uniform", mean=1000, cv=0.4)
    assert found.mean() == pytest.approx(1000, rel=0.01)
    assert found.std() / found.mean() == pytest.approx(0.4, rel=0.01)
    assert (found.min(), found.max()) == pytest.approx((1000 * (1 - 0.4 * 3**0.5), 1000 * (1 + 0.4 * 3**0.5)), rel=0.01)


@pytest.mark.parametrize("cv", [0.2, 0.8, 1.5])
def test_lognormal_has_exactly_this_mean_and_cv(cv: float) -> None:
    found = draw(500_000, distribution="lognormal", mean=800, cv=cv)
    assert found.mean() == pytest.approx(800, rel=0.01)
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)
    assert np.log(found).std() == pytest.approx(np.sqrt(np.log(1 + cv**2)), rel=0.02)


def test_lognormal_without_variation_is_fixed() -> None:
    assert set(draw(100, distribution="lognormal", mean=800, cv=0)) == {800}


def test_draws_beyond_the_bounds_are_set_to_them_and_the_mean_is_before_that() -> None:
    found = draw(distribution="lognormal", mean=800, cv=1.0, min=100, max=1000)
    free = draw(distribution="lognormal", mean=800, cv=1.0)
    assert found.tolist() == np.clip(free, 100, 1000).tolist()
    assert (found == 1000).mean() == pytest.approx((free >= 1000).mean())
    assert found.mean() < 700


def test_no_length_is_below_one() -> None:
    assert draw(distribution="lognormal", mean=0.5, cv=2).min() == 1


def test_geometric_has_its_mean_and_probabilities() -> None:
    found = draw(distribution="geometric", mean=4)
    assert found.mean() == pytest.approx(4, rel=0.02)
    assert (found == 1).mean() == pytest.approx(0.25, rel=0.03)
    assert (found == 2).mean() == pytest.approx(0.1875, rel=0.03)


def test_empirical_draws_the_traces_own_lengths(tmp_path: Path) -> None:
    trace = "arrival_s,num_prompt_tokens,num_output_tokens\n0,10,1\n1,10,2\n2,30,3\n3,99,4\n"
    (tmp_path / "t.csv").write_text(trace)
    found = Counter(draw(80_000, tmp_path, distribution="empirical", path="t.csv", max=50).tolist())
    assert set(found) == {10, 30, 50}
    assert found[10] / 80_000 == pytest.approx(0.5, rel=0.03)
    assert found[50] / 80_000 == pytest.approx(0.25, rel=0.03)


def test_empirical_names_its_key_when_the_trace_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^workload\.prompt_len\.path: there is no such file"):
        draw(1, tmp_path, distribution="empirical", path="no.csv")


def test_quantiles_are_met_and_two_of_them_are_lognormal() -> None:
    points = {"p5": 40, "p50": 800, "p90": 801, "p99": 6000}
    found = draw(distribution="quantiles", **points)
    for name, tokens in points.items():
        assert np.percentile(found, int(name[1:])) == pytest.approx(tokens, rel=0.03), name
    two = np.log(draw(distribution="quantiles", p50=800, p99=6000))
    assert two.std() == pytest.approx(np.log(6000 / 800) / 2.3263, rel=0.02)
    assert draw(distribution="quantiles", p50=800, p99=6000, max=900).max() == 900


def test_quantiles_that_fall_or_stand_alone_are_refused() -> None:
    for points, said in (({"p50": 800}, "two points are needed"), ({"p50": 800, "p90": 700}, "must be at least 800")):
        with pytest.raises(ValueError, match=said):
            draw(distribution="quantiles", **points)
