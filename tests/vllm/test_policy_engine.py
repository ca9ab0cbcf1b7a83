"""A policy in real vLLM decides as in simulation, step by step: a whole engine, whose clock are its steps."""

import random
from pathlib import Path

import pytest

from simbatch import Scenario
from tests.vllm.policy_cases import served, simulated
from tests.vllm.test_policy_scheduler import OWN, policy_of

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
