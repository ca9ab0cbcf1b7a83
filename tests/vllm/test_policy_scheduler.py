"""A policy in vLLM's scheduler decides as in simulation, step by step: on a virtual clock, without a model.

Hundreds of random cases are cheap so; test_policy_engine.py has a whole engine.
"""

import importlib
import shlex
from collections import deque
from pathlib import Path

import pytest

from simbatch import UserError
from simbatch.sim.plugins.policy import POLICIES
from tests.vllm import policies_tried
from tests.vllm.policy_cases import (
    case_of,
    oracle_of,
    played_by_simbatch,
    played_by_vllm,
    profile_of,
)

OWN = f"{policies_tried.__name__}:"
NUM_CASES = 12  # of each; every other one is short of memory
TRIED = {
    "adaptive": {"target_tpot_ms": 12.0, "adjustment_interval": 2},
    "edf": {"target_ttft_ms": 600.0},
    "fair": {"expected_output_tokens": 20.0},
    "fixed": {"batch_size": 3},
    "memory_aware": {"expected_output_tokens": 40.0, "adjustment_interval": 3},
    "plas": {"quantum_s": 0.1, "promote_s": 2.0},
    "priority": {"ageing_s": 0.3, "max_batch_size": 9},
    "sarathi": {"target_tpot_ms": 9.0, "tile_tokens": 8},
    "sjf": {},
    "vllm": {},
    "warm_first": {"warm_share": 0.02, "patience_s": 20.0},
    **{
        OWN + kind: {}
        for kind in (
            "ShortestPrompt",
            "MostComputedGivesWay",
            "MostBlocksGivesWay",
            "LastTurnsFirst",
            "Chunked",
            "InTurns",
            "Impatient",
            "Guessing",
            "Remembering",
            "Feedback",
        )
    },
}
IN_SIMULATION_ALONE = {"decode_first", "mlfq", "prefill_first", "srpt", "static"}


def policy_of(name, params=None):
    return POLICIES.load(name, TRIED[name] if params is None else params, folder=Path())


def test_every_policy_that_ships_is_tried_or_said_not_to_run_in_vllm():
    assert set(POLICIES.names()) == {name for name in TRIED if ":" not in name} | IN_SIMULATION_ALONE


@pytest.mark.parametrize("name", TRIED)
def test_vllm_s_scheduler_decides_as_the_simulation_does(name):
    num_preempted = num_refused = num_held_back = 0
    for seed in range(NUM_CASES):
        case = case_of(seed)
        real = played_by_vllm(case, policy_of(name), profile=profile_of(case))
        assert real == played_by_simbatch(case, policy_of(name)), f"seed {seed}"
        num_preempted += sum(len(line.get("pre", ())) for line in real)
        num_refused += sum("why" in line for line in real)
        if name != "vllm":
            num_held_back += real != played_by_simbatch(case, policy_of("vllm"))
    assert num_preempted > 10
    assert (num_refused > 0) == (name in ("edf", OWN + "Impatient"))
    # beginnings that a cache of such a size still has are rare
    assert num_held_back > (name != "warm_first") or name == "vllm"


@pytest.mark.parametrize("order", ["fcfs", "priority"])
def test_vllm_changes_nothing(order):
    from parity import vllm_oracle
    from simbatch.serving.scheduler import PolicyScheduler

    for seed in range(NUM_CASES):
        case = case_of(seed)
        case["config"]["policy"] = order
        oracle = oracle_of(case, policy_of("vllm"))
        scheduler, plain = oracle.sched, vllm_oracle.Oracle(case)
        assert isinstance(scheduler, PolicyScheduler)
        assert type(scheduler.waiting) is type(plain.sched.waiting)
        assert scheduler.kv_cache_manager.allocate_slots.__func__ is type(plain.sched.kv_cache_manager).allocate_slots
        assert oracle.run().splitlines()[1:] == plain.run().splitlines()[1:]


def test_it_schedules_asynchronously_where_vllm_does():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    case = case_of(0)
    for is_async in (True, False):
        case["config"]["async_scheduling"] = is_async
        assert isinstance(oracle_of(case, None).sched, AsyncScheduler) == is_async


def test_who_could_not_be_admitted_comes_back_as_before_and_is_not_asked_again():
    asked = []

    class InLanes(policies_tried.InTurns):
        def lane(self, request):
            asked.append(request.request_id)
            return super().lane(request)

    oracle = oracle_of(case_of(0), InLanes())
    while len(oracle.sched.waiting) < 6:
        oracle.clock = oracle.pending[0]["arrival_ns"]
        oracle.admit_arrivals()
    queue = oracle.sched.waiting
    before = [request.request_id for request in queue]
    skipped = deque()  # as vLLM's scheduler does with requests whose grammar is not compiled
    for _ in range(4):
        skipped.appendleft(queue.pop_request())
    queue.prepend_requests(skipped)
    assert [request.request_id for request in queue] == before
    assert asked == sorted(before, key=lambda name: int(name[1:]))


