"""Leaping over steps gives what stepping gives, with times of host and front end too, and every run ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simbatch import Scenario
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.engine import Run, run, stepwise
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.engine.resources import Host, span_ps, steps_until
from simbatch.sim.scenario import resolve
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
    if config.scheduling_policy == "priority" and len(steps) > stepwise.MAX_FRUITLESS_STEPS:
        assume((finished | rejected).all())  # else equals took each other's blocks until the engine gave up
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


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=12), st.integers(1, 50), st.data()
)
def test_windows_are_counted_until_they_are_full(
    members: list[tuple[int, int]], window: int, data: st.DataObject
) -> None:
    group = DecodeGroup(16, window)
    requests = [Request(i, str(i), 0, prompt, output + 1) for i, (prompt, output) in enumerate(members)]
    for i, request in enumerate(requests):
        request.num_computed_tokens = request.num_prompt_tokens
        request.num_tokens, request.seat = request.num_prompt_tokens + 1, i
        group.join(request)
    while (held := group.members()) and group.round < 70:
        computed = [request.num_computed_tokens + group.ahead_of(request)[0] for request in held]
        assert group.in_window == sum(min(k, window) for k in computed)
        assert group.num_growing == sum(k < window for k in computed)
        alike = group.rounds_left
        sums = [sum(min(k + r, window) for k in computed) for r in range(alike)]
        assert sums == [group.in_window + r * group.num_growing for r in range(alike)]
        if data.draw(st.booleans()):
            group.leave(data.draw(st.sampled_from(sorted(held, key=lambda request: request.seat))))
        else:
            group.advance(data.draw(st.integers(1, alike)))


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


TIMES = HostTimes(
    graph=LaunchTimes(1_000, 10),
    piecewise=LaunchTimes(20_000, 100, 3_000, 7),
    none=LaunchTimes(500_000, 2_000, 40_000, 11),
    update_base_ps=50,
    update_per_seq_ps=3,
    admit_base_ps=70,
    admit_per_prompt_token_ps=2,
)
# (requests, of which are prefills, tokens) with a largest graph of 64
KINDS = [
    ((1, 0, 1), "graph"),
    ((64, 0, 64), "graph"),  # at most that many requests
    ((65, 0, 65), "none"),  # 65 tokens are too many for pieces too
    ((1, 1, 64), "piecewise"),  # at most that many tokens
    ((1, 1, 65), "none"),
    ((40, 1, 64), "piecewise"),  # one prefill is enough
    ((40, 1, 103), "none"),
    ((1, 1, 1), "piecewise"),  # the last token of a prompt is no decode
]


@pytest.mark.parametrize(("batch", "kind"), KINDS)
def test_kinds_of_launch(batch: tuple[int, int, int], kind: str) -> None:
    """`graph`: no prefills, and requests up to the largest graph; `piecewise`: tokens up to it; `none`: the rest."""
    host, (num_requests, num_prefills, num_tokens) = Host(TIMES, 64), batch
    assert host.kind(*batch) == kind
    expected = {
        "graph": 1_000 + 10 * num_requests,
        "piecewise": 20_000 + 100 * num_requests + 3_000 * num_prefills + 7 * num_tokens,
        "none": 500_000 + 2_000 * num_requests + 40_000 * num_prefills + 11 * num_tokens,
    }
    assert host.launch_ps(*batch) == expected[kind]


@pytest.mark.parametrize("batch", [(1, 0, 1), (64, 0, 64), (1, 1, 1), (3, 2, 700)])
def test_without_graphs_every_launch_is_of_kind_none(batch: tuple[int, int, int]) -> None:
    assert Host(TIMES, 0).kind(*batch) == "none"


def inline(**engine: Any) -> Scenario:
    """A scenario of a profile that has a host."""
    profile: dict[str, Any] = {
        "num_gpu_blocks": 1000,
        "step_time": {"base_s": 0.01, "per_prefill_token_s": 0, "per_decode_seq_s": 0, "per_context_token_s": 0},
        "host": {"launch": {"none": {"base_s": 0.02}}},
    }
    workload = {"num_prompts": 2, "request_rate": 1, "prompt_len": {"distribution": "fixed", "mean": 10}}
    workload |= {"output_len": {"distribution": "fixed", "mean": 4}}
    return Scenario.from_dict({"profile": profile, "engine": engine, "workload": workload})


def test_enforce_eager_is_no_graphs() -> None:
    engine = {"max_model_len": 1000, "max_num_seqs": 16, "max_num_batched_tokens": 512}
    assert resolve(inline(**engine)).engine.max_capture_size == 32
    assert resolve(inline(**engine, max_cudagraph_capture_size=8)).engine.max_capture_size == 8
    assert resolve(inline(**engine, enforce_eager=True)).engine.max_capture_size == 0


class Doubled:
    """Launches of one kind take twice their mean."""

    def __init__(self, kind: str) -> None:
        self._kind, self.asked = kind, list[tuple[int, str]]()

    def draws_for(self, kind: str) -> bool:
        return kind == self._kind

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        self.asked.append((mean_ps, kind))
        return 2 * mean_ps


def test_only_spread_kinds_take_a_draw() -> None:
    draws = Doubled("piecewise")
    host = Host(TIMES, 64, draws)
    assert [host.launch_ps(*batch) for batch in ((2, 0, 2), (1, 1, 64), (1, 1, 65))] == [1_020, 47_096, 542_715]
    assert draws.asked == [(23_548, "piecewise")]
    assert not host.draws_for(64)
    assert Host(TIMES, 64, Doubled("graph")).draws_for(64)
    assert Host(TIMES, 64, Doubled("none")).draws_for(65)


def test_updates_and_admissions() -> None:
    host = Host(TIMES, 64)
    assert (host.update_ps(5), host.admit_ps(100)) == (65, 270)
