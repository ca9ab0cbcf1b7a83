"""A replay on an engine that does what the simulator says: real and simulated are the same, request by request."""

import numpy as np
import pytest

from simbatch import Scenario
from simbatch.profiler.validating.figures import figures_of
from simbatch.profiler.validating.kept import Kept
from simbatch.profiler.validating.real_run import simulated_run
from simbatch.profiler.validating.replay import Replay
from simbatch.profiler.validating.requests import Requests, prompts
from simbatch.profiler.validating.simulated import simulate_requests
from simbatch.profiler.validating.step_check import step_figures
from simbatch.sim.cost.profile import InlineProfile
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import resolve
from simbatch.sim.workload import RequestChunk, open_workload
from tests.stand_in_engine import Clock, StandInEngine

PROFILE = {
    "num_gpu_blocks": 60,
    "step_time": {"base_s": 0.01, "per_prefill_token_s": 1e-4, "per_decode_seq_s": 1e-3, "per_context_token_s": 1e-6},
}
LENGTHS = {
    "prompt_len": {"distribution": "lognormal", "mean": 100, "cv": 0.7, "max": 400},
    "output_len": {"distribution": "lognormal", "mean": 30, "cv": 0.7, "max": 120},
}
WORKLOADS = {
    "light": {"num_prompts": 40, "request_rate": 1, **LENGTHS},
    "short of memory": {"num_prompts": 80, "request_rate": 20, **LENGTHS},
    "shared prefixes": {
        "num_prompts": 60,
        "request_rate": 8,
        "prefix": {"num_prefixes": 3, "prefix_len": 64},
        **LENGTHS,
    },
    "closed loop": {"num_prompts": 40, "arrival": {"process": "closed_loop"}, "max_concurrency": 4, **LENGTHS},
    "priorities": {"num_prompts": 60, "request_rate": 20, "priorities": {"high": 0.3, "normal": 0.7}, **LENGTHS},
}


def both(workload, *, overhead_s=0.0, tell=lambda num_ended, elapsed_s: None, policy=None, **engine):
    """The real run, the simulated one, and the stand-in."""
    settings = {"max_num_seqs": 16, "max_model_len": 600, "max_num_batched_tokens": 128, **engine}
    profile = {**PROFILE, "request_overhead_s": overhead_s}
    content = {"profile": profile, "engine": settings, "workload": workload, "seed": 5}
    scenario = Scenario.from_dict({**content, "policy": policy or {"name": "vllm"}})
    resolved = resolve(scenario)
    requests = Requests.of(open_workload(scenario.workload, seed=5, folder=scenario.folder))
    cost, clock = resolved.profile.cost_model(), Clock()
    engine = StandInEngine(resolved.engine, cost, requests, clock)
    simulated = simulated_run(simulate_requests(resolved, requests))
    tokens = prompts(requests, 4096, 5)
    under = {"policy": resolved.policy} if policy else {}
    replay = Replay(engine, resolved.engine, requests, tokens, tell=tell, now=clock, sleep=clock.sleep, **under)
    return replay, simulated, engine, resolved


@pytest.mark.parametrize("name", WORKLOADS)
def test_an_engine_that_does_as_simulated_has_no_error(name):
    engine = {"scheduling_policy": "priority"} if name == "priorities" else {}
    replay, simulated, _, _ = both(WORKLOADS[name], **engine)
    real = replay.run(simulated.facts)
    for column in ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps"):
        apart_ps = getattr(real.record.requests, column) - getattr(simulated.record.requests, column)
        assert np.abs(apart_ps).max() < 1e6, column  # 1 us
    assert np.abs(real.taken_in_ps - simulated.taken_in_ps).max() < 1e6
    assert len(real.record.gaps) == len(np.concatenate(real.itl_s))
    for figure in figures_of([real], simulated, None):
        if figure.error is not None:
            assert figure.error == pytest.approx(0, abs=1e-5), figure.metric.key
    assert real.record.num_preemptions == simulated.record.num_preemptions
    if name == "short of memory":
        assert real.record.num_preemptions > 0
    if name == "shared prefixes":
        cached = real.record.requests.num_cached_tokens
        assert cached.sum() > 1000
        assert cached.tolist() == simulated.record.requests.num_cached_tokens.tolist()


@pytest.mark.parametrize(
    "policy",
    [
        {"name": "adaptive", "target_tpot_ms": 18, "adjustment_interval": 3},
        {"name": "priority", "ageing_s": 2.0, "max_batch_size": 6},
        {"name": "sjf", "predictor_error": 0.4},
        {"name": "edf", "target_ttft_ms": 700},
    ],
    ids=lambda policy: policy["name"],
)
def test_a_policy_sees_the_same_and_decides_the_same(policy):
    workload = {**WORKLOADS["priorities"], "num_prompts": 80}
    replay, simulated, _, _ = both(workload, policy=policy)
    real = replay.run(simulated.facts)
    for column in ("arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps"):
        apart_ps = getattr(real.record.requests, column) - getattr(simulated.record.requests, column)
        assert np.abs(apart_ps).max() < 1e6, column
    assert real.record.requests.status.tolist() == simulated.record.requests.status.tolist()
    assert len(real.record.requests.reason) == len(simulated.record.requests.reason)
    assert (len(real.record.requests.reason) > 0) == (policy["name"] == "edf")
    plain = both(workload)[1].record.requests
    assert (simulated.record.requests.finish_ps != plain.finish_ps).any()


