"""A `vllm serve --config` file pasted under `engine`: read as vLLM reads it, or answered flag by flag."""

from __future__ import annotations

from typing import Any

import pytest

from simbatch import Scenario, UserError
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import table

LENGTH = {"distribution": "fixed", "mean": 100}
WORKLOAD = {"num_prompts": 20, "request_rate": 2, "prompt_len": LENGTH, "output_len": LENGTH}


def scenario(engine: dict[str, Any], **more: Any) -> Scenario:
    return Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "engine": engine, "workload": WORKLOAD, **more})


def refusal(engine: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        scenario(engine)
    return str(caught.value)


def test_hyphens_and_no_forms_are_read_as_vllms_config_file_takes_them() -> None:
    engine = scenario({"no-enable-prefix-caching": True, "max-num-batched-tokens": 8192}).engine
    assert engine.enable_prefix_caching is False
    assert engine.max_num_batched_tokens == 8192


@pytest.mark.parametrize(
    "name", [name for name, field in EngineSettings.model_fields.items() if field.annotation is bool]
)
def test_no_switch_is_turned_round(name: str) -> None:
    for written in (f"no-{name.replace('_', '-')}", f"no_{name}"):
        assert getattr(scenario({written: True}).engine, name) is False
        assert f"write {name}: true or false" in refusal({written: False})  # vLLM passes over it


@pytest.mark.parametrize(("text", "tokens"), [("16k", 16_000), ("16K", 16_384), ("1.5k", 1_500)])
def test_numbers_with_a_unit_are_vllms(text: str, tokens: int) -> None:
    assert scenario({"max_model_len": text}).engine.max_model_len == tokens


def test_a_flag_of_the_command_line_wins_over_the_file_in_either_spelling() -> None:
    written = scenario({"max_num_seqs": 64})
    assert written.override({"engine.max-num-seqs": 8}, origin="--set").engine.max_num_seqs == 8


def test_a_setting_in_two_spellings_is_one_too_many() -> None:
    assert "one setting, twice" in refusal({"max_num_seqs": 64, "max-num-seqs": 8})


def test_groups_of_a_cluster_are_read_alike() -> None:
    cluster = {"groups": [{"replicas": 2, "engine": {"no-async-scheduling": True}}]}
    read = scenario({}, cluster=cluster).cluster
    assert read is not None
    assert read.groups is not None
    assert read.groups[0].engine.async_scheduling is False


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("model", "it is the profile's"),
        ("tensor_parallel_size", "choose one whose name ends in -tpN"),
        ("tensor-parallel-size", "choose one whose name ends in -tpN"),
        ("quantization", "the weights are the profile's"),
        ("data_parallel_size", "write cluster.replicas"),
        ("served_model_name", "no effect on scheduling"),
        ("speculative_config", "not simulated"),
        ("max_num_sequences", "did you mean max_num_seqs?"),
    ],
)
def test_a_flag_that_is_no_key_here_is_answered(key: str, answer: str) -> None:
    assert answer in refusal({key: 2})


def test_every_flag_of_vllms_has_an_answer() -> None:
    for row in table():
        if row.flag not in EngineSettings.model_fields:
            assert "known here" not in refusal({row.flag: 1}), row.flag
