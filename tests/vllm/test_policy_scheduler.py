"""A policy in real vLLM decides as in simulation, step by step: in a scheduler alone, and in a whole engine."""

from __future__ import annotations

import importlib
import random
import shlex
from collections import deque
from pathlib import Path

import pytest

from simbatch import Scenario, UserError
from simbatch.sim.plugins.policy import POLICIES
from tests.vllm import engine_inside
from tests.vllm.policy_cases import (
    case_of,
    oracle_of,
    played_by_simbatch,
    played_by_vllm,
    profile_of,
    served,
    simulated,
)

OWN = f"{engine_inside.__name__}:"
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

    class InLanes(engine_inside.InTurns):
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

    class Listening(engine_inside.Feedback):
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


MODEL = Path(__file__).parent / "models" / "tiny-llama"
ENGINE = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 256, "block_size": 32}
NUM_BLOCKS = 14  # a little more than one of the longest requests needs


@pytest.fixture(scope="module")
def engine():
    from simbatch.profiler.server.start import EngineOptions
    from simbatch.profiler.validate.matching import policy_arguments
    from tests.vllm.engine_inside import EngineInside

    given = policy_arguments(scenario({"name": "fixed", "batch_size": 5}))
    options = EngineOptions(
        str(MODEL), **ENGINE, num_gpu_blocks_override=NUM_BLOCKS, extra={"enforce_eager": True, **given}
    )
    engine = EngineInside(options)
    yield engine
    engine.close()


def scenario(policy):
    lengths = {"prompt_len": {"distribution": "fixed", "mean": 40}, "output_len": {"distribution": "fixed", "mean": 6}}
    return Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": NUM_BLOCKS, "step_time": {"base_s": 1.0}},
            "engine": {**ENGINE, "num_gpu_blocks_override": NUM_BLOCKS},
            "workload": {"num_prompts": 12, "request_rate": 400, **lengths},
            "policy": policy,
        }
    )


def requests_of(seed):
    """Requests by the number of the step before which they come; prompts begin alike, in part."""
    rng, step, requests = random.Random(seed), 0, []
    for i in range(30):
        step += rng.choice([0, 0, 1, 3, 8])
        length = rng.randint(1, 160)
        request = {"id": f"q{i}", "arrival_step": step, "prompt_len": length, "max_tokens": rng.randint(1, 60)}
        request |= {"priority": rng.randrange(3), "tenant": f"t{i % 3}"}
        if rng.random() < 0.5:
            request["prefix"] = [f"g{rng.randrange(3)}", rng.randint(1, length)]
        requests.append(request)
    return requests


ON_THE_ENGINE = {
    "vllm": {},
    "priority": {"ageing_s": 20.0},
    "adaptive": {"target_tpot_ms": 1300.0, "adjustment_interval": 3},
    "sjf": {"predictor_error": 0.3},
    "fair": {},
    OWN + "Impatient": {"longest_wait_s": 60.0, "most_waiting": 9},
}


@pytest.mark.parametrize("name", ON_THE_ENGINE)
def test_the_real_engine_decides_as_the_simulation_does(engine, name):
    config = {**ENGINE, "num_gpu_blocks": NUM_BLOCKS, "enable_prefix_caching": True, "policy": "fcfs"}
    case = {"name": name, "config": {**config, "async_scheduling": False}, "requests": requests_of(5)}
    real, refused = served(engine, case, policy_of(name, ON_THE_ENGINE[name]))
    predicted, predicted_refusals = simulated(case, policy_of(name, ON_THE_ENGINE[name]))
    assert real == predicted
    assert refused == predicted_refusals
    assert sum(len(step["fin"]) for step in real) + len(refused) == len(case["requests"])
    assert sum(len(step["pre"]) for step in real) > 0
    assert any(before > 0 and before % ENGINE["block_size"] == 0 for step in real for *_, before in step["s"])
    assert (len(refused) > 0) == name.endswith("Impatient")
