"""Steps rebuilt from streams: where they are, what they computed, and when they cannot be believed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.stream_planted import planted, streams_of
from simbatch.sim.streams.batches import batches_of, infer_budget
from simbatch.sim.streams.judge import judge
from simbatch.sim.streams.steps import rebuild_steps
from simbatch.sim.streams.streams import Streams


def of(*requests: tuple[float, list[float]], prompt: int = 100) -> Streams:
    """Requests by the time of their sending and the times of their chunks."""
    times = [chunks for _, chunks in requests]
    return Streams.of(
        [sent for sent, _ in requests],
        [chunks[0] - sent for sent, chunks in requests],
        [np.diff(chunks) for chunks in times],
        [prompt] * len(requests),
        [len(chunks) for chunks in times],
    )


def rhythm(begin: float, number: int, late: float = 0.0) -> list[float]:
    """Chunks every 10 ms."""
    return [begin + 0.01 * k + late for k in range(number)]


def test_a_request_joins_the_steps_of_the_others() -> None:
    steps = rebuild_steps(of((0.0, rhythm(0.02, 6)), (0.03, rhythm(0.04, 3, late=0.0002))))
    assert len(steps) == 6
    assert steps.first.tolist() == [0, 2]
    assert steps.num_first.tolist() == [1, 0, 1, 0, 0, 0]
    assert steps.num_decodes.tolist() == [0, 1, 1, 2, 2, 1]
    assert steps.decode_context.tolist() == [0, 100, 101, 102 + 100, 103 + 101, 104]
    assert steps.begin_s == pytest.approx(rhythm(0.02, 6))
    assert steps.end_s[2] == pytest.approx(0.0402)


def test_a_client_that_lags_by_most_of_a_step_does_not_blur_them() -> None:
    """Chunks of one step come up to 8 of 10 ms late, each request by its own lag."""
    requests = [(0.0, rhythm(0.02, 30, late=0.0016 * k)) for k in range(6)]
    steps = rebuild_steps(of(*requests))
    assert steps.first.tolist() == [0] * 6
    assert steps.is_regular.all()
    assert len(steps) == 30


def test_steps_after_a_pause_are_new_ones() -> None:
    steps = rebuild_steps(of((0.0, rhythm(0.02, 3)), (0.1, rhythm(0.12, 2))))
    assert steps.first.tolist() == [0, 3]
    assert steps.num_decodes.tolist() == [0, 1, 1, 0, 1]


def test_the_empty_chunk_that_chat_begins_with_is_no_token() -> None:
    streams = Streams.of([0.0, 0.0], [0.02, 0.02], [[0.0, 0.01, 0.01], [0.0, 0.01, 0.01]], [10, 10], [3, 3])
    assert streams.number.tolist() == [3, 3]
    assert streams.time_s[:3] == pytest.approx([0.02, 0.03, 0.04])


def test_engines_behind_one_port_are_told() -> None:
    one = [(0.0, rhythm(0.020, 60)) for _ in range(10)]
    other = [(0.0, [0.0233 + 0.0171 * k for k in range(60)]) for _ in range(10)]
    found = judge(rebuild_steps(of(*one, *other)))
    assert found.num_engines == 2
    assert "several engines behind one port" in found.refusals[0]


def test_speculation_and_failures_are_told() -> None:
    requests = [(0.0, rhythm(0.02, 10)) for _ in range(10)]
    several = of(*requests)
    speculating = Streams(
        several.sent_s, several.num_prompt_tokens, 2 * several.num_output_tokens, several.time_s, several.first
    )
    assert "2.00 tokens" in judge(rebuild_steps(speculating)).refusals[0]
    assert judge(rebuild_steps(several)).refusals == ()
    assert "of 15 requests failed" in judge(rebuild_steps(several), num_failed=5).refusals[0]
    assert "too few" in judge(rebuild_steps(of(*requests[:3]))).refusals[0]


@pytest.mark.parametrize("seed", [1, 8])
def test_simulated_streams_give_back_their_steps_and_the_budget(seed: int) -> None:
    """Seed 1 has a budget of 2,048 tokens, seed 8 of 8,192; both have launches that are drawn, and a lag."""
    given = planted(seed)
    steps = rebuild_steps(streams_of(given, given.loads[1], seed, number=200))
    assert steps.is_regular.all()
    assert judge(steps).refusals == ()
    budget = given.settings["max_num_batched_tokens"]
    assert infer_budget([steps])[0] == budget
    batches = batches_of(steps, budget)
    assert batches.unplaced_tokens == 0
    assert batches.prefill_tokens.sum() == steps.streams.num_prompt_tokens.sum()
    assert (batches.prefill_tokens + batches.num_decodes <= budget * (1 + batches.num_hidden)).all()


def test_a_prompt_longer_than_the_budget_goes_into_the_step_before() -> None:
    """One decode; a prompt of 1,500 tokens ends in step 3, sent before step 1: 1,000 tokens a step hold it in two."""
    streams = Streams.of([0.0, 0.025], [0.02, 0.025], [[0.01] * 5, [0.01] * 2], [100, 1500], [6, 3])
    steps = rebuild_steps(streams)
    assert steps.first.tolist() == [0, 3]
    batches = batches_of(steps, 1000)
    assert batches.prefill_tokens.tolist() == [100, 0, 999, 501, 0, 0]
    assert batches.prefill_context.tolist() == [100, 0, 999, 1500, 0, 0]
    assert batches.begun.tolist() == [0, 2]
