"""The engine's parts, each by itself: closed forms of its loops, groups that decode, launches, the front end.

The front end's turns: cohorts come through together, chunks hold requests up, and a fit knows the same rules.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.profiler.fit.streams.way_in import WaitBounds, _through
from simbatch.profiler.records import Requests
from simbatch.sim.cost.host import FrontEndTimes, HostTimes, LaunchTimes
from simbatch.sim.engine.decode_group import DecodeGroup
from simbatch.sim.engine.front_end import FrontEnd
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.resources import (
    Host,
    HostPart,
    Pace,
    device_paced,
    host_paced,
    span_ps,
    steps_until,
    synchronous,
)
from simbatch.sim.engine.traffic import Traffic
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.chunk import RequestChunk

FAR = 1 << 62


@st.composite
def host_parts(draw: st.DrawFn) -> HostPart:
    """Launch, update, update before, lag, tail; mostly the step before is of the same batch."""
    launch, update, other, lag, tail = draw(st.tuples(st.integers(0, 80), *(4 * [st.integers(0, 30)])))
    return HostPart(launch, update, draw(st.sampled_from([update, update, other])), lag, tail)


def one_by_one(
    is_async: bool, schedule: int, free: int, d: int, s: int, host: HostPart, count: int
) -> list[tuple[int, ...]]:
    """(start, end, update) of decode-only steps by vLLM's two loops; the update is that of the step before if async."""
    h, o, before, lag, tail = host.launch_ps, host.update_ps, host.before_ps, host.lag_ps, host.tail_ps
    rows = []
    for k in range(count):
        start = max(free, schedule + lag)
        end = max(start + d + k * s, schedule + h + tail)
        updated = max(schedule + h, free) + (o if k else before) if is_async else max(schedule + h, end) + o
        rows.append((start, end, updated))
        free, schedule = end, updated
    return rows


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from([device_paced, host_paced, synchronous]), st.integers(0, 99), st.integers(0, 150),
    st.integers(1, 60), st.integers(0, 3), host_parts(), st.integers(1, 30), st.integers(0, 1500),
)  # fmt: skip
def test_a_pace_is_what_the_loop_does(
    form: Any, schedule: int, free: int, d: int, s: int, host: HostPart, most: int, cut: int
) -> None:
    """A closed form has the starts, updates and end of vLLM's loop, and stops for who comes."""
    is_async, cut = form is not synchronous, cut or FAR
    fields = form(schedule, *((free,) if is_async else ()), d, s, host, most, cut)
    if fields is None:
        return
    pace, free = Pace(*fields), free if is_async else 0  # synchronous: the step before has been taken in
    rows = one_by_one(is_async, schedule, free, d, s, host, pace.num_steps)
    assert 1 <= pace.num_steps <= most
    assert [pace.start_of(k) for k in range(pace.num_steps)] == [row[0] for row in rows]
    assert [pace.updated_of(k) for k in range(pace.num_steps)] == [row[2] for row in rows]
    assert pace.free_ps == rows[-1][1]
    assert (pace.last_start_ps, pace.last_updated_ps) == (rows[-1][0], rows[-1][2])
    if pace.num_steps > 1:  # who has come by the end of an update is seen by the next schedule()
        assert all(row[2] < cut for row in rows[:-1])


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


MS = 10**9
IN_TURNS = FrontEndTimes(per_request_ps=MS, per_prompt_token_ps=MS // 1000, per_chunk_ps=MS // 10)


def come_through(sent_ps, prompts, updates=(), num_servers=1):
    """When each request reaches an engine that takes in `updates` ((when, chunks), ...), ps."""
    recorder = Recorder(keep_steps=False, is_timed=True)
    source = Requests(RequestChunk(list(sent_ps), list(prompts), [1] * len(prompts)))
    front = FrontEnd(IN_TURNS, num_servers, Traffic(source, recorder, 10_000, None), recorder.refused)
    found, updates = {}, list(updates)

    def add(request, now_ps):
        found[request.index] = now_ps
        return 0

    while len(found) < len(sent_ps):
        if updates and updates[0][0] <= front.next_ps:
            front.send(*updates[0])
            front.look(updates.pop(0)[0])
        else:
            front.take(front.next_ps, add)
    return [found[i] for i in range(len(sent_ps))]


def test_a_lone_request_takes_its_work():
    assert come_through([5 * MS], [1000]) == [7 * MS]


def test_a_cohort_comes_through_in_the_second_half():
    assert come_through([0] * 4, [1000] * 4) == [5 * MS, 6 * MS, 7 * MS, 8 * MS]


def test_who_comes_later_lines_up_behind_first_turns_alone():
    # 0 and 1: first turns until 1 and 2, last ones until 3 and 4; 2 lines up behind all of them
    assert come_through([0, 0, 5 * MS // 2], [1000] * 3) == [3 * MS, 4 * MS, 6 * MS]


def test_servers_share_a_cohort():
    assert come_through([0] * 4, [1000] * 4, num_servers=2) == [3 * MS, 3 * MS, 4 * MS, 4 * MS]


def test_requests_have_a_quarter_of_the_thread_while_chunks_are_sent():
    # 30 chunks: 3 ms of work, that hold requests up for 4; one of the 2 ms of a request gets done meanwhile
    assert come_through([0], [1000], [(0, 30)]) == pytest.approx([5 * MS], abs=10)


def test_chunks_hold_up_who_is_under_way():
    assert come_through([0], [1000], [(MS, 30)]) == pytest.approx([5 * MS], abs=10)
    assert come_through([0], [1000], [(3 * MS, 30)]) == [2 * MS]


@pytest.mark.parametrize("most", [20, 90])  # chunks a step: the thread keeps up, or falls behind
def test_a_fit_reckons_as_the_engine_does(most):
    rng = np.random.default_rng(most)
    sent_ps = np.sort(rng.integers(0, 1000 * MS, 300))
    prompts = rng.integers(1, 3000, 300)
    updates = [
        (int(at), int(n))
        for at, n in zip(np.sort(rng.integers(0, 2000 * MS, 150)), rng.integers(1, most, 150), strict=True)
    ]
    found = come_through(sent_ps.tolist(), prompts.tolist(), updates)
    update_s, chunks = np.array([at for at, _ in updates]) * 1e-12, np.array([n for _, n in updates], dtype=float)
    none = np.zeros(0)
    bounds = WaitBounds(sent_ps * 1e-12, prompts.astype(float), update_s, chunks, none.astype(int), none, none)
    through_s = _through(bounds, 1e-3, 1e-6, 1e-4, 0.0)
    assert through_s == pytest.approx((np.array(found) - sent_ps) * 1e-12, abs=1e-8)
