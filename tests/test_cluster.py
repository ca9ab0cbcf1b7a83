"""Several replicas behind a router: what a lone engine says, stepping and leaping, what theory says, and failures."""

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simbatch import UserError
from simbatch.policies.vllm import VLLM
from simbatch.routers import ReplicaView, RequestView, Router
from simbatch.routers.testing import ClusterCase, random_cluster
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import ClusterRun, Member, Switch, run_cluster
from simbatch.sim.engine.gateway import Gateway, GatewayReplica, GatewayRequest
from simbatch.sim.engine.record import FINISHED, UNFINISHED
from simbatch.sim.metrics.curves import totals
from simbatch.sim.plugins.router import ROUTERS
from simbatch.sim.plugins.testing import MS, ListSource
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import Request
from tests.engine_cases import Case, assert_same, random_case, timed_case


class Wild(Router):
    """Looks at all that there is to see, and forgets nothing of it."""

    def start(self, replicas: Any, draw: Any) -> None:
        self.draw, self.total = draw, 0

    def route(self, request: RequestView, replicas: Any) -> ReplicaView:
        def score(replica: ReplicaView) -> int:
            if self.draw() < 0.4:  # others are not looked at, so that they are not brought to this moment
                return replica.num_requests
            seen = replica.num_running + 5 * replica.num_waiting + round(1e6 * replica.kv_use)
            self.total += seen + replica.cached_tokens(request)
            return 3 * replica.num_requests + self.total % 7 + replica.num_tokens % 3

        return min(replicas, key=score)


def router(name: str) -> Router:
    return Wild() if name == "wild" else ROUTERS.load(name, {}, folder=Path())


NAMES = [*ROUTERS.shipped, "wild"]


def member_of(case: Case) -> Member:
    return Member(case.config, case.cost, copy.deepcopy(case.policy), case.noise(), case.host_noise())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.booleans(), st.sampled_from(NAMES))
def test_one_replica_is_a_lone_engine(seed: int, is_timed: bool, name: str) -> None:
    case = timed_case(seed) if is_timed else random_case(seed)
    first, second = member_of(case), member_of(case)
    lone = case.run(steps=True)
    record = run_cluster([first], router(name), case.source, steps=True)
    assert_same(lone, record, but=("replica",))
    assert record.steps == lone.steps
    leapt = run_cluster([second], router(name), case.source)
    assert np.array_equal(leapt.segments, case.run().segments)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([*NAMES, "wild", "wild"]))
@example(32795, "wild")  # two that preempt each other until the engine gives up
def test_spans_equal_stepping(seed: int, name: str) -> None:
    case = random_cluster(seed)
    stepped = case.run(router(name), spans=False, steps=True)
    walked = case.run(router(name), steps=True)
    leapt = case.run(router(name))
    assert_same(stepped, walked)
    assert_same(stepped, leapt)
    assert walked.steps == stepped.steps
    assert np.array_equal(walked.segments, leapt.segments)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_round_robin_is_as_many_runs(seed: int) -> None:
    """Open loop, without noise: replica i has every N-th request from the i-th on, and does with them what it would."""
    case = random_cluster(seed)
    case.source.max_concurrency, case.source.think_time_ps = None, 0
    case.events, n = (), len(case.members)
    # vLLM's priority queue goes by the names of equals, which are others in a shorter list
    case.members = [replace(m, config=replace(m.config, scheduling_policy="fcfs")) for m in case.members]
    record = case.run(router("round_robin"))
    for i, member in enumerate(case.members):
        rows = case.source.rows[i::n]
        tenants = None if case.source.tenants is None else case.source.tenants[i::n]
        source = ListSource(rows, case.source.hash_block_tokens, tenants=tenants)
        if not rows:
            continue
        lone = run_cluster(
            [replace(member, policy=copy.deepcopy(member.policy))], router("round_robin"), source
        ).requests
        part = record.part(i).requests
        for name in ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps", "num_cached_tokens", "status"):
            assert np.array_equal(getattr(lone, name), getattr(part, name)), name


def constant_cluster(n: int, rate_per_s: float, num_requests: int, seed: int, step_ps: int = 10 * MS) -> ClusterCase:
    """N engines of one seat and constant steps, one token a request: queues with constant service times."""
    config = EngineConfig(
        max_num_seqs=1, max_num_batched_tokens=64, max_model_len=64, num_gpu_blocks=50, enable_prefix_caching=False
    )
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, num_requests)
    arrivals = (np.cumsum(gaps) * 1e12).astype(np.int64)
    rows = [(int(arrival), 1, 1, 0, ()) for arrival in arrivals]
    return ClusterCase([Member(config, LinearCost(step_ps, 0, 0, 0), VLLM())] * n, ListSource(rows), seed)


def test_random_routing_is_independent_queues() -> None:
    """M/D/1 on each of four replicas: the mean wait is rho * service / (2 (1 - rho))."""
    rho, service_s, n = 0.7, 0.01, 4
    waits = []
    for seed in range(8):
        case = constant_cluster(n, n * rho / service_s, 4000, seed)
        record = case.run(router("random"))
        waits += [np.mean(part.requests.scheduled_ps - part.requests.arrival_ps) / 1e12 for part in record.parts()]
    expected = rho * service_s / (2 * (1 - rho))
    error = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert abs(np.mean(waits) - expected) < 3 * error
    assert error < 0.06 * expected  # it says something


def test_more_choices_wait_less() -> None:
    case = constant_cluster(10, 10 * 0.9 / 0.01, 6000, seed=1)
    waits = {}
    for name in ("random", "power_of_two", "least_requests"):
        requests = case.run(router(name)).requests
        waits[name] = np.mean(requests.scheduled_ps - requests.arrival_ps)
    assert waits["least_requests"] < waits["power_of_two"] < 0.5 * waits["random"]


