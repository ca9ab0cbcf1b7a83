"""Queue, KV cache and batch over time; and whom a run waited for: device, host and front end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics.columns import RunFacts, SloLimits
from simbatch.sim.metrics.curves import batch_size, used_blocks, waiting_with_preempted
from simbatch.sim.metrics.run_figures import shares_per_bin
from simbatch.sim.metrics.steady import is_overloaded
from simbatch.sim.report.result import Result
from tests.engine_cases import timed_case
from tests.results_records import MS, REJECTED, S, Step, Toy, back_to_back, build, facts, ours


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
    counts = {"total": 2, "finished": 1, "rejected": 1, "unfinished": 0, "refused": 0}
    assert block["classes"]["7"]["requests"] == counts
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


def test_preempted_requests_wait_on_the_timeline():
    record = build([Toy(0, [0, 1, 2])], back_to_back([S, S, S]), merge=False, num_preemptions=1)
    segments = record.segments.copy()
    segments["num_waiting"][1] = 4
    assert waiting_with_preempted(dataclasses.replace(record, segments=segments)).max == 4


KNOWN = {"has_host": True, "has_front_end": True, "max_capture_size": 20}


def by_hand(**changes: Any) -> Result:
    """100 ms: taken in at 10, prefill of 30 tokens from 14 to 30, decodes from 40 to 50 and from 60 to 70, gone at 75.

    Then b, alike, from 80 on: its prefill ends at 90 and the last token exists at 100.
    """
    steps = [Step(14, 16, 38, 38), Step(40, 10, 58, 58), Step(60, 10, 75, 75), Step(84, 6, 100, 100)]
    steps = [Step(s.start_ps * MS, s.duration_ps * MS, s.updated_ps * MS, s.sent_ps * MS) for s in steps]
    toys = [Toy(9 * MS, [0, 1, 2], 30, queued_ps=10 * MS), Toy(80 * MS, [3], 10, queued_ps=80 * MS)]
    known = facts(**{**KNOWN, "engine": {"max_num_batched_tokens": 30}, **changes})
    return Result(build(toys, steps, front_end_late_ps=12 * MS), known)


def test_the_shares_by_hand() -> None:
    result = by_hand()
    block = result.summary["simbatch"]
    # in the engine from 10 to 75 and from 80 to 100, the device at work for 42 of these 85
    assert block["time_share"] == pytest.approx({"device": 0.42, "host": 0.43, "front_end": 0.12, "idle": 0.15})
    # after the first prefill, before it, after the decodes (until 60, until 75), round the second prefill
    waits = {"none": 0.10 + 0.04, "graph": 0.10 + 0.05, "piecewise": 0.04 + 0.10, "full": 0.10 + 0.04}
    assert block["host_wait_after"] == pytest.approx(waits)
    assert block["device_busy_share"] == 0.42
    text = result.text()
    assert "Device worked:                           42.00 %" in text
    assert "Device waited for the host:              43.00 %" in text
    assert "Device had no requests:                  15.00 %" in text
    assert "Tokens waited in the front end:          12.00 %" in text


def test_nothing_is_said_of_a_host_that_takes_no_time() -> None:
    result = by_hand(has_host=False, has_front_end=False)
    block = result.summary["simbatch"]
    assert block["time_share"] == {"device": 0.42, "host": None, "front_end": None, "idle": pytest.approx(0.58)}
    assert set(block["host_wait_after"].values()) == {None}
    assert "waited for the host" not in result.text()
    assert "front end" not in result.text()


def test_a_policy_that_holds_requests_back_is_no_host() -> None:
    share = by_hand(policy_holds=True).summary["simbatch"]["time_share"]
    assert share["host"] == pytest.approx(0.43 - 0.04 - 0.04)
    assert share["idle"] == pytest.approx(0.15 + 0.08)


@pytest.mark.parametrize(
    ("late_ms", "changes", "sentence"),
    [
        (
            (1, 1, 30),
            {},
            "of the time the GPU waited for the host, mostly after decode steps, which the GPU ends before the host "
            "has launched the next one: a faster CPU would help more than a faster GPU.",
        ),
        (
            (30, 1, 1),
            {},
            "mostly after steps too large for a CUDA graph: a larger max_num_batched_tokens (now 30) or a larger "
            "max_cudagraph_capture_size (now 20) would help more than a faster GPU.",
        ),
        (
            (30, 1, 1),
            {"max_capture_size": 0, "engine": {"max_num_batched_tokens": 99}},
            "mostly after launches without CUDA graphs (enforce_eager): CUDA graphs would help more than a faster GPU.",
        ),
        (
            (30, 1, 1),
            {"max_capture_size": 64, "engine": {"max_num_batched_tokens": 99}},
            "mostly after steps with prefills: fewer steps with prefills, or a faster CPU, would help more than a "
            "faster GPU.",
        ),
        (
            (5, 1, 0),
            {"max_capture_size": 64},
            "17 % of the time the GPU waited for the host, mostly after steps with "
            "prefills: a larger max_num_batched_tokens (now 30) would shorten that, a faster GPU would not.",
        ),
    ],
)
def test_the_sentence_names_what_would_help(late_ms: tuple[int, ...], changes: dict[str, Any], sentence: str) -> None:
    steps, clock = [], 0
    for pause_ms in late_ms:
        steps.append(Step(clock, 10 * MS, clock + (10 + pause_ms) * MS))
        clock = steps[-1].updated_ps
    known = {**KNOWN, "engine": {"max_num_batched_tokens": 30}, **changes}
    text = Result(build([Toy(0, [0, 1, 2], 30, queued_ps=0)], steps), facts(**known)).text()
    assert sentence in " ".join(text.split())
    share = sum(late_ms) / (30 + sum(late_ms))
    assert f"{100 * share:.0f} % of the time the GPU waited" in text


def test_the_front_end_is_named_when_tokens_wait_there() -> None:
    sentence = "12 % of the time tokens waited in the front end for those of the step before: more servers"
    assert sentence in " ".join(by_hand().text().split())


def test_between_two_launches_the_batch_is_still_the_batch() -> None:
    """Three decode steps of 10 ms, 25 ms apart, as one span: 2 requests and 20 blocks until both have left."""
    steps = [Step(k * 25 * MS, 10 * MS, k * 25 * MS + 24 * MS) for k in range(4)]
    record = build([Toy(0, [0, 1, 2, 3], queued_ps=0)] * 2, steps)
    assert record.segments["num_steps"].tolist() == [1, 3]
    assert record.segments["period_ps"].tolist() == [0, 25 * MS]
    edges = np.array([0, 99, 100]) * MS
    assert batch_size(record).mean_per_bin(edges).tolist() == [2, 0]
    assert used_blocks(record).mean_per_bin(edges).tolist() == [20, 0]
    known = facts(**KNOWN)
    worked, waited = shares_per_bin(record, known, np.array([0, 25, 60, 99, 120]) * MS)
    # the first step 10 of 25 ms; the span 30 of the 60 ms from its begin at 25 to its last end at 85, then the host
    assert worked.tolist() == pytest.approx([0.4, 0.5, 25 / 2 / 39, 0])
    assert (worked + waited).tolist() == pytest.approx([1, 1, 1, 0])
    assert Result(record, known).summary["simbatch"]["device_busy_share"] == pytest.approx(0.4 * 100 / 99)


def union_ps(intervals: list[tuple[int, int]]) -> int:
    total = end = 0
    for begin, until in sorted(intervals):
        total += max(until - max(begin, end), 0)
        end = max(end, until)
    return total


def timed_results(seed: int) -> tuple[RunRecord, RunRecord, RunFacts]:
    """One run with host times, leaping and step by step, and what is known of it."""
    case, config = timed_case(seed), timed_case(seed).config
    known = facts(
        has_host=config.host is not None,
        has_front_end=config.front_end is not None,
        max_capture_size=config.max_capture_size,
        policy_holds=case.policy.overrides("hold"),
        engine={"max_num_batched_tokens": config.max_num_batched_tokens},
    )
    return case.run(), timed_case(seed).run(spans=False), known


@pytest.mark.parametrize("seed", range(60))
def test_leaps_and_steps_say_the_same_and_intervals_side_by_side_too(seed: int) -> None:
    leapt, walked, known = timed_results(seed)
    summary, expected = Result(leapt, known).summary, Result(walked, known).summary
    ours = [{**s, **s["simbatch"]["time_share"], **s["simbatch"]["host_wait_after"]} for s in (summary, expected)]
    numbers = [{key: value for key, value in each.items() if isinstance(value, int | float)} for each in ours]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-9, abs=1e-12)
    share, requests = expected["simbatch"]["time_share"], walked.requests
    if share["host"] is None or not summary["duration"]:
        return
    begun = requests.scheduled_ps >= 0
    entered = requests.scheduled_ps if known.policy_holds else requests.queued_ps
    left = np.where(requests.finish_ps < 0, walked.end_ps, requests.finish_ps)
    inside_ps = union_ps(list(zip(entered[begun].tolist(), left[begun].tolist(), strict=True)))
    busy_ps = int(walked.segments["duration_ps"].sum())
    assert share["host"] * summary["duration"] == pytest.approx((inside_ps - busy_ps) / 1e12, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("size", [1, 3])
def test_the_size_of_the_slices_changes_no_share(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    leapt, _, known = timed_results(8)
    edges = np.linspace(0, leapt.end_ps, 30).astype(np.int64)
    whole, whole_bins = Result(leapt, known).summary["simbatch"]["host_wait_after"], shares_per_bin(leapt, known, edges)
    monkeypatch.setattr("simbatch.sim.engine.record.ROWS_PER_SLICE", size)
    assert Result(leapt, known).summary["simbatch"]["host_wait_after"] == whole
    for part, expected in zip(shares_per_bin(leapt, known, edges), whole_bins, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-9)
