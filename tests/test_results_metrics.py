"""The metrics of `vllm bench serve`, and the registry under every command."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS
from simbatch.sim.report.result import Result
from tests.results_records import (
    MS,
    REFUSED,
    REJECTED,
    UNFINISHED,
    S,
    Step,
    Toy,
    back_to_back,
    build,
    facts,
    token_times,
)

STATISTICS = ("mean", "median", "std", "p90", "p95", "p99")


def by_hand():
    """Two requests: sent at 0 and 0.1 s, steps of 100, 20, 30, 40 and 50 ms from 0.1 s on.

    a: prefill in step 0, tokens at 0.2, 0.22, 0.25 s. b: prefill in step 2, tokens at 0.25, 0.29, 0.34 s.
    """
    steps = back_to_back([100 * MS, 20 * MS, 30 * MS, 40 * MS, 50 * MS], start_ps=100 * MS)
    return [Toy(0, [0, 1, 2], 10), Toy(100 * MS, [2, 3, 4], 30)], steps


def test_the_keys_by_hand():
    summary = Result(build(*by_hand()), facts(slo=SloLimits(ttft_ms=150, tpot_ms=45))).summary
    assert summary["duration"] == 0.34
    assert (summary["completed"], summary["failed"]) == (2, 0)
    assert (summary["total_input_tokens"], summary["total_output_tokens"]) == (40, 6)
    assert summary["request_throughput"] == pytest.approx(2 / 0.34)
    assert summary["output_throughput"] == pytest.approx(6 / 0.34)
    assert summary["total_token_throughput"] == pytest.approx(46 / 0.34)
    assert summary["mean_ttft_ms"] == 175  # 200 and 150
    assert summary["std_ttft_ms"] == 25
    assert summary["p90_ttft_ms"] == pytest.approx(195)
    assert summary["mean_tpot_ms"] == 35  # (250-200)/2 and (340-250)/2
    assert summary["mean_itl_ms"] == 35  # 20, 30, 40, 50
    assert summary["median_itl_ms"] == 35
    assert summary["p99_itl_ms"] == pytest.approx(49.7)
    assert summary["std_itl_ms"] == pytest.approx(math.sqrt(125))
    assert summary["mean_e2el_ms"] == 245  # 250 and 240
    assert summary["request_goodput"] == pytest.approx(1 / 0.34)  # only b, on both its limits
    assert summary["max_output_tokens_per_s"] == 6
    assert summary["max_concurrent_requests"] == 2


def test_the_client_sees_its_overhead_in_ttft_e2el_and_the_end():
    plain, late = build(*by_hand()), build(*by_hand(), client_overhead_ps=5 * MS)
    before, after = Result(plain, facts()).summary, Result(late, facts()).summary
    assert after["mean_ttft_ms"] == before["mean_ttft_ms"] + 5
    assert after["mean_e2el_ms"] == before["mean_e2el_ms"] + 5
    assert after["mean_tpot_ms"] == before["mean_tpot_ms"]
    assert after["duration"] == 0.345


def timed():
    """A run whose tokens exist 5 ms after the device's ends, and leave the server 0, 10, 1, 1 and 2 ms later."""
    toys, steps = by_hand()
    late(steps, [5 * MS, 0, 5 * MS, 10 * MS, 5 * MS, 1 * MS, 5 * MS, 1 * MS, 5 * MS, 2 * MS])
    return toys, steps


