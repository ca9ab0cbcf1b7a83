"""Many recorded runs in a table, and settings for one engine on both sides."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch import Scenario, UserError
from simbatch.profiler.validate import Bounds, ComparedFigure, is_within
from simbatch.profiler.validate.matching import as_resolved, check_can_run, engine_options
from simbatch.serving.options import PolicyOptions
from simbatch.sim.metrics.registry import Metric
from simbatch.sim.scenario import resolve
from tests import Done, exit_code, run_command
from tests import bench_files as files
from tests.made_samples import ENGINE

USERS = (1, 4, 16)
RESULTS = {users: files.ran(files.closed_loop(users, num_prompts=60, prompt=400)) for users in USERS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's results, of which the one with 16 users was half as fast again; and what lies beside them."""
    for users, result in RESULTS.items():
        bench = files.vllm(result, max_concurrency=users)
        if users == 16:
            bench["itls"] = [(1.5 * np.array(gaps)).tolist() for gaps in bench["itls"]]
            bench["start_times"] = None
            bench["duration"] = None
        bench = {key: value for key, value in bench.items() if value is not None}
        files.save(tmp_path / "results" / f"server_in400_c{users}.json", bench)
    files.save(tmp_path / "results" / "settings.json", {"port": 8000})
    (tmp_path / "results" / "log.txt").write_text("not looked at")
    scenario = files.scenario(files.OPEN)
    files.save(tmp_path / "x.yaml", scenario)
    return tmp_path


def validated(folder: Path, capsys: Any, *flags: object) -> tuple[dict[str, Any], Done]:
    done = run_command(capsys, "validate", folder / "x.yaml", "-o", folder / "out", "--json", *flags)
    return (json.loads(done.out) if done.out else {}), done


def test_a_folder_is_one_table_with_the_worst_run_and_why(folder: Path, capsys: Any) -> None:
    content, done = validated(folder, capsys, "--recorded", folder / "results")
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == ["server_in400_c1", "server_in400_c16", "server_in400_c4"]
    assert content["not_compared"][0]["name"] == "settings.json"
    assert "it has the keys port" in content["not_compared"][0]["reason"]
    errors = [abs(_error(each, "mean_e2el_ms")) for each in content["runs"]]
    assert content["median_abs_error"]["mean_e2el_ms"] == pytest.approx(np.median(errors))
    assert content["median_abs_error"]["mean_tpot_ms"] == pytest.approx(0, abs=1e-6)  # two of three are right
    worst = content["worst"]
    assert worst["name"] == "server_in400_c16"
    assert worst["errors"]["mean_e2el_ms"] == pytest.approx(_error(content["runs"][1], "mean_e2el_ms"))
    assert worst["off"] >= abs(worst["errors"]["mean_e2el_ms"])
    assert any("are the time between tokens" in reason for reason in worst["why"])
    assert any("the most requests in flight of all: 1" in reason for reason in worst["why"])
    assert {path.name for path in (folder / "out").iterdir()} == {"validation.json", "errors.png", "run.json"}
    assert (folder / "out" / "errors.png").read_bytes().startswith(b"\x89PNG")


def _error(each: dict[str, Any], key: str) -> float:
    return float(next(f["error"] for f in each["figures"] if f["key"] == key))


def test_the_table_names_each_run_once_and_its_end(folder: Path, capsys: Any) -> None:
    done = run_command(capsys, "validate", folder / "x.yaml", "--recorded", folder / "results", "-o", folder / "out")
    lines = done.out.splitlines()
    row = next(line for line in lines if "server_in400_c4" in line)
    assert "4 in" in row
    assert "60" in row
    assert row.split()[-1] == "+0.0%"
    assert any(line.strip().startswith("median |error|") for line in lines)
    assert any(line.startswith("worst: server_in400_c16 (TTFT ") for line in lines)
    assert any("not compared: settings.json" in line for line in lines)
    assert done.out.count("which prompts share a prefix is not known of them") == 1


def test_an_e2el_that_is_right_by_chance_does_not_hide_its_parts(folder: Path, capsys: Any) -> None:
    """As where a server runs fewer at once: what its requests wait longer, they decode faster."""
    bench = files.vllm(RESULTS[4], max_concurrency=4)
    decoding = [sum(gaps) for gaps in bench["itls"]]
    bench["ttfts"] = [ttft + 0.5 * took for ttft, took in zip(bench["ttfts"], decoding, strict=True)]
    bench["itls"] = [[0.5 * gap for gap in gaps] for gaps in bench["itls"]]
    files.save(folder / "results" / "server_in400_c5.json", bench)
    (folder / "results" / "server_in400_c16.json").unlink()
    worst = validated(folder, capsys, "--recorded", folder / "results")[0]["worst"]
    assert worst["name"] == "server_in400_c5"
    assert worst["errors"]["mean_e2el_ms"] == pytest.approx(0, abs=1e-6)
    assert worst["off"] == pytest.approx(0.5 * np.sum(decoding) / np.sum(RESULTS[4].requests["e2el_s"]), rel=1e-3)
    assert any("its E2EL is right by chance" in reason for reason in worst["why"])


