"""`engine.kv_cache_dtype`: the profile that ships beside it and was measured so, or an error that names the way."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.cli import main
from simbatch.sim.scenario import resolve
from simbatch.sim.search.sweep import sweep
from simbatch.sim.tuning.space import Space, axes_of
from simbatch.sim.tuning.vllm_flags import vllm_serve

FP8, FP8_KV = "h100-llama-3.1-8b-fp8", "h100-llama-3.1-8b-fp8-kvfp8"
KV = "engine.kv_cache_dtype"
LEN = {"distribution": "fixed", "mean": 200}
WORKLOAD = {"num_prompts": 20, "request_rate": 20, "prompt_len": LEN, "output_len": LEN}


def scenario(profile: Any = FP8, **engine: Any) -> Scenario:
    return Scenario.from_dict({"profile": profile, "engine": engine, "workload": WORKLOAD})


def summary(profile: str, **engine: Any) -> dict[str, Any]:
    return simulate(scenario(profile, **engine)).summary


@pytest.mark.parametrize("alias", ["fp8", "fp8_e4m3"])
def test_the_sibling_that_was_measured_so_is_taken_and_said(alias: str) -> None:
    asked, own = summary(FP8, kv_cache_dtype=alias), summary(FP8_KV)
    for key in ("mean_tpot_ms", "p99_ttft_ms", "duration"):
        assert asked[key] == own[key]
    assert asked["mean_tpot_ms"] != summary(FP8)["mean_tpot_ms"]
    profile = asked["simbatch"]["profile"]
    assert (profile["name"], profile["asked_for"]) == (FP8_KV, FP8)
    assert own["simbatch"]["profile"]["asked_for"] is None
    assert asked["simbatch"]["kv_cache"]["num_gpu_blocks"] == own["simbatch"]["kv_cache"]["num_gpu_blocks"]


def test_it_goes_both_ways_and_the_tensor_parallel_size_stays() -> None:
    assert resolve(scenario(FP8_KV, kv_cache_dtype="bfloat16")).profile.name == FP8
    sharded = resolve(scenario("h100-llama-3.1-70b-fp8-tp2", kv_cache_dtype="fp8"))
    assert sharded.profile.name == "h100-llama-3.1-70b-fp8-kvfp8-tp2"
    for same in ("auto", "fp8"):
        assert resolve(scenario(FP8_KV, kv_cache_dtype=same)).profile_asked_for is None


def test_the_report_and_the_stored_scenario_name_it() -> None:
    result = simulate(scenario(kv_cache_dtype="fp8"))
    assert f"Profile: {FP8_KV} in place of {FP8}, for kv_cache_dtype fp8; error: " in " ".join(result.text().split())
    assert result.facts.scenario["profile"] == FP8_KV
    again = simulate(Scenario.from_dict(dict(result.facts.scenario)))
    assert again.summary["mean_tpot_ms"] == result.summary["mean_tpot_ms"]


@pytest.mark.parametrize(
    ("profile", "dtype", "message"),
    [
        (
            "rtx4090-llama-3.1-8b-bf16",
            "fp8",
            "scenario engine.kv_cache_dtype: rtx4090-llama-3.1-8b-bf16 was measured with a bfloat16 cache, and another "
            "one has other step times (got 'fp8'); measure it so: `simbatch profile MODEL --kv-cache-dtype fp8 -o "
            f"FILE`, or take one that ships: {FP8_KV}, h200-llama-3.1-8b-fp8-kvfp8, l40s-llama-3.1-8b-fp8-kvfp8",
        ),
        (FP8, "fp8_e5m2", "--kv-cache-dtype fp8_e5m2 -o FILE`"),
        ("mine.json", "fp8", "mine.json was measured with a bfloat16 cache"),
        (
            {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "fp8",
            "an inline profile does not say how its KV cache is held",
        ),
    ],
)
def test_where_there_is_none_the_way_is_named(
    profile: Any, dtype: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(str(files("simbatch.profiles") / f"{FP8}.json"), "mine.json")  # a file of the user's has no sibling
    with pytest.raises(UserError) as raised:
        resolve(scenario(profile, kv_cache_dtype=dtype))
    assert message in str(raised.value)
    assert "engine.kv_cache_dtype" in str(raised.value)


def test_an_axis_of_a_sweep_and_of_tune_goes_by_the_same_rule() -> None:
    rows = sweep(scenario(), {KV: ["auto", "fp8"]}, jobs=1).rows
    assert [row["mean_tpot_ms"] for row in rows] == [summary(name)["mean_tpot_ms"] for name in (FP8, FP8_KV)]
    with pytest.raises(UserError, match="fp8_e5m2"):
        sweep(scenario(), {KV: ["fp8", "fp8_e5m2"]}, jobs=1)
    assert len(Space(scenario(), axes_of({KV: ["auto", "fp8"]}, "--over"), "--over").points) == 2
    with pytest.raises(UserError, match=r"h100-llama-3\.1-8b-fp8 was measured with a bfloat16 cache"):
        Space(scenario(), axes_of({KV: ["auto", "fp8_e5m2"]}, "--over"), "--over")
    assert vllm_serve(scenario(), {KV: "fp8"}).count("--kv-cache-dtype fp8") == 1


def test_a_comparison_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(
        yaml.safe_dump({"profile": FP8, "engine": {"kv_cache_dtype": "fp8"}, "workload": WORKLOAD})
    )
    with pytest.raises(SystemExit):
        main(["compare", "s.yaml", "--policy", "vllm", "--policy", "fixed"])
    assert f"NOTE: fixed runs on profile {FP8_KV} in place of {FP8}, for kv_cache_dtype fp8." in capsys.readouterr().out