def test_with_host_and_front_end_latencies_are_the_clients_and_the_columns_the_engines():
    """a: its tokens leave at 205, 235 and 256 ms; b: at 256, 296 and 347 ms; the network takes 3 ms."""
    result = Result(build(*timed(), client_overhead_ps=3 * MS), facts(slo=SloLimits(ttft_ms=170)))
    summary = result.summary
    assert summary["mean_ttft_ms"] == (208 + 159) / 2
    assert summary["mean_tpot_ms"] == pytest.approx(((256 - 205) / 2 + (347 - 256) / 2) / 2)
    assert summary["mean_itl_ms"] == pytest.approx((30 + 21 + 40 + 51) / 4)
    assert summary["p99_itl_ms"] == pytest.approx(51 - 0.03 * 11)
    assert summary["mean_e2el_ms"] == (259 + 250) / 2
    assert summary["duration"] == 0.35
    assert summary["request_goodput"] == pytest.approx(1 / 0.35)
    assert summary["simbatch"]["mean_concurrent_requests"] == pytest.approx((259 + 250) / 350)
    requests = result.requests
    assert requests["first_token_s"].tolist() == [0.205, 0.255]
    assert requests["finish_s"].tolist() == [0.255, 0.345]
    assert requests["client_first_token_s"].tolist() == [0.208, 0.259]
    assert requests["client_finish_s"].tolist() == [0.259, 0.35]
    np.testing.assert_allclose(requests["ttft_s"], [0.208, 0.159])
    np.testing.assert_allclose(requests["tpot_s"], [0.0255, 0.0455])


@pytest.mark.parametrize(("front_end_ms", "peak"), [(0, 4), (60, 3)])
def test_the_peak_of_tokens_per_second_counts_when_the_client_gets_them(front_end_ms, peak):
    """Tokens at 0.4, 0.6, 0.8, 0.95 and 1.15 s of the engine: a second from the send holds four, or later three."""
    steps = [Step(at * MS - 50 * MS, 50 * MS) for at in (400, 600, 800, 950, 1150)]
    late(steps, [0, front_end_ms * MS] * 5)
    toys = [Toy(0, [0, 1, 2, 3, 4])]
    assert Result(build(toys, steps), facts()).summary["max_output_tokens_per_s"] == peak
    # the same from a later send: the buckets begin with it
    moved = [Step(s.start_ps + 700 * MS, s.duration_ps, s.updated_ps + 700 * MS, s.sent_ps + 700 * MS) for s in steps]
    assert Result(build([Toy(700 * MS, [0, 1, 2, 3, 4])], moved), facts()).summary["max_output_tokens_per_s"] == peak


@pytest.mark.parametrize(("network_ms", "peak"), [(0, 4), (60, 3)])
def test_the_network_moves_tokens_from_one_second_to_the_next(network_ms, peak):
    steps = [Step(at * MS - 50 * MS, 50 * MS) for at in (400, 600, 800, 950, 1150)]
    for step in steps:
        step.updated_ps = step.end_ps
    for merge in (True, False):
        record = build([Toy(0, [0, 1, 2, 3, 4])], steps, client_overhead_ps=network_ms * MS, merge=merge)
        assert Result(record, facts()).summary["max_output_tokens_per_s"] == peak


def test_refused_requests_are_failed_with_their_reasons_and_wait_nowhere():
    toys, steps = by_hand()
    toys += [Toy(50 * MS, [], 70, status=REFUSED), Toy(3 * S, [], 70, status=REFUSED)]
    result = Result(build(toys, steps), facts(slo=SloLimits(ttft_ms=1000)))
    summary, ours = result.summary, result.summary["simbatch"]
    assert (summary["completed"], summary["failed"], summary["duration"]) == (2, 2, 3.0)
    assert summary["mean_ttft_ms"] == 175
    assert ours["requests"] == {"total": 4, "finished": 2, "rejected": 0, "unfinished": 0, "refused": 2}
    assert ours["refused_reasons"] == [{"count": 2, "example": "max_num_queued_reqs: 4 in the server"}]
    assert ours["rejected_reasons"] == []
    assert ours["queue"]["max_waiting"] == 1
    assert ours["longest_wait"]["request_id"] == "1"
    assert ours["warnings"] == ["2 of 4 requests got a 503 of the front end: `refused_reasons` says why."]
    assert "Refused 2: max_num_queued_reqs: 4 in the server" in result.text()
    assert result.requests["status"].tolist()[2:] == ["refused", "refused"]


