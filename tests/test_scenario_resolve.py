"""What a scenario resolves to: vLLM's defaults, overrides, and a dump that gives the same run again."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Policy, Scenario, UserError, simulate
from simbatch.sim.scenario import parse_overrides, resolve
from tests.made_scenarios import INLINE, fixed

SCENARIOS = Path(__file__).parents[1] / "scenarios"
RTX4090 = "rtx4090-llama-3.1-8b-bf16"
WORKLOAD = {"num_prompts": 10, "request_rate": 5, "prompt_len": fixed(100), "output_len": fixed(20)}


def scenario(**sections: Any) -> Scenario:
    return Scenario.from_dict({"profile": INLINE, "workload": WORKLOAD, **sections})


def test_the_example_in_the_docstring() -> None:
    from simbatch.sim.scenario import model

    assert doctest.testmod(model) == (0, 2)


def test_defaults_inline() -> None:
    resolved = resolve(scenario())
    engine = resolved.engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (256, 2048)
    assert (engine.max_model_len, engine.block_size, engine.num_gpu_blocks) == (8192, 16, 1000)
    assert engine.enable_prefix_caching
    assert engine.enable_chunked_prefill
    assert engine.scheduler_reserve_full_isl
    assert not engine.async_scheduling
    assert engine.scheduling_policy == "fcfs"
    assert engine.batching == "continuous"
    assert (engine.long_prefill_token_threshold, engine.max_num_active_seqs, engine.watermark) == (0, None, 0.0)
    assert resolved.policy_name == "vllm"
    assert resolved.scenario.seed == 0


def test_defaults_on_a_gpu() -> None:
    resolved = resolve(scenario(profile=RTX4090))
    engine = resolved.engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (256, 2048)
    assert (engine.num_gpu_blocks, engine.block_size) == (2828, 16)  # 0.92 of the memory; the run had 0.9
    assert engine.async_scheduling
    assert "max_num_seqs" in resolved.defaults
    assert "num_gpu_blocks" in resolved.defaults


def test_what_the_user_wrote_is_no_default() -> None:
    resolved = resolve(scenario(engine={"max_num_seqs": 256, "num_gpu_blocks_override": 600}))
    assert resolved.engine.num_gpu_blocks == 600
    assert "max_num_seqs" not in resolved.defaults
    assert "num_gpu_blocks" not in resolved.defaults
    assert "max_num_batched_tokens" in resolved.defaults


def test_one_batch_limit_left_out_gives_way_as_in_vllm() -> None:
    assert resolve(scenario(engine={"max_num_batched_tokens": 128})).engine.max_num_seqs == 128
    assert resolve(scenario(engine={"enable_chunked_prefill": False})).engine.max_num_batched_tokens == 8192


def test_memory_settings_recompute_the_blocks() -> None:
    def blocks(**engine: Any) -> int:
        return resolve(scenario(profile=RTX4090, engine={"max_model_len": 1024, **engine})).engine.num_gpu_blocks

    assert (blocks(gpu_memory_utilization=0.9), blocks()) == (2588, 2828)
    assert blocks(max_num_batched_tokens=8192) < blocks() == blocks(gpu_memory_utilization=0.92)
    assert blocks(gpu_memory_utilization=0.8) < 2588
    assert blocks(block_size=32) == 2828 // 2
    assert blocks(gpu_memory_utilization=0.8, num_gpu_blocks_override=700) == 700


def test_sections_commented_out_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}\nengine:\nslo:\nworkload:\n"
        "  {num_prompts: 1, request_rate: 1, prompt_len: {distribution: fixed, mean: 1},"
        " output_len: {distribution: fixed, mean: 1}}\n"
    )
    loaded = Scenario.load(path)
    assert loaded.engine.max_num_seqs is None
    assert loaded.slo.ttft_ms is None
    assert loaded.name == "x"
    assert loaded.folder == tmp_path


def test_override_changes_a_copy() -> None:
    first = scenario()
    second = first.override({"engine.max_num_seqs": 64, "workload.output_len.mean": 30, "policy": {"name": "fixed"}})
    assert (first.engine.max_num_seqs, first.policy.name) == (None, "vllm")
    assert (second.engine.max_num_seqs, second.policy.name) == (64, "fixed")
    assert second.workload.output_len.mean == 30  # type: ignore[union-attr]
    assert second.override({"engine": {"watermark": 0.1}}).engine.max_num_seqs is None


def test_numpy_numbers_are_numbers() -> None:
    assert scenario().override({"engine.max_num_seqs": np.int64(8), "slo.ttft_ms": np.float32(0.5)}).slo.ttft_ms == 0.5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("engine.max_num_seq=64", "--set engine.max_num_seq: unknown key (got 64); did you mean max_num_seqs?"),
        ("engine.max_num_seqs=x", "--set engine.max_num_seqs: must be a whole number (got 'x'); write a number"),
        ("engine.max_num_seqs='64'", "--set engine.max_num_seqs: must be a whole number (got '64')"),
        ("enginge.max_num_seqs=1", "--set enginge.max_num_seqs: unknown key"),
        ("seed.x=1", "--set seed.x: must be a whole number"),
        ("profile.step_time.base_s.x=1", "--set profile.step_time.base_s.x: profile.step_time.base_s is a value"),
        ("seed=.nan", "--set seed: a number must be finite (got '.nan')"),
        ("seed", "--set seed: must be a dotted key, =, and a value; write --set engine.max_num_seqs=64"),
        ("=3", "must be a dotted key"),
        ("a..b=3", "must be a dotted key"),
        ("slo={ttft_ms: 1", "--set slo: a bracket is opened and never closed"),
        ("slo={ttft_ms: fast}", "--set slo.ttft_ms: must be a number (got 'fast')"),
    ],
)
def test_wrong_overrides_name_the_flag(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        scenario().override(parse_overrides([assignment]), origin="--set")
    assert message in str(caught.value)


def test_values_of_set_are_yaml() -> None:
    assert parse_overrides(["a=1e3", "b.c=on", "d=[1, x]", "e={f: true}", "g=", "h=a: b # c", "a=2"]) == {
        "a": 2,
        "b.c": "on",
        "d": [1, "x"],
        "e": {"f": True},
        "g": None,
        "h": "a: b # c",
    }


def test_entries_of_lists_by_number() -> None:
    values = {"profile.step_time": {"form": "two_regime"}, "workload.x": [1, {"y": 2}]}
    with pytest.raises(UserError, match=r"workload\.x\.5: workload\.x is a list of 2 entries"):
        scenario().override({**values, "workload.x.5": 1})


def test_with_policy_keeps_parameters_of_the_same_name() -> None:
    fixed = scenario(policy={"name": "fixed", "batch_size": 7})
    assert fixed.with_policy("fixed").policy.params == {"batch_size": 7}
    assert fixed.with_policy("adaptive").policy.params == {}
    with pytest.raises(UserError, match=r"--policy: no such policy \(got 'adaptve'\); did you mean adaptive\?"):
        resolve(fixed.with_policy("adaptve"))


def test_with_profile_names_the_flag() -> None:
    with pytest.raises(UserError, match=r"--profile: neither a shipped profile nor a file \(got 'rtx'\)"):
        resolve(scenario().with_profile("rtx"))


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_scenarios_resolve_and_dump_to_themselves(path: Path) -> None:
    resolved = resolve(Scenario.load(path))
    again = resolve(Scenario.from_dict(resolved.dump()))
    for name in ("engine", "policy_name", "profile"):
        assert getattr(again, name) == getattr(resolved, name)
    assert again.policy.parameters() == resolved.policy.parameters()
    assert again.scenario.slo == resolved.scenario.slo
    assert again.dump() == resolved.dump()


def test_every_shipped_scenario_names_the_schema() -> None:
    for path in SCENARIOS.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path.name


def test_dump_has_absolute_paths() -> None:
    dumped = Scenario.load(SCENARIOS / "azure_conversation.yaml").dump()
    assert dumped["workload"]["trace"]["path"] == str(SCENARIOS / "AzureLLMInferenceTrace_conv.csv")


@given(seqs=st.integers(1, 4096), tokens=st.integers(1, 4096))
def test_tokens_below_seqs_never_start(seqs: int, tokens: int) -> None:
    made = scenario(engine={"max_num_seqs": seqs, "max_num_batched_tokens": tokens})
    if tokens >= seqs:
        assert resolve(made).engine.max_num_seqs == seqs
    else:
        with pytest.raises(UserError, match="--max-num-batched-tokens"):
            resolve(made)


class Patient(Policy):
    """Wait for nobody, but have few seats."""

    seats_: int = 2

    def seats(self, engine: object) -> int:
        return self.seats_


def test_simulate_takes_a_policy_object_or_name() -> None:
    result = simulate(scenario(), Patient(seats_=1))
    assert result.summary["completed"] == 10
    assert result.summary["simbatch"]["batch_size"]["max"] == 1
    assert result.facts.policy.endswith(":Patient")
    assert simulate(scenario(), "fixed").facts.policy == "fixed"


def test_same_seed_same_summary() -> None:
    bursty = Scenario.load(SCENARIOS / "bursty.yaml").override({"workload.num_prompts": 50})
    assert simulate(bursty).summary == simulate(bursty).summary
    assert simulate(bursty).summary != simulate(bursty.override({"seed": 8})).summary
