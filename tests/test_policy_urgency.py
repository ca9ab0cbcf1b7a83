"""The urgent first. `edf`: in order of deadlines, and nothing for those who are late anyhow.

priority: its decisions by hand, and how far ageing lets classes drift apart (Jackson, 1962).

plas, program-level attained service: short programs end sooner under load, long ones pay for it.

warm_first: conversations are used before they are evicted, and nobody starves for it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simbatch import Result, Scenario
from simbatch.policies.edf import EarliestDeadlineFirst
from simbatch.policies.plas import ProgramAttainedService
from simbatch.policies.priority import Priority
from simbatch.policies.vllm import VLLM
from simbatch.policies.warm_first import WarmFirst
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import FINISHED, REJECTED
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import turns_of, whole_prompts
from tests.engine_cases import MS, ListSource, Row
from tests.made_scenarios import all_at_once, in_order, in_steps, lognormal, serve, serving, under


class TestEdfByHand:
    """One seat; a step takes 10 ms, and 1 ms for each decode in it: ten tokens are 10 + 9 * 11 = 109 ms."""

    def test_in_order_of_deadlines(self) -> None:
        """High is due after 1 s, normal after 2 s, low after 4 s: normal at 0 s before high at 1.1 s."""
        first: Row = (0, 4, 150, 0, ())  # runs until 1.65 s, when all have come
        rows = [first, *((ms * MS, 4, 2, priority, ()) for ms, priority in ((0, 2), (0, 1), (900, 0), (1100, 0)))]
        assert in_order(serve(EarliestDeadlineFirst(shed_hopeless=False), rows, max_num_seqs=1)) == [0, 3, 2, 4, 1]

    def test_who_cannot_meet_the_deadline_is_dropped_when_its_turn_comes(self) -> None:
        """The first runs until 109 ms. A step more, and the second would be 114 ms late, and the third 19 of 30 ms."""
        rows: list[Row] = [(0, 4, 10, 0, ()), (5 * MS, 4, 10, 0, ()), (100 * MS, 4, 10, 0, ())]
        record = serve(EarliestDeadlineFirst(target_ttft_ms=30), rows, max_num_seqs=1)
        assert record.requests.status.tolist() == [FINISHED, REJECTED, FINISHED]
        assert record.requests.reason == {1: "would miss its deadline for the first token"}
        assert record.requests.first_token_ps[2] == (109 + 10) * MS

    def test_it_learns_how_late_the_profile_is(self) -> None:
        """Steps of 4 tokens: a second prompt of 4 is seated at 10 ms, gets 3 beside a decode, and 1 a step later.

        By the profile it has its first token at 10 + 11 ms, and it comes at 10 + 2 * 11 ms. The next such would by the
        profile just be in time, but not with the 11 ms that the profile left out.
        """
        settings = {"max_num_seqs": 2, "max_num_batched_tokens": 4, "max_model_len": 64}
        rows = [*all_at_once(2, output=8), (200 * MS, 4, 8, 0, ()), (200 * MS, 4, 8, 0, ())]
        record = serve(EarliestDeadlineFirst(target_ttft_ms=25), rows, **settings)
        ttft_ms = (record.requests.first_token_ps - record.requests.arrival_ps) / MS
        assert ttft_ms[:3].tolist() == [10, 32, 10]
        assert record.requests.status.tolist() == [FINISHED] * 3 + [REJECTED]


def served(policy: str, request_rate: float, *, shed: bool = True, seed: int = 0, **workload: Any) -> Result:
    """Forty seconds of prompts on an H100, to be answered within a second; it can do 40 a second."""
    settings: dict[str, Any] = {"seed": seed, "engine": {"max_num_seqs": 64}, "slo": {"ttft_ms": 1000}}
    lengths = {"prompt_len": lognormal(600, 0.5, 4096), "output_len": lognormal(100, 0.5, 1024)}
    scenario = serving(
        "h100-llama-3.1-8b-bf16", int(40 * request_rate), request_rate, **settings, **lengths, **workload
    )
    return under(scenario, policy, **({"shed_hopeless": shed} if policy == "edf" else {}))


def goodput(result: Result) -> float:
    return result.summary["request_goodput"]


class TestOverload:
    """Clockwork: goodput under more load than the device can bear."""

    def test_with_shedding_goodput_stays_and_without_it_collapses(self) -> None:
        at_capacity = goodput(served("edf", 40))
        assert at_capacity > 0.9 * 40
        for rate in (60, 100):
            assert goodput(served("edf", rate)) > 0.95 * at_capacity
            assert goodput(served("edf", rate, shed=False)) < 0.15 * at_capacity
            assert goodput(served("vllm", rate)) < 0.15 * at_capacity

    def test_nearly_all_who_are_served_are_served_in_time(self) -> None:
        requests = served("edf", 100).requests
        assert np.mean(requests["ttft_s"][requests["status"] == "finished"] <= 1.0) > 0.9

    def test_below_capacity_nobody_is_dropped_and_nothing_changes(self) -> None:
        shedding = served("edf", 30)
        assert shedding.summary["simbatch"]["requests"]["rejected"] == 0
        assert goodput(shedding) == pytest.approx(goodput(served("vllm", 30)))


class TestDeadlines:
    """Liu and Layland: what can be done in time is done in time in the order of deadlines, when they differ."""

    @pytest.mark.parametrize("seed", [0, 1])
    def test_where_order_of_arrival_misses_deadlines_that_differ_this_order_meets_them(self, seed: int) -> None:
        """Nearly more than the device can bear; high is due after a second, normal after two, low after four."""
        met = {}
        for policy in ("edf", "vllm"):
            priorities = {"high": 0.4, "normal": 0.3, "low": 0.3}
            requests = served(policy, 40, shed=False, seed=seed, priorities=priorities).requests
            met[policy] = np.mean(requests["ttft_s"] <= 2.0 ** requests["priority"])
        assert met["edf"] > 0.98
        assert met["vllm"] < 0.92


class TestPriorityDecisions:
    def test_high_goes_before_normal_and_no_seat_stays_empty(self) -> None:
        rows: list[Row] = [(0, 4, 5, 1, ()) for _ in range(4)] + [(0, 4, 5, 0, ()) for _ in range(2)]
        record = serve(Priority(max_batch_size=3), rows)
        assert in_steps(record)[0] == [4, 5, 0]

    def test_nobody_starves(self) -> None:
        """High ones keep arriving faster than they are served; the normal one waits for `ageing_s`, not for ever."""
        high = [(i * 40 * MS, 4, 5, 0, ()) for i in range(200)]
        rows = sorted([*high, (100 * MS, 4, 5, 1, ())], key=lambda row: (row[0], row[3]))
        normal = rows.index((100 * MS, 4, 5, 1, ()))
        waits = {}
        for ageing_s in (1.0, 1000.0):
            requests = serve(Priority(max_batch_size=1, ageing_s=ageing_s), rows).requests
            waits[ageing_s] = (requests.scheduled_ps[normal] - requests.arrival_ps[normal]) / 10**12
        assert 1.0 <= waits[1.0] < 2.0
        assert waits[1000.0] == max(waits.values()) > 7.0  # without ageing, behind them all

    def test_the_last_in_its_order_is_preempted(self) -> None:
        """Room for 12 blocks of 16; the high one, admitted last, keeps its blocks."""
        rows: list[Row] = [(0, 60, 40, 1, ()), (0, 60, 40, 1, ()), (10 * MS, 60, 40, 0, ())]
        record = serve(Priority(), rows, num_gpu_blocks=14, max_model_len=128)
        assert record.requests.num_preemptions[2] == 0
        assert record.requests.num_preemptions[1] > 0
        vllm = serve(VLLM(), rows, num_gpu_blocks=14, max_model_len=128)
        assert vllm.requests.num_preemptions[2] > 0


def chats(rate: float, seed: int) -> Scenario:
    """Chats on 16 seats, which carry about 4 a second; one in five is high, one in five low."""
    return serving(
        "rtx4090-llama-3.1-8b-bf16",
        500,
        rate,
        seed=seed,
        engine={"max_num_seqs": 16},
        prompt_len=lognormal(600, 1.0, 4096),
        output_len=lognormal(150, 0.8, 1024),
        priorities={"high": 0.2, "normal": 0.6, "low": 0.2},
    )


def ttft_s(result: Result, priority: int, q: float) -> float:
    requests = result.requests
    return float(np.percentile(requests["ttft_s"][requests["priority"] == priority], q))


def mean_ttft_s(result: Result, priority: int) -> float:
    requests = result.requests
    return float(requests["ttft_s"][requests["priority"] == priority].mean())


@pytest.mark.parametrize("seed", range(2))
class TestPrioritySource:
    def test_the_high_class_does_not_feel_the_load(self, seed: int) -> None:
        """Where first come, first served lets everybody wait, the high class waits for a seat alone."""
        for rate in (5, 6):
            fcfs, aged = under(chats(rate, seed), "vllm"), under(chats(rate, seed), "priority", ageing_s=20.0)
            assert ttft_s(fcfs, 0, 99) > 8
            assert ttft_s(aged, 0, 99) < 0.3 * ttft_s(fcfs, 0, 99)
            assert mean_ttft_s(aged, 0) < mean_ttft_s(aged, 1) < mean_ttft_s(aged, 2)

    def test_the_others_pay_and_all_together_do_not(self, seed: int) -> None:
        fcfs, aged = under(chats(5, seed), "vllm").summary, under(chats(5, seed), "priority", ageing_s=20.0).summary
        assert aged["mean_ttft_ms"] < 1.1 * fcfs["mean_ttft_ms"]
        assert aged["output_throughput"] > 0.95 * fcfs["output_throughput"]

    def test_ageing_bounds_what_the_low_class_pays(self, seed: int) -> None:
        """The mean waits of two classes come to differ by their ageing, drawn out as the queue is by overload."""
        for rate in (5, 8):
            aged, strict = (under(chats(rate, seed), "priority", ageing_s=s) for s in (3.0, 1e6))
            overload = max(rate / aged.summary["request_throughput"], 1.0)
            assert 0.6 * 6 < mean_ttft_s(aged, 2) - mean_ttft_s(aged, 0) < 1.1 * 6 * overload
            assert ttft_s(strict, 2, 99) > 1.3 * ttft_s(aged, 2, 99)


ENGINE = EngineConfig(
    max_num_seqs=4, max_num_batched_tokens=1024, max_model_len=8192, num_gpu_blocks=4000, enable_prefix_caching=True
)


def conversations(num: int, turns: list[int], *, gap_s: float, think_s: float = 0, seed: int = 1) -> ListSource:
    """Sessions that begin at random times, of one of these lengths each."""
    rng, awaited, delays, arrivals = random.Random(seed), list[list[int]](), list[int](), list[int]()
    now = 0
    for _ in range(num):
        now += int(rng.expovariate(1 / gap_s) * 1000) * MS
        for turn in range(rng.choice(turns)):
            awaited.append([len(awaited) - 1] if turn else [])
            delays.append(int(rng.expovariate(1 / think_s) * 1000) * MS if turn and think_s else 0)
            arrivals.append(0 if turn else now)
    outputs = [rng.randint(50, 150) for _ in awaited]
    known = turns_of(awaited, delays)
    prompts = whole_prompts(known, [rng.randint(100, 250) for _ in awaited], outputs)
    return ListSource([(a, p, o, 0, ()) for a, p, o in zip(arrivals, prompts, outputs, strict=True)], turns=known)


def figures(engine: EngineConfig, policy: Policy, source: ListSource) -> Any:
    return SessionFigures.of(run(engine, LinearCost(6 * MS, 10**8, 9 * 10**7, 351), policy, source))


def durations_s(policy: Policy, source: ListSource) -> tuple[float, float]:
    """Mean time to finish of short and of long sessions."""
    sessions = figures(ENGINE, policy, source)
    begun, ended = sessions._bounds_ps
    is_long = np.bincount(np.asarray(source.turns.session)) > 3
    took_s = (ended - begun) / 1e12
    return float(took_s[~is_long].mean()), float(took_s[is_long].mean())


def test_short_programs_end_sooner_under_load_and_promotion_bounds_what_long_ones_pay() -> None:
    source = conversations(150, [1, 1, 1, 2, 3, 15], gap_s=0.5)
    vllm, plas = durations_s(VLLM(), source), durations_s(ProgramAttainedService(), source)
    assert plas[0] < 0.5 * vllm[0]
    promoted = durations_s(ProgramAttainedService(promote_s=2), source)
    assert plas[0] < promoted[0] < vllm[0]
    assert vllm[1] < promoted[1] < 0.8 * plas[1]


def test_without_load_nothing_changes() -> None:
    source = conversations(20, [1, 3, 9], gap_s=30, seed=3)
    assert durations_s(ProgramAttainedService(), source) == durations_s(VLLM(), source)


@pytest.mark.parametrize("seed", [1, 2])
def test_more_is_found_in_a_cache_that_cannot_hold_all(seed: int) -> None:
    """Conversations of 8 turns, of which memory holds a part: SGLang's section 3 as a trend."""
    engine = replace(ENGINE, num_gpu_blocks=2000, max_num_seqs=12)
    source = conversations(100, [8], gap_s=0.6, think_s=4, seed=seed)
    vllm, warm = figures(engine, VLLM(), source), figures(engine, WarmFirst(), source)
    assert warm.later_cached_tokens_share() > 2 * vllm.later_cached_tokens_share()
    assert warm.latencies["without_thinking"]["mean"] < 0.7 * vllm.latencies["without_thinking"]["mean"]
    roomy = replace(engine, num_gpu_blocks=20_000)
    hits = [figures(roomy, policy, source).later_cached_tokens_share() for policy in (VLLM(), WarmFirst())]
    assert hits[1] == pytest.approx(hits[0], rel=0.02)