def test_rejected_and_unfinished_requests_are_failed_and_enter_no_latency():
    toys, steps = by_hand()
    toys += [Toy(50 * MS, [], 9000, status=REJECTED), Toy(60 * MS, [1, 2], 7, status=UNFINISHED)]
    summary = Result(build(toys, steps), facts(slo=SloLimits(ttft_ms=1000))).summary
    assert (summary["completed"], summary["failed"]) == (2, 2)
    assert summary["total_input_tokens"] == 40
    assert summary["mean_ttft_ms"] == 175
    ours = summary["simbatch"]
    assert ours["requests"] == {"total": 4, "finished": 2, "rejected": 1, "unfinished": 1, "refused": 0}
    assert ours["rejected_reasons"] == [{"count": 1, "example": "prompt of 9000 tokens"}]
    assert ours["slo_share"] == {"all": 0.5, "ttft": 0.5}


def test_the_clock_stops_at_the_last_response_a_rejection_included():
    toys, steps = by_hand()
    late = Toy(2 * S, [], 9000, status=REJECTED)
    assert Result(build([*toys, late], steps), facts()).summary["duration"] == 2.0


def test_what_was_not_measured_is_null():
    single = build([Toy(0, [0])], back_to_back([MS]))
    summary = Result(single, facts()).summary
    assert summary["mean_tpot_ms"] is None
    assert summary["p99_itl_ms"] is None
    assert summary["request_goodput"] is None
    assert summary["mean_ttft_ms"] == 1


def test_a_run_without_requests_has_a_summary():
    summary = Result(build([], []), facts(slo=SloLimits(ttft_ms=1))).summary
    assert summary["duration"] == 0
    assert summary["request_throughput"] is None
    assert summary["simbatch"]["slo_share"] == {"all": None, "ttft": None}


@pytest.mark.parametrize(("limit_ms", "is_good"), [(25, True), (24.999999999, False)])
def test_a_limit_itself_is_within_the_slo(limit_ms, is_good):
    record = build([Toy(0, [0, 1, 2])], back_to_back([10 * MS, 20 * MS, 30 * MS]))
    summary = Result(record, facts(slo=SloLimits(tpot_ms=limit_ms))).summary
    assert (summary["request_goodput"] > 0) is is_good


def test_a_single_token_is_within_any_tpot():
    summary = Result(build([Toy(0, [0])], back_to_back([MS])), facts(slo=SloLimits(tpot_ms=1e-6))).summary
    assert summary["request_goodput"] == 1000


def test_peak_concurrency_counts_half_open_intervals():
    steps = back_to_back([S, S, S])
    touching = [Toy(0, [0]), Toy(S, [1]), Toy(2 * S, [2])]
    assert Result(build(touching, steps), facts()).summary["max_concurrent_requests"] == 1
    overlapping = [Toy(0, [0, 1]), Toy(S, [1]), Toy(S, [1, 2])]
    assert Result(build(overlapping, steps), facts()).summary["max_concurrent_requests"] == 3


@st.composite
def runs(draw):
    """Steps with pauses, requests that take part in some of them: prefills, decodes, stalls, failures."""
    n_steps = draw(st.integers(1, 14))
    steps, clock = [], draw(st.integers(0, 3 * S))
    base = draw(st.integers(1, 800)) * MS
    for k in range(n_steps):
        duration = base + k * draw(st.sampled_from([0, MS, MS, 50 * MS]))
        clock += draw(st.sampled_from([0, 0, 0, 0, 7 * MS, 2 * S]))
        steps.append(Step(clock, duration))
        clock += duration
    toys = []
    for _ in range(draw(st.integers(1, 6))):
        first = draw(st.integers(0, n_steps - 1))
        last = draw(st.integers(first, n_steps - 1))
        taken = [k for k in range(first, last + 1) if k in (first, last) or draw(st.integers(0, 5))]
        arrival = draw(st.integers(0, steps[first].start_ps))
        if draw(st.integers(0, 6)):
            toys.append(Toy(arrival, taken, draw(st.integers(1, 50)), draw(st.integers(0, 2))))
        else:
            toys.append(Toy(arrival, [], 99, status=REJECTED))
    if draw(st.booleans()):
        late(steps, [draw(st.sampled_from([0, 0, 5 * MS, 300 * MS])) for _ in range(2 * n_steps)])
    return toys, steps, draw(st.sampled_from([0, 3 * MS]))


