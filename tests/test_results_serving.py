"""Queue, KV cache and batch over time, and whom the run waited for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch.sim.cost.uncertainty import NO_HOST_TIMES
from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.metrics.curves import waiting_with_preempted
from simbatch.sim.metrics.steady import is_overloaded
from simbatch.sim.metrics.step_function import Curve
from tests.results_records import MS, REJECTED, UNFINISHED, S, Toy, back_to_back, build, ours


def test_the_engine_by_hand():
    """Two steps of 1 s from 1 s on, a pause of 1 s, one step: 10 blocks a request of 100, and 4 s in all."""
    steps = [*back_to_back([S, S], start_ps=S), *back_to_back([S], start_ps=4 * S)]
    record = build([Toy(0, [0, 1]), Toy(S, [1]), Toy(2 * S, [2])], steps)
    block = ours(record)
    assert block["kv_cache"]["usable_blocks"] == 100
    assert block["kv_cache"]["mean_use"] == pytest.approx((0.1 + 0.2 + 0.1) / 5)
    assert block["kv_cache"]["peak_use"] == 0.2
    assert block["batch_size"] == {"mean": 4 / 3, "max": 2}
    assert block["num_steps"] == 3
    assert block["device_busy_share"] == 3 / 5
    queue = block["queue"]
    assert queue["mean_waiting"] == pytest.approx(4 / 5)  # waits of 1, 1 and 2 s in 5 s
    assert queue["max_waiting"] == 1
    assert queue["mean_wait_ms"] == pytest.approx(4000 / 3)
    assert block["mean_concurrent_requests"] == pytest.approx((3 + 2 + 3) / 5)


def test_blocks_fill_evenly_within_a_span():
    record = build([Toy(0, list(range(17)))], back_to_back([S] * 17))
    span = record.segments[1]
    assert (span["num_steps"], span["num_decodes"]) == (16, 1)
    # 10 blocks at its end and 15 tokens fewer at its start: 15/16 of a block fewer, half of that on average
    assert ours(record)["kv_cache"]["mean_use"] == pytest.approx((10 + 16 * (10 - 15 / 32)) / 17 / 100)


def test_a_block_per_class_the_most_urgent_first():
    steps = back_to_back([100 * MS, 100 * MS, 100 * MS])
    toys = [Toy(0, [2], priority=1), Toy(0, [0], priority=0), Toy(0, [1], priority=7), Toy(0, [], 1, 7, REJECTED)]
    block = ours(build(toys, steps), slo=SloLimits(ttft_ms=250))
    assert list(block["classes"]) == ["high", "normal", "7"]
    assert [b["mean_ttft_ms"] for b in block["classes"].values()] == [100, 300, 200]
    assert [b["slo_share"]["all"] for b in block["classes"].values()] == [1, 0, 0.5]
    assert block["classes"]["7"]["requests"] == {
        "total": 2,
        "finished": 1,
        "rejected": 1,
        "unfinished": 0,
        "refused": 0,
    }
    assert block["classes"]["high"]["request_goodput"] == pytest.approx(1 / 0.3)
    assert block["slo_share"] == {"all": 0.5, "ttft": 0.5}


def test_no_classes_when_nobody_has_a_priority():
    assert ours(build([Toy(0, [0])], back_to_back([MS])))["classes"] == {}


def test_reasons_that_differ_in_numbers_alone_are_one():
    toys = [Toy(0, [], n, status=REJECTED) for n in (9000, 9001, 12000)]
    assert ours(build(toys, []))["rejected_reasons"] == [{"count": 3, "example": "prompt of 9000 tokens"}]


def test_the_share_of_cached_prompt_tokens():
    toys = [Toy(0, [0], 100, num_cached_tokens=48), Toy(0, [0], 60), Toy(0, [], 1000, status=REJECTED)]
    assert ours(build(toys, back_to_back([MS])))["cached_tokens_share"] == 48 / 160


def queue_of(num_requests, service_ms, gap_ms):
    """One seat, a request every `gap_ms`, each a step of `service_ms`."""
    toys = [Toy(i * gap_ms * MS, [i]) for i in range(num_requests)]
    starts = []
    for toy in toys:
        starts.append(max(toy.arrival_ps, starts[-1] + service_ms * MS if starts else 0))
    steps = [back_to_back([service_ms * MS], start_ps=start)[0] for start in starts]
    return build(toys, steps)


def test_a_queue_that_keeps_growing_is_overload():
    record = queue_of(100, service_ms=15, gap_ms=10)
    assert is_overloaded(record)
    [warning] = ours(record)["warnings"]
    assert warning.startswith("Overloaded: the queue kept growing. Requests arrived at 100.00/s and left at 66.67/s")
    assert "33 were waiting" in warning


@pytest.mark.parametrize(("service_ms", "gap_ms"), [(10, 10), (9, 10), (1, 10)])
def test_a_queue_that_does_not_grow_is_no_overload(service_ms, gap_ms):
    assert not is_overloaded(queue_of(200, service_ms, gap_ms))


def test_a_burst_that_drains_is_no_overload():
    toys = [Toy(S, [i]) for i in range(80)] + [Toy((5 + i) * S, [80 + i]) for i in range(20)]
    steps = back_to_back([50 * MS] * 80, start_ps=S) + [back_to_back([MS], start_ps=(5 + i) * S)[0] for i in range(20)]
    assert not is_overloaded(build(toys, steps))


def test_all_at_once_is_no_overload():
    assert not is_overloaded(build([Toy(0, [i]) for i in range(50)], back_to_back([MS] * 50)))


@pytest.mark.parametrize(("num_first", "expected"), [(0, True), (4, True), (40, False)])
def test_overload_is_a_queue_longer_than_in_any_earlier_quarter(num_first, expected):
    """12 wait at the end, and nobody in the third quarter: with 40 in a burst at the begin it was worse before."""
    toys = [Toy(0, [i]) for i in range(num_first)] + [Toy((60 + i) * S, [num_first + i]) for i in range(28)]
    toys += [Toy((89 + i) * S, [num_first + 28 + i]) for i in range(12)]
    steps = back_to_back([S // 2] * num_first)
    steps += [back_to_back([MS], start_ps=(60 + i) * S)[0] for i in range(28)]
    steps += back_to_back([MS] * 12, start_ps=101 * S)
    record = build(toys, steps)
    assert is_overloaded(record) == expected


def test_every_warning_has_its_reason():
    toys = [Toy(0, [0]), Toy(0, [], 9, status=REJECTED), Toy(0, [0, 1], status=UNFINISHED)]
    record = build(toys, back_to_back([MS, MS]))
    block = ours(record, share_in_range=0.953, profile_is_estimate=True, profile_caveats=(NO_HOST_TIMES,))
    assert block["warnings"] == [
        "1 of 3 requests never finished: the engine was stuck.",
        "1 of 3 requests were rejected: `rejected_reasons` says why.",
        "4.7 % of the steps are outside what the profile measured: their times are extrapolated.",
        "The profile is an estimate: nobody measured this model on this GPU.",
        NO_HOST_TIMES,
    ]
    assert ours(build([Toy(0, [0])], back_to_back([MS])), share_in_range=0.995)["warnings"] == []


def test_many_preemptions_are_warned_of():
    toys, steps = [Toy(0, [i]) for i in range(500)], back_to_back([MS] * 500)
    full = {"num_recomputed_tokens": 1000, "num_gpu_blocks": 2}
    few = [build(toys, steps, num_preemptions=299, **full), build(toys * 7, steps, num_preemptions=349, **full)]
    assert [ours(record)["warnings"] for record in few] == [[], []]
    assert ours(build(toys, steps, num_preemptions=1500, **full))["warnings"] == [
        "Requests lost their KV blocks 1,500 times, 3 times each on average, and 20.0 % of all tokens were computed "
        "again. Lower engine.max_num_seqs, or give it more KV blocks."
    ]
    by_choice = build(toys, steps, num_preemptions=300, num_recomputed_tokens=50)
    assert ours(by_choice)["warnings"] == [
        "Requests lost their KV blocks 300 times, 0.6 times each on average, and 1.0 % of all tokens were computed "
        "again. It is the policy that preempts them."
    ]


def test_a_rate_that_no_front_end_serves_is_warned_of():
    toys = [Toy(0, [i]) for i in range(200)]
    fast, slow = back_to_back([MS // 5] * 200), back_to_back([2 * MS] * 200)
    [warning] = ours(build(toys, fast), has_free_host=True)["warnings"]
    assert warning.startswith("5,000 requests a second were served, and this profile has no times of the host (HTTP, ")
    assert "one front end serves some 1,000" in warning
    assert ours(build(toys, slow), has_free_host=True)["warnings"] == []
    assert ours(build(toys, fast))["warnings"] == []
    assert ours(build(toys[:99], fast), has_free_host=True)["warnings"] == []  # over before a host falls behind


def test_preempted_requests_wait_on_the_timeline():
    record = build([Toy(0, [0, 1, 2])], back_to_back([S, S, S]), merge=False, num_preemptions=1)
    segments = record.segments.copy()
    segments["num_waiting"][1] = 4
    assert waiting_with_preempted(dataclasses.replace(record, segments=segments)).max == 4


intervals = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted), min_size=1, max_size=12)


@given(intervals, st.integers(1, 9))
def test_bins_keep_means_and_peaks(spans, num_bins):
    begins, ends = (np.array(column, dtype=np.int64) for column in zip(*spans, strict=True))
    curve = Curve.counting(begins, ends)
    held = np.array([sum(a <= t < b for a, b in spans) for t in range(60)])
    edges = np.unique(np.linspace(0, 60, num_bins + 1).astype(np.int64))
    parts = np.split(held, edges[1:-1])
    np.testing.assert_allclose(curve.mean_per_bin(edges), [part.mean() for part in parts])
    assert curve.max_per_bin(edges).tolist() == [part.max() for part in parts]