def test_files_by_a_shell_s_pattern_and_runs_in_one_file(folder: Path, capsys: Any) -> None:
    paths = sorted((folder / "results").glob("server*.json"))
    content, done = validated(folder, capsys, "--recorded", *paths)
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == [path.stem for path in paths]
    report = {"benchmarks": [files.guidellm(RESULTS[n], {"type_": "concurrent", "streams": n}) for n in (1, 4)]}
    content, done = validated(folder, capsys, "--recorded", files.save(folder / "benchmarks.json", report))
    assert [each["name"] for each in content["runs"]] == ["run 1", "run 2"]
    assert content["median_abs_error"]["mean_ttft_ms"] == pytest.approx(0, abs=1e-6)


def test_bounds_hold_for_every_run(folder: Path, capsys: Any) -> None:
    flags = ("--recorded", folder / "results", "--bounds", "mean_e2el=10")
    content, done = validated(folder, capsys, *flags)
    assert (done.code, content["is_within_bounds"]) == (1, False)
    shown = run_command(capsys, "validate", folder / "x.yaml", "-o", folder / "out", *flags)
    assert "OUTSIDE the bounds: 1 of 3 runs: server_in400_c16 (mean_e2el_ms)" in shown.out
    assert validated(folder, capsys, "--recorded", folder / "results", "--bounds", "mean_e2el=60")[1].code == 0


def test_a_run_that_cannot_be_simulated_is_named_and_the_others_go_on(folder: Path, capsys: Any) -> None:
    odd = files.sglang(RESULTS[4], request_rate=3.0)
    files.save(folder / "results" / "odd.jsonl", odd)
    content, done = validated(folder, capsys, "--recorded", folder / "results")
    assert done.code == 0
    assert len(content["runs"]) == 3
    assert any(each["name"] == "odd" and "cannot be drawn again" in each["reason"] for each in content["not_compared"])
    files.save(folder / "odd" / "a.jsonl", [odd, odd], lines=True)
    done = run_command(capsys, "validate", folder / "x.yaml", "--recorded", folder / "odd")
    assert done.code == 2
    assert "cannot be drawn again" in done.err


def test_a_file_that_says_less_than_the_one_beside_it_is_passed_over(folder: Path, capsys: Any) -> None:
    reports = folder / "reports"
    files.save(reports / "summary_lifecycle_metrics.json", files.stage(RESULTS[4]))
    files.save(reports / "stage_0_lifecycle_metrics.json", files.stage(RESULTS[4], concurrency=4))
    lengths = {"prompt_len": files.lengths(400, 0.5), "output_len": files.lengths(40, 0.5)}
    files.save(folder / "x.yaml", files.scenario(files.OPEN | lengths))
    content, done = validated(folder, capsys, "--recorded", reports)
    assert done.code == 0, done.err
    assert [each["name"] for each in content["runs"]] == ["stage_0_lifecycle_metrics"]
    assert _error(content["runs"][0], "mean_e2el_ms") == pytest.approx(0, abs=1e-6)
    files.save(reports / "per_request_lifecycle_metrics.json", files.inference_perf(RESULTS[4]))
    content, done = validated(folder, capsys, "--recorded", reports)
    assert [each["name"] for each in content["runs"]] == ["per_request_lifecycle_metrics"]


def test_mistakes(folder: Path, capsys: Any) -> None:
    empty = folder / "empty"
    empty.mkdir()
    for arguments, said in (
        (("--recorded", empty), "no .json or .jsonl in it"),
        (("--recorded", folder / "results" / "settings.json"), "is no benchmark's result that is known"),
        (("--recorded", folder / "absent"), "there is no such file"),
        (("--engine", "x", folder / "results"), "is a folder, not a file"),
        (("--server", "http://127.0.0.1:1", folder / "results"), "unexpected extra arguments"),
    ):
        done = run_command(capsys, "validate", folder / "x.yaml", *arguments)
        assert done.code == 2
        assert said in done.err


def test_what_the_real_streams_say_stands_among_the_reasons(folder: Path, capsys: Any) -> None:
    """Two engines behind one port: no single simulation is such a server."""
    halves = [files.vllm(files.ran(files.closed_loop(users, num_prompts=60, output=80))) for users in (4, 10)]
    halves[1]["start_times"] = [time + 0.0041 for time in halves[1]["start_times"]]
    both = {key: value + halves[1][key] if isinstance(value, list) else value for key, value in halves[0].items()}
    files.save(folder / "results" / "server_in400_c14.json", both | {"max_concurrency": 14})
    content, _done = validated(folder, capsys, "--recorded", folder / "results")
    notes = next(each["notes"] for each in content["runs"] if each["name"] == "server_in400_c14")
    assert any(note.startswith("real: its steps cannot be told") and "several engines" in note for note in notes)


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
    assert options.folder == tmp_path
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
    assert exit_code("validate", str(path), "--engine", "model", "-o", str(tmp_path / "out")) == 2
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
