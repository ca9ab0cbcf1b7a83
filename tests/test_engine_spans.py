"""Spans equal stepping: the same decisions at the same times, whatever the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.sim.engine import Run, run
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.pace import span_ps, steps_until
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.scheduler.request import Request
from tests.engine_cases import itl_ps, random_case


def simulate(seed: int, *, steps: bool, spans: bool) -> RunRecord:
    case = random_case(seed)
    return run(case.config, case.cost, case.policy, case.source, steps=steps, spans=spans, noise=case.noise())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9))
def test_spans_equal_stepping(seed: int) -> None:
    stepped = simulate(seed, steps=True, spans=False)
    walked = simulate(seed, steps=True, spans=True)
    leapt = simulate(seed, steps=False, spans=True)
    for record in (walked, leapt):
        for field in fields(stepped.requests):
            expected, found = getattr(stepped.requests, field.name), getattr(record.requests, field.name)
            assert np.array_equal(expected, found) if isinstance(found, np.ndarray) else expected == found, field.name
        assert record.num_steps == stepped.num_steps
        assert record.num_preemptions == stepped.num_preemptions
        assert record.num_recomputed_tokens == stepped.num_recomputed_tokens
        assert record.end_ps == stepped.end_ps
        assert itl_ps(record) == itl_ps(stepped)
    assert walked.steps == stepped.steps
    assert np.array_equal(walked.segments, leapt.segments)  # keeping every step changes nothing else


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_invariants(seed: int) -> None:
    """Blocks and requests are conserved; budget, seats and causality hold; nobody is scheduled twice in a step."""
    case = random_case(seed)
    config, record = case.config, simulate(seed, steps=True, spans=True)
    requests, steps = record.requests, record.steps or []
    arrivals, prompts = requests.arrival_ps.tolist(), requests.num_prompt_tokens.tolist()
    for row in steps:
        indices = [index for index, _, _ in row.scheduled]
        assert len(set(indices)) == len(indices)
        assert sum(n for _, n, _ in row.scheduled) <= config.max_num_batched_tokens
        assert len(indices) <= config.max_num_seqs
        assert 0 <= row.free_blocks <= config.num_gpu_blocks - 1
        assert all(arrivals[index] <= row.start_ps for index in indices)
        assert not set(indices) & set(row.preempted)
    for before, after in pairwise(steps):
        assert before.end_ps <= after.start_ps
    finished, rejected = requests.status == FINISHED, requests.status == REJECTED
    assert (finished | rejected).all()  # every request that fits the pool ends
    too_long = np.array(prompts) >= config.max_model_len
    may_reject = case.policy.overrides("reject") or case.policy.overrides("shed")
    assert (too_long <= rejected).all() if may_reject else (too_long == rejected).all()
    lengths = np.array([row[2] for row in case.source.rows])
    assert (requests.num_output_tokens == np.minimum(lengths, config.max_model_len - requests.num_prompt_tokens))[
        finished
    ].all()
    order = np.stack([requests.arrival_ps, requests.scheduled_ps, requests.first_token_ps, requests.finish_ps])
    assert (np.diff(order[:, finished], axis=0) >= 0).all()
    if steps:
        assert steps[-1].free_blocks == config.num_gpu_blocks - 1  # used + free is all: nothing leaks
    assert sum(itl_ps(record).values()) == (requests.num_output_tokens[finished] - 1).sum()


@given(st.integers(1, 10**12), st.integers(0, 10**9), st.integers(-5, 10**15))
def test_steps_until_is_the_smallest_number(duration: int, slope: int, time: int) -> None:
    steps = steps_until(time, duration, slope)
    assert span_ps(steps, duration, slope) >= time
    assert steps == 0 or span_ps(steps - 1, duration, slope) < time


@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 50)), min_size=1, max_size=20), st.sampled_from([1, 4, 16])
)
def test_blocks_are_counted_by_residue(members: list[tuple[int, int]], block_size: int) -> None:
    group = DecodeGroup(block_size)
    for i, (prompt, output) in enumerate(members):
        request = Request(i, str(i), 0, prompt, output + 1)
        request.num_computed_tokens, request.num_tokens, request.seat = prompt, prompt + 1, i
        group.join(request)
    rounds = group.rounds_left
    needed = [sum(-(-(p + r) // block_size) - -(-p // block_size) for p, _ in members) for r in range(rounds + 1)]
    assert [group.blocks_for(r) for r in range(rounds + 1)] == needed
    for blocks in (0, needed[-1] // 2, needed[-1]):
        assert group.rounds_within(rounds, blocks) == max(r for r, n in enumerate(needed) if n <= blocks)
    assert group.blocks_next == needed[1]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_outgrown_pool_leaves_the_request_unfinished(is_async: bool) -> None:
    case = random_case(1)
    config = case.config.__class__(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=1024, num_gpu_blocks=5, async_scheduling=is_async
    )
    case.source.rows = [(0, 40, 100, 0, ()), (0, 10, 5, 0, ())]
    record = run(config, case.cost, case.policy, case.source)
    assert record.requests.status.tolist() == [2, 0]
    assert record.requests.finish_ps[0] == -1
    assert (
        record.requests.num_output_tokens[0] == 25
    )  # all that 64 tokens of KV allow: 40 + 24 computed, one more sampled


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_company_changes_nothing(seed: int) -> None:
    """Alone in its environment a replica looks ahead; beside another process it goes through SimPy's events."""
    case = random_case(seed)
    alone = run(case.config, case.cost, case.policy, case.source, noise=case.noise())
    env = simpy.Environment(0)
    this = Run(case.config, case.cost, case.policy, case.source, noise=case.noise(), env=env)
    replica, recorder = this.replica, this.recorder
    seen_ps = []

    def watch() -> Iterator[simpy.Event]:
        while this.traffic.num_gone < len(case.source.rows):
            yield env.timeout(7_000_000_001)
            seen_ps.append(replica.now_ps)

    env.process(watch())
    env.run()
    assert recorder.finish_ps.tolist() == alone.requests.finish_ps.tolist()
    assert recorder.first_token_ps.tolist() == alone.requests.first_token_ps.tolist()
    assert seen_ps == sorted(seen_ps)
    assert all(now <= 7_000_000_001 * (i + 1) for i, now in enumerate(seen_ps))  # it never ran ahead of the other