def test_a_request_that_its_client_gives_up_is_gone_and_is_no_feedback():
    from vllm.v1.request import RequestStatus

    class Listening(policies_tried.Feedback):
        def finished(self, request):
            super().finished(request)
            ended.append(request.request_id)

    ended = []
    case = case_of(4)
    case["config"] |= {"async_scheduling": False, "max_num_seqs": 3, "max_num_batched_tokens": 48}
    oracle = oracle_of(case, Listening())
    step, given_up = oracle.schedule, []

    def schedule():
        waiting = [request.request_id for request in oracle.sched.waiting]
        running = [request.request_id for request in oracle.sched.running]
        for name in (waiting[1:2] + running[:1]) if oracle.step_no % 5 == 4 else ():
            oracle.sched.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            del oracle.live[name]
            given_up.append(name)
        return step()

    oracle.schedule = schedule
    oracle.run_sync()
    assert len(given_up) > 5
    assert sorted(given_up + ended) == sorted(r["id"] for r in case["requests"])
    assert not oracle.sched.requests
    assert not oracle.sched._guide._served


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "must name the policy to serve with"),
        ({"policy": "fixed"}, "policy: must be a mapping with a name"),
        ({"policy": {"name": "adaptve"}}, "policy.name: no such policy (got 'adaptve'); did you mean adaptive?"),
        ({"policy": {"name": "fixed", "batchsize": 3}}, "policy.batchsize: unknown key"),
        ({"policy": {"name": "fixed", "batch_size": 0}}, "policy.batch_size: must be at least 1 (got 0)"),
        ({"policy": {"name": "fixed"}, "polcy": 1}, "simbatch.polcy: unknown key (got 1); did you mean policy?"),
        ({"policy": {"name": OWN + "Planned"}}, "runs in simulation alone, since it plans whole steps (plan)"),
        ({"policy": {"name": "static"}}, "wait for a fuller batch (hold)"),
        ({"policy": {"name": "nowhere.py:Mine"}}, "no file nowhere.py"),
        ({"policy": {"name": "edf"}, "profile": "rtx9090"}, "profile: neither a shipped profile nor a file"),
        ({"policy": {"name": "fixed"}, "seed": -1}, "simbatch.seed: must be a whole number from 0 on (got -1)"),
    ],
)
def test_what_cannot_be_served_is_said(given, said):
    with pytest.raises(UserError) as error:
        policy_and_step_times(given)
    assert said in str(error.value)
    assert "--additional-config simbatch" in str(error.value)


def policy_and_step_times(given):
    from simbatch.serving.options import PolicyOptions

    options = PolicyOptions.of({"simbatch": given} if given else {})
    return options.build(), options.cost_model()


def test_it_refuses_vllm_s_own_priorities_beside_a_policy_and_step_times_without_a_profile():
    case = case_of(0)
    with pytest.raises(UserError, match="step_time_s"):
        played_by_vllm(case, policy_of("edf"))
    case["config"]["policy"] = "priority"
    with pytest.raises(UserError, match="--scheduling-policy: the policy owns the order"):
        oracle_of(case, policy_of("fixed"))


def test_it_refuses_a_version_of_vllm_whose_inside_was_not_read(monkeypatch):
    import vllm.version

    import simbatch.vllm_scheduler

    monkeypatch.setattr(vllm.version, "__version__", "0.34.0")
    with pytest.raises(UserError, match=r"knows the inside of vLLM 0\.31 to 0\.33 alone \(got '0\.34\.0'\)"):
        importlib.reload(simbatch.vllm_scheduler)


def test_vllm_serve_takes_the_documented_flags():
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # 0.33
        from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    text = (Path(__file__).parents[2] / "docs" / "vllm-policies.md").read_text(encoding="utf-8")
    command = text.split("```sh\nvllm serve ")[1].split("\n```")[0].replace("\\\n", " ")
    model, *flags = shlex.split(command)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    assert not model.startswith("-")
    assert arguments.scheduler_cls == "simbatch.vllm_scheduler.PolicyScheduler"
    assert arguments.additional_config == {"simbatch": {"policy": {"name": "adaptive", "target_tpot_ms": 40}}}