def late(steps, delays):
    """Give each step an update after its end, and tokens that leave after that, in the order of the steps."""
    updated = sent = 0
    for step, on_host, at_front_end in zip(steps, delays[::2], delays[1::2], strict=True):
        step.updated_ps = updated = max(step.end_ps, updated) + on_host
        step.sent_ps = sent = max(updated, sent) + at_front_end


def described(values):
    if not len(values):
        return dict.fromkeys(STATISTICS)
    figures = (np.mean(values), np.median(values), np.std(values), *(np.percentile(values, p) for p in (90, 95, 99)))
    return {name: 1000 * figure for name, figure in zip(STATISTICS, figures, strict=True)}


@given(runs())
def test_the_same_as_one_timestamp_per_token_gives(run):
    toys, steps, overhead = run
    slo = SloLimits(ttft_ms=1500, tpot_ms=900.5, e2el_ms=6000)
    summary = Result(build(toys, steps, client_overhead_ps=overhead), facts(slo=slo)).summary
    done = [toy for toy in toys if toy.steps]
    times = [[(t + overhead) / S for t in token_times(steps, toy)] for toy in done]
    sent = [toy.arrival_ps / S for toy in done]
    ttft = [own[0] - start for own, start in zip(times, sent, strict=True)]
    e2el = [own[-1] - start for own, start in zip(times, sent, strict=True)]
    tpot = [(own[-1] - own[0]) / (len(own) - 1) for own in times if len(own) > 1]
    itl = [later - earlier for own in times for earlier, later in pairwise(own)]
    for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", e2el)):
        for statistic, expected in described(values).items():
            assert summary[f"{statistic}_{name}_ms"] == (
                None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-6)
            )
    origin = min((toy.arrival_ps for toy in done), default=0)
    buckets = [(t + overhead - origin) // S for toy in done for t in token_times(steps, toy)]
    assert summary["max_output_tokens_per_s"] == max(map(buckets.count, buckets), default=0)
    spans = [(toy.arrival_ps, token_times(steps, toy)[-1] + overhead) for toy in done]
    assert summary["max_concurrent_requests"] == max((sum(a <= t < b for a, b in spans) for t, _ in spans), default=0)


@given(runs())
def test_spans_and_single_steps_say_the_same(run):
    toys, steps, overhead = run
    known = facts(has_host=True, max_capture_size=2)
    spans = Result(build(toys, steps, client_overhead_ps=overhead), known).summary
    single = Result(build(toys, steps, client_overhead_ps=overhead, merge=False), known).summary
    assert {key: value for key, value in spans.items() if key != "simbatch"} == {
        key: value for key, value in single.items() if key != "simbatch"
    }
    for key in ("num_steps", "queue", "classes", "device_busy_share", "mean_concurrent_requests", "host_wait_after"):
        assert spans["simbatch"][key] == single["simbatch"][key]
    assert spans["simbatch"]["batch_size"] == single["simbatch"]["batch_size"]


def test_every_figure_that_is_computed_stands_in_the_summary_under_its_key() -> None:
    """One whose key is neither vLLM's nor begins with `simbatch.` would be lost there."""
    toys, steps = by_hand()
    summary = Result(build(toys, steps), facts()).summary

    def stands(key: str) -> bool:
        level = summary
        *levels, name = key.split(".")
        for each in levels:
            level = level.get(each, {})
        return name in level

    computed = [key for key, metric in REGISTRY.items() if metric.compute is not None and not key.startswith(SESSIONS)]
    assert [key for key in computed if not stands(key)] == []
