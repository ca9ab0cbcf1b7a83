"""One engine on both sides: what the scenario asks for and what vLLM made of it."""

import importlib.util

import pytest

from simbatch import Scenario, UserError
from simbatch.cli import main
from simbatch.profiler.validate.figures import Bounds, ComparedFigure, is_within
from simbatch.profiler.validate.settings import as_resolved, check_can_run, engine_options
from simbatch.serving.options import PolicyOptions
from simbatch.sim.metrics.registry import Metric
from simbatch.sim.scenario import resolve
from tests.made_samples import ENGINE

SETTINGS = {"watermark": 0.0, "enable_chunked_prefill": True, "async_scheduling": False, "scheduling_policy": "fcfs"}
LENGTHS = {"distribution": "fixed", "mean": 10}


def scenario(engine=None, **sections):
    content = {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
        "engine": engine or {},
        "workload": {"num_prompts": 3, "request_rate": 1, "prompt_len": LENGTHS, "output_len": LENGTHS},
        **sections,
    }
    return Scenario.from_dict(content)


def test_what_the_scenario_leaves_open_is_the_real_engine_s():
    config = resolve(as_resolved(scenario({"max_num_seqs": 32}), ENGINE, SETTINGS)).engine
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.max_model_len) == (32, 512, 2048)
    assert (config.num_gpu_blocks, config.block_size) == (100, 128)
    assert config.async_scheduling is False


@pytest.mark.parametrize(
    ("engine", "settings", "said"),
    [
        ({"max_num_seqs": 64}, {}, "max_num_seqs: the real engine has 32 (got 64)"),
        ({"num_gpu_blocks_override": 99}, {}, "num_gpu_blocks_override: the real engine has 100 (got 99)"),
        ({"enable_prefix_caching": False}, {}, "enable_prefix_caching: the real engine has true (got false)"),
        ({"watermark": 0.1}, {}, "watermark: the real engine has 0.0 (got 0.1)"),
        ({"async_scheduling": True}, {}, "async_scheduling: the real engine has false (got true)"),
        ({"kv_cache_dtype": "fp8"}, {}, "kv_cache_dtype: the real engine has bfloat16 (got 'fp8')"),
    ],
)
def test_a_setting_that_the_real_engine_does_not_have_is_an_error(engine, settings, said):
    with pytest.raises(UserError) as error:
        as_resolved(scenario(engine), ENGINE, {**SETTINGS, **settings})
    assert said in str(error.value)


def test_the_scenario_s_settings_reach_vllm():
    written = {"max_num_seqs": 8, "watermark": 0.05, "step_noise": False, "scheduling_policy": "priority"}
    written |= {"enforce_eager": True, "host_noise": False, "api_server_count": 4}
    options = engine_options(scenario(written), "model", quantization="awq", extra={"load_format": "dummy"})
    assert options.max_num_seqs == 8
    assert options.max_num_batched_tokens is None  # left to vLLM
    told = {"watermark": 0.05, "scheduling_policy": "priority", "enforce_eager": True, "load_format": "dummy"}
    told |= {"api_server_count": 4}
    assert options.extra == told
    for key, value in {"max_num_seqs": 8, "enforce_eager": True}.items():
        with pytest.raises(
            UserError, match=f"--engine-arg {key}: is a setting of the scenario; write --set engine.{key}"
        ):
            engine_options(scenario(), "model", extra={key: value})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"policy": {"name": "srpt"}}, "runs in simulation alone, since it plans whole steps (plan)"),
        ({"policy": {"name": "static"}}, "since it lets an idle engine wait for a fuller batch (hold)"),
        ({"policy": {"name": "fixed"}, "engine": {"batching": "static"}}, "batches continuously"),
    ],
)
def test_what_the_real_engine_cannot_do_is_said_before_it_starts(sections, said):
    with pytest.raises(UserError) as error:
        check_can_run(scenario(**sections))
    assert said in str(error.value)


def test_a_policy_reaches_vllm_with_what_it_may_ask_for(tmp_path):
    policy = {"name": "edf", "target_ttft_ms": 300.0}
    under = Scenario.from_dict({**scenario(policy=policy, seed=3).dump()}, folder=tmp_path)
    check_can_run(under)
    extra = engine_options(under, "model", extra={"load_format": "dummy"}).extra
    assert extra["scheduler_cls"] == "simbatch.vllm_scheduler.PolicyScheduler"
    options = PolicyOptions.of(extra["additional_config"])
    assert options.build().parameters()["target_ttft_ms"] == 300.0
    assert (options.seed, options.folder) == (3, tmp_path)
    assert options.cost_model().decode_ps(1) == 10**10
    with pytest.raises(UserError, match="is how vLLM is told of the policy edf"):
        engine_options(under, "model", extra={"scheduler_cls": "mine"})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_says_what_to_install(tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(
        "profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}\n"
        "workload: {num_prompts: 3, request_rate: 1, prompt_len: {distribution: fixed, mean: 10}, "
        "output_len: {distribution: fixed, mean: 10}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(path), "--engine", "model", "-o", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "pip install 'vllm>=0.31,<0.34'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_nearest_bound_counts():
    bounds = Bounds.parse("mean=5, p90=10%, mean_ttft=10, throughput=4")
    assert bounds.of("mean_e2el_ms") == 0.05
    assert bounds.of("mean_ttft_ms") == 0.10
    assert bounds.of("p90_ttft_ms") == 0.10
    assert bounds.of("output_throughput") == 0.04
    assert Bounds.parse("mean=5").of("request_throughput") == 0.05
    assert bounds.of("median_ttft_ms") is None
    assert bounds.of("mean_itl_ms") is None
    assert bounds.of("simbatch.batch_size.mean") is None


def test_the_real_runs_own_spread_widens_a_bound():
    figure = ComparedFigure(Metric("mean_ttft_ms", "x"), "client", (100.0, 104.0, 90.0), 118.0, 0.05)
    assert figure.median == 100
    assert figure.spread == pytest.approx(0.10)  # the farthest run is 10 % off the median
    assert figure.error == pytest.approx(0.18)
    assert figure.is_within is True  # twice the spread
    assert is_within(0.18, 0.05, None) is False
    assert is_within(None, 0.05, None) is False
