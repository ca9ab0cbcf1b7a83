"""A replica fails or is drained: nothing is lost for good, nothing is done twice, and what was lost is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import ClusterRun, Member, Switch
from simbatch.sim.engine.record import FINISHED, UNFINISHED
from simbatch.sim.metrics.curves import computed_tokens
from simbatch.sim.plugins.router import ROUTERS
from simbatch.sim.plugins.testing.cases import MS, ClusterCase, ListSource, random_cluster
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.search.simulate import explain_request, run_resolved
from tests.test_cluster import router
from tests.test_cluster_results import BASE

S = 1000 * MS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_every_request_ends_once_and_every_block_comes_back(seed: int) -> None:
    case = random_cluster(seed)
    changes = [Switch(300 * MS, False, 0), Switch(700 * MS, True, 0), Switch(900 * MS, False, 0, True)]
    case = replace(case, events=[*changes, Switch(2 * S, True, 0, True)])
    this = ClusterRun(case.members, router("wild"), case.source, seed=seed, events=case.events)
    this.env.run()
    assert all(replica.kv.free == replica.kv.num_usable for replica in this.replicas)
    assert all(view.num_requests == view.num_tokens == 0 for view in _at_the_end(this))
    requests = this.record(0.0).requests
    assert (requests.status != UNFINISHED).all()
    done = np.flatnonzero(requests.status == FINISHED)
    assert requests.replica is not None
    for i in done:
        room = case.members[requests.replica[i]].config.max_model_len - requests.num_prompt_tokens[i]
        assert requests.num_output_tokens[i] <= min(case.source.rows[i][2], room)
    assert (requests.finish_ps[done] >= requests.first_token_ps[done]).all()
    assert (requests.scheduled_ps[done] >= requests.arrival_ps[done]).all()


def _at_the_end(this: ClusterRun) -> list:  # type: ignore[type-arg]
    this.gateway.look(1 << 62)
    return this.gateway.views


def two_engines(num_requests: int, **settings: object) -> ClusterCase:
    config = EngineConfig(
        max_num_seqs=4, max_num_batched_tokens=64, max_model_len=512, num_gpu_blocks=200, enable_prefix_caching=False
    )
    members = [Member(replace(config, **settings), LinearCost(10 * MS, 0, 0, 0), VLLM()) for _ in range(2)]  # type: ignore[arg-type]
    return ClusterCase(members, ListSource([(i * 20 * MS, 30, 50, 0, ()) for i in range(num_requests)]), 0)


def test_lost_work_is_counted_and_done_again() -> None:
    """Every token is computed once by who ends, and once more for each that was lost."""
    for is_async in (False, True):
        case = two_engines(40, async_scheduling=is_async)
        whole = case.run(ROUTERS.load("least_requests", {}, folder=Path()))
        case.events = [Switch(300 * MS, False, 1), Switch(600 * MS, True, 1)]
        record = case.run(ROUTERS.load("least_requests", {}, folder=Path()))
        assert record.num_sent_again > 2
        assert (record.requests.status == FINISHED).all()
        assert (record.requests.num_output_tokens == 50).all()
        assert computed_tokens(record) == computed_tokens(whole) + record.num_lost_tokens
        assert record.requests.replica is not None
        at_fail = (record.requests.arrival_ps > 300 * MS) & (record.requests.arrival_ps < 600 * MS)
        assert (record.requests.replica[at_fail] == 0).all()
        assert (record.requests.replica[record.requests.arrival_ps > 600 * MS] == 1).any()


def test_requests_wait_where_every_replica_is_down() -> None:
    case = two_engines(10)
    case.events = [Switch(50 * MS, False, 0), Switch(60 * MS, False, 1), Switch(3 * S, True, 1), Switch(4 * S, True, 0)]
    requests = case.run(ROUTERS.load("round_robin", {}, folder=Path())).requests
    assert (requests.status == FINISHED).all()
    assert (requests.scheduled_ps >= 3 * S).all()
    assert requests.replica is not None
    assert (requests.replica == 1).all()


def test_a_drained_replica_ends_what_it_has() -> None:
    case = two_engines(40)
    case.events = [Switch(300 * MS, False, 1, True), Switch(S, True, 1, True)]
    record = case.run(ROUTERS.load("least_requests", {}, folder=Path()))
    assert record.num_sent_again == record.num_lost_tokens == 0
    where, arrival_ps = record.requests.replica, record.requests.arrival_ps
    assert where is not None
    assert (where[arrival_ps < 300 * MS] == 1).any()
    assert not (where[(arrival_ps > 300 * MS) & (arrival_ps < S)] == 1).any()


def test_a_scenario_says_so_and_explain_tells() -> None:
    cluster = {"replicas": 2, "router": {"name": "least_requests"}, "events": [{"at": 2, "replica": 0, "down_s": 3}]}
    resolved = resolve(Scenario.from_dict(BASE | {"cluster": cluster}))
    result = run_resolved(resolved)
    ours = result.summary["simbatch"]["cluster"]
    assert ours["num_sent_again"] > 0 < ours["num_lost_tokens"]
    assert "Replica 0 is down at 2 s for 3 s" in result.text()
    requests = result.requests
    moved = (requests["replica"] == 1) & (requests["arrival_s"] < 2) & (requests["finish_s"] > 2.1)
    texts = [
        [event.what for event in explain_request(resolve(resolved.scenario), str(i))]
        for i in np.flatnonzero(moved)[-6:]
    ]
    sent = [[what for what in one if what.startswith("sent to replica")] for one in texts]
    assert all(one[-1].startswith("sent to replica 1 by LeastRequests: requests in flight:") for one in sent)
    assert any(len(one) == 2 and one[0].startswith("sent to replica 0") for one in sent)
