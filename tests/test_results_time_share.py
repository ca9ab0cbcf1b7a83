"""Whom a run waited for: device, host and front end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.metrics.curves import batch_size, used_blocks
from simbatch.sim.metrics.time_share import shares_per_bin
from simbatch.sim.report.result import Result
from tests.engine_cases import timed_case
from tests.results_records import MS, Step, Toy, build, facts

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
    ours = result.summary["simbatch"]
    # in the engine from 10 to 75 and from 80 to 100, the device at work for 42 of these 85
    assert ours["time_share"] == pytest.approx({"device": 0.42, "host": 0.43, "front_end": 0.12, "idle": 0.15})
    # after the first prefill, before it, after the decodes (until 60, until 75), round the second prefill
    waits = {"none": 0.10 + 0.04, "graph": 0.10 + 0.05, "piecewise": 0.04 + 0.10, "full": 0.10 + 0.04}
    assert ours["host_wait_after"] == pytest.approx(waits)
    assert ours["device_busy_share"] == 0.42
    text = result.text()
    assert "Device worked:                           42.00 %" in text
    assert "Device waited for the host:              43.00 %" in text
    assert "Device had no requests:                  15.00 %" in text
    assert "Tokens waited in the front end:          12.00 %" in text


def test_nothing_is_said_of_a_host_that_takes_no_time() -> None:
    result = by_hand(has_host=False, has_front_end=False)
    ours = result.summary["simbatch"]
    assert ours["time_share"] == {"device": 0.42, "host": None, "front_end": None, "idle": pytest.approx(0.58)}
    assert set(ours["host_wait_after"].values()) == {None}
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
