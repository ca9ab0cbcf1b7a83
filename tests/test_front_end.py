"""The front end's turns: cohorts come through together, chunks hold requests up, and a fit knows the same rules."""

import numpy as np
import pytest

from simbatch.profiler.fit.streams.way_in import WaitBounds, _through
from simbatch.profiler.records.requests import Requests
from simbatch.sim.cost.host import FrontEndTimes
from simbatch.sim.engine.front_end import FrontEnd
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.traffic import Traffic
from simbatch.sim.workload.chunk import RequestChunk

MS = 10**9
TIMES = FrontEndTimes(per_request_ps=MS, per_prompt_token_ps=MS // 1000, per_chunk_ps=MS // 10)


def come_through(sent_ps, prompts, updates=(), num_servers=1):
    """When each request reaches an engine that takes in `updates` ((when, chunks), ...), ps."""
    recorder = Recorder(keep_steps=False, is_timed=True)
    source = Requests(RequestChunk(list(sent_ps), list(prompts), [1] * len(prompts)))
    front = FrontEnd(TIMES, num_servers, Traffic(source, recorder, 10_000, None), recorder.refused)
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