def test_two_choices_as_the_supermarket_model_has_it() -> None:
    """Mitzenmacher 2001, table 1: at a load of 0.7 with exponential service 3.33 service times at random, 1.61 by two.

    The limit of many queues; 40 of them are within a few percent of it.
    """
    rho, n, num_tokens, num_requests = 0.7, 40, 100, 16_000
    rng = np.random.default_rng(5)
    lengths = np.maximum(1, np.round(rng.exponential(num_tokens, num_requests))).astype(int)
    case = constant_cluster(n, n * rho / (num_tokens * 0.001), num_requests, seed=6, step_ps=MS)
    case.members = [replace(m, config=replace(m.config, max_model_len=4096, num_gpu_blocks=400)) for m in case.members]
    case.source.rows = [(row[0], 1, int(k), 0, ()) for row, k in zip(case.source.rows, lengths, strict=True)]
    times = {}
    for name in ("random", "power_of_two"):
        requests = case.run(router(name)).requests
        times[name] = np.mean((requests.finish_ps - requests.arrival_ps)[num_requests // 5 :]) / (num_tokens * MS)
    assert times["random"] == pytest.approx(1 / (1 - rho), rel=0.12)
    assert times["power_of_two"] == pytest.approx(sum(rho ** (2**i - 2) for i in range(1, 9)), rel=0.05)


def test_a_span_is_cut_where_a_request_comes_to_its_replica() -> None:
    """One long answer on replica 0, many short ones on replica 1: the long one stays one span."""

    class LongOnesApart(Router):
        """By the length of the prompt."""

        draws: ClassVar = False

        def route(self, request: RequestView, replicas: Any) -> ReplicaView:
            return replicas[0 if request.num_prompt_tokens == 50 else 1]

    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, max_model_len=4096, num_gpu_blocks=1000)
    rows = [(0, 50, 2000, 0, ()), *((i * 100 * MS, 10, 5, 0, ()) for i in range(1, 100))]
    members = [Member(config, LinearCost(10 * MS, 0, 0, 0), VLLM())] * 2
    for is_async in (False, True):
        changed = [replace(m, config=replace(config, async_scheduling=is_async), policy=VLLM()) for m in members]
        record = run_cluster(changed, LongOnesApart(), ListSource(rows))
        assert (record.requests.status == FINISHED).all()
        assert len(record.part(0).segments) <= 3
        assert len(record.part(1).segments) >= 99 * 2


@pytest.mark.parametrize("name", ROUTERS.shipped)
def test_a_router_keeps_to_the_rules(name: str) -> None:
    from simbatch.routers.testing import check_router

    assert check_router(name, num_cases=6).num_requests > 0


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
        whole = case.run(router("least_requests"))
        case.events = [Switch(300 * MS, False, 1), Switch(600 * MS, True, 1)]
        record = case.run(router("least_requests"))
        assert record.num_sent_again > 2
        assert (record.requests.status == FINISHED).all()
        assert (record.requests.num_output_tokens == 50).all()
        assert totals(record).num_tokens == totals(whole).num_tokens + record.num_lost_tokens
        at_fail = (record.requests.arrival_ps > 300 * MS) & (record.requests.arrival_ps < 600 * MS)
        assert (record.requests.replica[at_fail] == 0).all()
        assert (record.requests.replica[record.requests.arrival_ps > 600 * MS] == 1).any()


def test_requests_wait_where_every_replica_is_down() -> None:
    case = two_engines(10)
    case.events = [Switch(50 * MS, False, 0), Switch(60 * MS, False, 1), Switch(3 * S, True, 1), Switch(4 * S, True, 0)]
    requests = case.run(router("round_robin")).requests
    assert (requests.status == FINISHED).all()
    assert (requests.scheduled_ps >= 3 * S).all()
    assert (requests.replica == 1).all()


def test_a_drained_replica_ends_what_it_has() -> None:
    case = two_engines(40)
    case.events = [Switch(300 * MS, False, 1, True), Switch(S, True, 1, True)]
    record = case.run(router("least_requests"))
    assert record.num_sent_again == record.num_lost_tokens == 0
    where, arrival_ps = record.requests.replica, record.requests.arrival_ps
    assert (where[arrival_ps < 300 * MS] == 1).any()
    assert not (where[(arrival_ps > 300 * MS) & (arrival_ps < S)] == 1).any()


def test_the_gateway_compares_books_as_the_router_would() -> None:
    """A router that only compares books is not asked; one that says so and has a `route` of its own is."""
    drawn = random.Random(3)
    sizes = {"group": 0, "profile": "p", "block_size": 16, "num_gpu_blocks": 9, "max_num_seqs": 9}
    for name in ("least_requests", "least_tokens"):
        chosen_by = router(name)
        views = [GatewayReplica(i, None, **sizes) for i in range(7)]
        gateway = Gateway(chosen_by, views, lambda: 0.0)
        for i in range(300):
            if i % 50 == 0:
                gateway.set_up(i // 50, is_up=False)
            request = Request(i, f"r{i}", 0, drawn.randrange(1, 4), 10)
            gateway.look(0)
            expected = chosen_by.route(GatewayRequest(request, 16), gateway.up).index
            assert gateway.choose(request, 0) == expected
            gateway.left(expected, request, drawn.randrange(2))

    class Last(type(router("least_requests"))):
        def route(self, request, replicas):
            return replicas[-1]

    assert Gateway(Last(), views, lambda: 0.0).choose(request, 0) == 6

    class Misspelt(Router):
        least = ("num_request",)

    with pytest.raises(UserError, match=r"router Misspelt: `least` may name the books num_requests and num_tokens"):
        Gateway(Misspelt(), views, lambda: 0.0)