def test_taking_requests_in_costs_the_same_on_both_sides():
    replay, simulated, _, resolved = both(WORKLOADS["light"], overhead_s=0.002)
    real = replay.run(simulated.facts)
    assert real.admission_s == [pytest.approx(0.002)] * 40
    for figure in figures_of([real], simulated, None):
        if figure.metric.kind == "ms":
            assert figure.error == pytest.approx(0, abs=0.02), figure.metric.key
    rows = {row["regime"]: row for row in step_figures([real], resolved.profile.cost_model())}
    assert rows["decode-only"]["error"] == pytest.approx(0, abs=1e-6)
    assert rows["with prefills"]["error"] == pytest.approx(0, abs=1e-6)
    assert rows["between two steps"]["real_ms"] == pytest.approx(0, abs=1e-6)


def test_a_slower_engine_is_an_error_that_the_steps_explain():
    replay, simulated, engine, resolved = both(WORKLOADS["short of memory"])
    slower = {key: 1.25 * value for key, value in PROFILE["step_time"].items()}
    engine.replica.device.cost = InlineProfile.model_validate({**PROFILE, "step_time": slower}).cost_model()
    real = replay.run(simulated.facts)
    errors = {figure.metric.key: figure.error for figure in figures_of([real], simulated, None)}
    assert -0.6 < errors["mean_e2el_ms"] < -0.15
    assert errors["mean_itl_ms"] == pytest.approx(1 / 1.25 - 1, abs=0.05)
    for row in step_figures([real], resolved.profile.cost_model())[:2]:
        assert row["error"] == pytest.approx(1 / 1.25 - 1, abs=1e-6)


def test_prompts_that_vllm_refuses_are_rejected_and_the_rest_is_served():
    replay, simulated, engine, _ = both(WORKLOADS["light"], max_model_len=150)
    real = replay.run(simulated.facts)
    assert real.record.requests.status.tolist() == simulated.record.requests.status.tolist()
    assert real.record.requests.reason == simulated.record.requests.reason
    assert 0 < len(real.record.requests.reason) < 40
    assert real.record.requests.num_output_tokens.tolist() == simulated.record.requests.num_output_tokens.tolist()
    assert engine.on_step is None


def test_an_interrupted_replay_aborts_what_the_engine_has():
    def interrupt(num_ended, _):
        if num_ended == 20:
            raise KeyboardInterrupt

    replay, simulated, engine, _ = both(WORKLOADS["short of memory"], tell=interrupt)
    with pytest.raises(KeyboardInterrupt):
        replay.run(simulated.facts)
    assert set(map(str, engine.alive)) <= set(engine.aborted)
    assert engine.alive


@pytest.mark.parametrize("name", ["short of memory", "shared prefixes"])
def test_a_run_that_was_kept_is_read_as_it_was(tmp_path, name):
    replay, simulated, _, resolved = both(WORKLOADS[name])
    real = replay.run(simulated.facts)
    kept = Kept(tmp_path)
    setting = {"scenario": resolved.dump(), "engine": {"model": "x", "command": "one"}}
    assert kept.begin(setting, resume=True) == 0
    kept.write(1, real)
    assert kept.begin({**setting, "engine": {"model": "x", "command": "two"}}, resume=True) == 1
    again = kept.read(1, resolved.engine, simulated.facts)
    for one, other in zip(figures_of([real], simulated, None), figures_of([again], simulated, None), strict=True):
        assert one.real == pytest.approx(other.real, rel=1e-9), one.metric.key
    assert again.admission_s == real.admission_s
    with pytest.raises(UserError, match="another engine"):
        kept.begin({**setting, "engine": {"model": "y"}}, resume=True)
    assert kept.begin(setting, resume=False) == 0
    assert not (tmp_path / "run-1" / "requests.parquet").exists()


def test_prompts_share_the_tokens_of_the_same_hashes_and_nothing_else():
    chunk = RequestChunk(
        [0, 0, 0, 0], [40, 40, 35, 40], [1] * 4, hash_ids=[(7, 8), (7, 9), (7, 8, 4), ()]
    )  # 16 tokens a hash, a tail of its own
    made = prompts(Requests(chunk, hash_block_tokens=16), 1000, 3)
    assert [len(prompt) for prompt in made] == [40, 40, 35, 40]
    assert made[0][:16] == made[1][:16] == made[2][:16]
    assert made[0][:32] == made[2][:32]
    assert made[0][32:35] != made[2][32:]
    assert made[0][16:32] != made[1][16:32]
    assert made[3][:16] != made[0][:16]
    assert made == prompts(Requests(chunk, hash_block_tokens=16), 1000, 3)
    assert made != prompts(Requests(chunk, hash_block_tokens=16), 1000, 4)
    assert min(map(min, made)) > 0
