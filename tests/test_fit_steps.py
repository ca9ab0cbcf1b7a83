"""Fits of steps: what was planted in two-regime times and in a recorder's file is given back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.planted import recorder_back as given_back
from benchmarks.planted import recorder_differences as differences
from benchmarks.planted import served, server, write_recorded
from simbatch.profiler.fit.choose import REGIMES, figures, judge, judge_bands
from simbatch.profiler.fit.recorder import fit_recorder
from simbatch.profiler.fit.recorder.host import errors_of, gaps_of
from simbatch.profiler.fit.recorder.moments import moments_of, read_steps
from simbatch.profiler.fit.two_regime import fit_two_regime, solve
from simbatch.profiler.importers.source import StepLimits, sample_steps
from simbatch.profiler.records import concatenate, predict_s
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.step_time import TwoRegimeStepTime
from simbatch.sim.errors import UserError
from tests import run_command, traffic

FACTS = {
    **{"model": "org/Small-1B", "gpu": "h100", "quantisation": "bf16", "kv_cache_dtype": "bfloat16"},
    **{"total_bytes": 80 * 2**30, "weights_bytes": 2 * 2**30, "gpu_memory_utilization": 0.92, "block_size": 16},
    **{"kv_bytes_per_token": 65536, "tensor_parallel_size": 1, "vllm_version": "0.32.0", "max_model_len": 16384},
}


@pytest.mark.parametrize(("seed", "has_device"), [(0, True), (3, False), (9, False)])
def test_what_was_planted_is_given_back(seed: int, has_device: bool) -> None:
    given, found = given_back(seed, has_device=has_device, number=120)
    shares = dict(differences(given, found))
    assert len(shares) >= 4
    for name, share in shares.items():
        assert abs(share) < (0.1 if name.startswith("launch") else 0.01), (name, shares)  # spread launches are few
    host = found.sections.host
    assert host["update"]["base_s"] == pytest.approx(2e-4, rel=0.05)
    assert host["update"]["per_seq_s"] == pytest.approx(1e-5, rel=0.05)
    assert host["admit"]["base_s"] == pytest.approx(3e-4, rel=0.15)
    gaps = found.sections.fit.gaps
    assert abs(gaps.total) < 0.01
    assert gaps.error_ms < 0.05 * gaps.mean_ms
    assert found.sections.fit.has_device_times == has_device


def test_synchronous_steps_have_their_launch_inside(tmp_path: Path) -> None:
    given = server(0, is_async=False)
    path = write_recorded(tmp_path / "steps.jsonl", served(given, 8, 0, 100), given, has_device=False)
    found = fit_recorder([path])
    real, ours = load_profile(given.profile, folder=Path()).cost_model(), found.profile.cost_model()
    lag_ps = 10**9  # nobody can tell it from the device's time here
    planted_ps = real.decode_ps(8) + 7200 * real.decode_context_ps + lag_ps
    assert ours.decode_ps(8) + 7200 * ours.decode_context_ps == pytest.approx(planted_ps, rel=0.01)
    assert not found.profile.default_async_scheduling
    assert "launches" in found.sections.fit.taken


def test_the_true_times_replay_their_own_record(tmp_path: Path) -> None:
    given = server(6)  # without spread
    path = write_recorded(tmp_path / "steps.jsonl", served(given, 3, 6, 60), given, has_device=True)
    run, true = moments_of(read_steps(path)), load_profile(given.profile, folder=Path())
    errors = errors_of([gaps_of(run, true.cost_model(), true.host)])
    assert errors.error_ms < 0.01 * errors.mean_ms  # admissions are not in the replay
    assert abs(errors.total) < 1e-3
    slower = {**given.profile, "step_time": {"base_s": 0.1}}
    assert errors_of([gaps_of(run, load_profile(slower, folder=Path()).cost_model(), true.host)]).total > 1


def written(path: Path, seed: int = 0, **facts: Any) -> Path:
    given = server(seed)
    write_recorded(path, served(given, 8, seed, 60), given, has_device=True)
    first, *others = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([json.dumps({**json.loads(first), **facts}) + "\n", *others]), encoding="utf-8")
    return path


def test_the_command_writes_a_profile_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "steps.jsonl", **FACTS, num_gpu_blocks=70000)
    output = tmp_path / "mine.json"
    done = run_command(capsys, "fit", path, "-o", output)
    assert done.code == 0, done.err
    assert "device, held out" in done.out
    assert "not told: front end" in done.out
    profile = load_profile(str(output), folder=Path())
    assert profile.name == "mine"
    assert profile.num_gpu_blocks_for() == 70000
    scenario = tmp_path / "s.yaml"
    scenario.write_text(json.dumps({"profile": str(output), "workload": traffic(50, 100, 20, request_rate=5)}))
    assert run_command(capsys, "run", scenario, "-o", tmp_path / "out").code == 0
    assert "recorder's files" in run_command(capsys, "profiles", "show", output).out
    fitted = json.loads(run_command(capsys, "fit", path, "--json").out)
    assert fitted["name"] == "h100-small-1b-bf16-measured"
    assert fitted["recorder"]["steps"] > 500


def test_a_file_without_facts_takes_the_nearest_profiles_memory(tmp_path: Path) -> None:
    path = written(tmp_path / "steps.jsonl")
    nearest = "h100-llama-3.1-8b-bf16"
    found = fit_recorder([path], nearest=nearest).profile
    assert found.num_gpu_blocks_for() == load_profile(nearest, folder=Path()).num_gpu_blocks_for()


def test_a_device_that_is_done_before_its_launch_returns_has_no_tail(tmp_path: Path) -> None:
    given = server(3)
    launch = given.profile["host"]["launch"] | {"piecewise": {"base_s": 0.5}, "none": {"base_s": 0.5}}
    slow = given._replace(profile={**given.profile, "host": {**given.profile["host"], "launch": launch}})
    path = write_recorded(tmp_path / "steps.jsonl", served(slow, 3, 3, 60), slow, has_device=True)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    bound = [line for line in lines if "d1" in line and line["d1"] - line["m1"] < 1e-4]
    assert len(bound) > 20
    for line in bound:  # as on the virtual device of `simbatch serve --host profile`
        line["d1"] = line["m1"] - 1e-4
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert fit_recorder([path]).sections.host["tail_s"] == 0


def test_files_of_two_servers_are_refused(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.jsonl", model="a"), written(tmp_path / "b.jsonl", model="b")
    with pytest.raises(UserError, match="another server"):
        fit_recorder([one, other])


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "steps.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    short = [line for line in lines if '"s0"' not in line][:1] + [line for line in lines if '"s0"' in line][:8]
    path.write_text("".join(short), encoding="utf-8")
    with pytest.raises(UserError, match="at least 12 are needed"):
        fit_recorder([path])


LIMITS = StepLimits(
    decode_only_seqs=(1, 256),
    mixed_seqs=(1, 128),
    context=(16, 16384),
    chunk=(16, 2048),
    history=(0, 8192),
    max_num_batched_tokens=2048,
    kv_tokens=40_000,
)
TRUTH = TwoRegimeStepTime.model_validate(
    {
        "form": "two_regime",
        "decode": {"seqs": {"count": [1, 64, 256], "time_s": [0.016, 0.019, 0.027]}, "per_context_token_s": 1.5e-7},
        "mixed": {
            "tokens": {"count": [16, 256, 272, 2048], "time_s": [0.017, 0.026, 0.036, 0.18]},
            "per_decode_seq_s": 3e-5,
            "per_seq_token_s": 4e-8,
            "per_context_token_s": 3.6e-7,
            "per_prefill_context_token_s": 7e-7,
            "per_attention_unit_s": 1.5e-9,
        },
    }
)


def samples(seed, count=600):
    drawn = {regime: sample_steps(regime, count, LIMITS, seed) for regime in REGIMES}
    return drawn["decode"], concatenate([drawn["prefill"], drawn["mixed"]])


def fit_both(decode, mixed, noise=0.0):
    rng = np.random.default_rng(0)
    cost = TRUTH.cost_model()
    measured = [
        (steps, predict_s(cost, steps) * (1 + noise * rng.standard_normal(len(steps)))) for steps in (decode, mixed)
    ]
    return fit_two_regime(*measured, seq_knots=[1, 64, 128, 256], token_knots=[16, 256, 272, 1024, 2048])


@pytest.mark.parametrize("regime", REGIMES)
def test_a_design_stays_inside_its_limits_and_repeats(regime):
    steps = sample_steps(regime, 500, LIMITS, seed=3)
    again = sample_steps(regime, 500, LIMITS, seed=3)
    assert (steps.decode_context == again.decode_context).all()
    assert (steps.prefill_tokens == again.prefill_tokens).all()
    assert not (steps.num_tokens == sample_steps(regime, 500, LIMITS, seed=4).num_tokens).all()
    assert (steps.prefill_context + steps.decode_context + steps.num_decodes <= LIMITS.kv_tokens).all()
    assert steps.num_tokens.max() <= LIMITS.max_num_batched_tokens
    assert (steps.prefill_tokens > 0).all() == (regime != "decode")
    assert (steps.num_decodes > 0).all() == (regime != "prefill")
    assert (steps.min_context <= steps.mean_context).all()
    assert (steps.mean_context <= steps.max_context).all()
    if regime != "decode":
        assert steps.prefill_tokens.min() >= 16
        history = steps.prefill_context - steps.prefill_tokens
        assert (steps.prefill_attention == steps.prefill_tokens * (2 * history + steps.prefill_tokens)).all()


def test_the_fit_finds_the_truth_that_made_the_steps():
    found = fit_both(*samples(seed=1))
    assert found.decode.per_context_token_s == pytest.approx(1.5e-7, rel=1e-3)
    assert found.mixed.per_attention_unit_s == pytest.approx(1.5e-9, rel=1e-3)
    assert found.mixed.per_prefill_context_token_s == pytest.approx(7e-7, rel=1e-3)
    assert found.mixed.per_seq_token_s == pytest.approx(4e-8, rel=1e-2)
    decode, mixed = samples(seed=2, count=200)
    for steps in (decode, mixed):
        assert judge(found.cost_model(), steps, predict_s(TRUTH.cost_model(), steps)).mape < 1e-4


def test_layers_with_a_window_are_told_from_those_that_see_all():
    layers = {"size_tokens": 1024, "decode_per_token_s": 2e-7, "mixed_per_token_s": 5e-7, "per_attention_unit_s": 3e-9}
    truth = TwoRegimeStepTime.model_validate({**TRUTH.model_dump(), "window": layers})
    measured = [(steps, predict_s(truth.cost_model(), steps)) for steps in samples(seed=1)]
    found = fit_two_regime(*measured, [1, 64, 256], [16, 256, 272, 2048], 1024)
    for key, value in layers.items():
        assert getattr(found.window, key) == pytest.approx(value, rel=1e-2), key
    assert found.decode.per_context_token_s == pytest.approx(1.5e-7, rel=1e-2)


def test_noise_leaves_the_totals_and_shows_as_error():
    found = fit_both(*samples(seed=1), noise=0.03)
    decode, mixed = samples(seed=2)
    for steps in (decode, mixed):
        error = judge(found.cost_model(), steps, predict_s(TRUTH.cost_model(), steps))
        assert error.mape < 0.01
        assert abs(error.bias) < 0.005


def test_above_its_knots_a_function_goes_on_with_the_slope_of_its_upper_half():
    cost = fit_both(*samples(seed=1)).cost_model()
    highest = 256
    slope = (cost.decode_ps(highest) - cost.decode_ps(highest // 2)) / (highest // 2)
    assert (cost.decode_ps(1024) - cost.decode_ps(highest)) / (1024 - highest) == pytest.approx(slope, rel=1e-3)


def test_no_term_is_ever_negative():
    rng = np.random.default_rng(5)
    columns = np.column_stack([np.ones(200), rng.random(200), rng.random(200)])
    measured_s = 1 + 2 * columns[:, 1] - 0.5 * columns[:, 2]
    found = solve(columns, measured_s)
    assert (found >= 0).all()
    assert found[2] == 0


def test_figures_by_hand():
    error = figures(np.array([1.1, 0.9, 2.0, 4.0]), np.array([1.0, 1.0, 2.0, 4.0]))
    assert (error.num_steps, error.mape, error.bias) == (4, 0.05, 0.0)
    assert error.p95 == pytest.approx(0.1, abs=1e-5)
    assert figures(np.array([]), np.array([])).num_steps == 0


def test_bands_hold_every_decode_step_once():
    decode, _ = samples(seed=2)
    bands = judge_bands(TRUTH.cost_model(), decode, predict_s(TRUTH.cost_model(), decode))
    assert sum(band.num_steps for band in bands.values()) == len(decode)
    assert all(band.mape == 0 for band in bands.values())


def test_a_server_of_one_request_at_a_time_is_fitted(tmp_path: Path) -> None:
    """No step has decodes beside a prefill: the range says so, instead of an error of empty arrays."""
    given = server(6)
    found = fit_recorder([write_recorded(tmp_path / "one.jsonl", served(given, 1, 6, 60), given, has_device=True)])
    measured = found.sections.fit.range
    assert measured.mixed.num_decodes == measured.mixed.mean_context == (0, 0)
    assert measured.decode.num_decodes == (1, 1)
