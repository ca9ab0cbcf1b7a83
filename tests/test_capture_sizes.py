"""Sizes of CUDA graphs: vLLM's own list, what is refused, and steps that are padded to them.

A `vllm serve --config` file pasted under `engine`: read as vLLM reads it, or answered flag by flag.
"""

from typing import Any

import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.model import padded
from simbatch.sim.cost.profile import InlineProfile
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.flags import table
from simbatch.sim.scenario.rules import capture_sizes
from tests import traffic

UP_TO_256 = [1, 2, 4, *range(8, 256, 8)]
# max_num_seqs, max_num_batched_tokens, other settings, the default maximum, and the list that vLLM 0.32's own
# VllmConfig._set_cudagraph_sizes made of them.
AS_VLLM = [
    (256, 8192, {}, 512, [*UP_TO_256, *range(256, 513, 16)]),
    (1024, 16384, {}, 1024, [*UP_TO_256, *range(256, 1025, 16)]),
    (64, 2048, {}, 512, [1, 2, 4, *range(8, 129, 8)]),
    (5, 2048, {}, 512, [1, 2, 4, 5, 8]),
    (1, 2048, {}, 512, [1, 2]),
    (100, 150, {}, 512, [1, 2, 4, *range(8, 97, 8), 100, *range(104, 145, 8), 150]),
    (256, 2048, {"max_cudagraph_capture_size": 500}, 512, [*UP_TO_256, *range(256, 497, 16)]),
    (256, 2048, {"max_cudagraph_capture_size": 2}, 512, [1, 2]),
    (256, 300, {"max_cudagraph_capture_size": 1024}, 512, [*UP_TO_256, 256, 272, 288, 300]),
    (256, 256, {"cudagraph_capture_sizes": [64, 1, 512, 8, 8]}, 512, [1, 8, 64]),
    (256, 2048, {"enforce_eager": True}, 512, []),
    (256, 2048, {"max_cudagraph_capture_size": 64}, 0, []),  # on a CPU
]


@pytest.mark.parametrize(("seqs", "tokens", "more", "default_max", "sizes"), AS_VLLM)
def test_the_list_is_the_one_that_vllm_made(
    seqs: int, tokens: int, more: dict[str, Any], default_max: int, sizes: list[int]
) -> None:
    given = EngineSettings.model_validate({"max_num_seqs": seqs, "max_num_batched_tokens": tokens, **more})
    assert list(capture_sizes(given, seqs, tokens, default_max)) == sizes


def test_gpt_oss_has_83_sizes_up_to_1024_unless_they_are_written() -> None:
    """As vLLM's GptOssForCausalLMConfig sets it, "from 67 to 83", whatever twice the seats are."""

    def sizes(**engine: Any) -> tuple[int, ...]:
        return resolve(scenario(**engine).override({"profile": "h100-gpt-oss-20b-mxfp4"})).capture_sizes

    assert (len(sizes(max_num_seqs=64)), sizes(max_num_seqs=64)[-1]) == (83, 1024)
    assert sizes(max_num_batched_tokens=768)[-1] == 768
    assert sizes(max_cudagraph_capture_size=128)[-1] == 128
    assert sizes(cudagraph_capture_sizes=[1, 8]) == (1, 8)
    assert sizes(enforce_eager=True) == ()


STEP = {"base_s": 0.01, "per_prefill_token_s": 1e-4, "per_decode_seq_s": 1e-3, "per_context_token_s": 1e-6}


def scenario(*, step: dict[str, Any] = STEP, host: bool = True, **engine: Any) -> Scenario:
    sections = {"host": {"launch": {"graph": {"base_s": 0.001}}}} if host else {}
    profile = {"num_gpu_blocks": 1000, "step_time": step, **sections}
    workload = traffic(3, 100, 20, arrival={"process": "all_at_once"})
    return Scenario.from_dict({"profile": profile, "engine": engine, "workload": workload})


@pytest.mark.parametrize(
    ("engine", "largest"),
    [
        ({}, 512),
        ({"max_num_seqs": 64}, 128),
        ({"max_num_batched_tokens": 200}, 200),
        ({"max_num_seqs": 20, "max_num_batched_tokens": 30}, 30),
        ({"max_cudagraph_capture_size": 100}, 96),  # truncated to the last of the list, as vLLM warns
        ({"cudagraph_capture_sizes": [2, 1, 77]}, 77),
        ({"enforce_eager": True}, 0),
        ({"enforce_eager": True, "cudagraph_capture_sizes": [], "max_cudagraph_capture_size": 0}, 0),
    ],
)
@pytest.mark.parametrize("host", [True, False])
def test_the_engine_is_told_the_largest(engine: dict[str, Any], largest: int, host: bool) -> None:
    resolved = resolve(scenario(host=host, **engine))
    assert resolved.engine.max_capture_size == largest
    again = resolve(Scenario.from_dict(resolved.dump()))
    assert (again.engine, again.capture_sizes) == (resolved.engine, resolved.capture_sizes)


def test_what_is_stored_is_one_of_largest_and_list() -> None:
    assert resolve(scenario()).dump()["engine"]["max_cudagraph_capture_size"] == 512
    assert resolve(scenario(max_num_seqs=5)).dump()["engine"]["cudagraph_capture_sizes"] == [1, 2, 4, 5, 8]
    for seqs in (5, 256):
        stored = resolve(scenario(max_num_seqs=seqs)).dump()["engine"]
        assert len({"max_cudagraph_capture_size", "cudagraph_capture_sizes"} & stored.keys()) == 1


@pytest.mark.parametrize(("count", "computed"), [(1, 1), (3, 4), (4, 4), (9, 16), (16, 16), (17, 17), (400, 400)])
def test_a_count_is_padded_to_the_next_size(count: int, computed: int) -> None:
    assert padded(count, (1, 2, 4, 8, 16)) == computed
    assert padded(count, ()) == count


def test_padded_linear_steps_by_hand() -> None:
    profile = InlineProfile.model_validate({"num_gpu_blocks": 10, "step_time": STEP | {"padded": True}})
    cost, ms = profile.cost_model([1, 2, 4, 8]), 10**9
    context = cost.decode_context_ps
    assert context == 10**6
    # three decodes are computed as four, but have the context of three
    assert cost.decode_ps(3) == 10 * ms + 4 * ms + 3 * context
    assert cost.decode_ps(9) == 10 * ms + 9 * ms + 9 * context
    # two decodes after 50 tokens each and four tokens of a prompt: six tokens, computed as eight
    assert cost.mixed_ps(2, 100, 4, 4, 16) == 10 * ms + 2 * ms + (4 + 2) * ms // 10 + (102 + 4) * context
    assert cost.mixed_ps(2, 100, 7, 7, 49) == 10 * ms + 2 * ms + 7 * ms // 10 + (102 + 7) * context


def test_padded_tables_by_hand() -> None:
    profile = load_profile("h100-llama-3.1-8b-bf16", folder=scenario().folder)
    step = profile.step_time.model_dump() | {"padded": True}
    pads = type(profile).model_validate(profile.model_dump() | {"step_time": step})
    plain, cost = profile.cost_model([8, 512]), pads.cost_model([8, 512])
    assert cost.decode_ps(3) == plain.decode_ps(8) > plain.decode_ps(3)
    assert cost.decode_ps(600) == plain.decode_ps(600)
    assert cost.decode_context_ps == plain.decode_context_ps
    # of a mixed step the table of token counts is asked at 512 instead of 300; n and P stay
    at_300, at_512 = plain.mixed_ps(0, 0, 300, 0, 0), plain.mixed_ps(0, 0, 512, 0, 0)
    beside = plain.mixed_ps(20, 9_000, 280, 280, 280**2) - at_300
    assert cost.mixed_ps(20, 9_000, 280, 280, 280**2) == at_512 + beside
    assert cost.mixed_ps(20, 9_000, 500, 500, 500**2) == plain.mixed_ps(20, 9_000, 500, 500, 500**2)


def test_a_run_is_padded_where_the_profile_says_so() -> None:
    """One step of 300 prefill tokens, computed as 304, then 19 of three decodes, computed as four."""
    plain, pads = (
        simulate(scenario(step=step, host=False)).record.requests.finish_ps for step in (STEP, STEP | {"padded": True})
    )
    assert set(pads - plain) == {4 * 10**8 + 19 * 10**9}
    eager = scenario(step=STEP | {"padded": True}, host=False, enforce_eager=True)
    assert set(simulate(eager).record.requests.finish_ps - plain) == {0}


def test_settings_that_change_nothing_are_neither_stored_nor_printed_unless_written() -> None:
    bare = simulate(scenario(host=False))
    assert "cudagraph_capture_sizes" not in bare.summary["simbatch"]["engine"]
    assert "capture" not in bare.text()
    assert not any("Without effect" in warning for warning in bare.summary["simbatch"]["warnings"])
    with_host = simulate(scenario())
    assert with_host.summary["simbatch"]["engine"]["max_cudagraph_capture_size"] == 512
    assert "max_cudagraph_capture_size" in with_host.summary["simbatch"]["engine_defaults"]
    assert "cudagraph_capture_sizes 1 2 4 8 ... 512" in " ".join(with_host.text(verbose=True).split())
    written = simulate(scenario(host=False, enforce_eager=True, max_num_queued_reqs=9))
    assert written.summary["simbatch"]["engine"]["enforce_eager"]
    warning = "Without effect: engine.enforce_eager; the profile has no `host` or `front_end` section that says what it"
    assert any(text.startswith(warning) for text in written.summary["simbatch"]["warnings"])


def test_vllm_would_not_start_with_these() -> None:
    for engine, rule in (
        ({"max_cudagraph_capture_size": 0}, "at least 1"),
        ({"cudagraph_capture_sizes": [8], "max_cudagraph_capture_size": 16}, "the largest of"),
        ({"cudagraph_capture_sizes": []}, "at least one size"),
        ({"cudagraph_capture_sizes": [4096]}, "none is left"),
    ):
        with pytest.raises(UserError, match=rule):
            resolve(scenario(**engine))


def scenario_with_keys(engine: dict[str, Any], **more: Any) -> Scenario:
    workload = traffic(20, 100, 100, request_rate=2)
    return Scenario.from_dict({"profile": "h100-llama-3.1-8b-bf16", "engine": engine, "workload": workload, **more})


def refusal(engine: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        scenario_with_keys(engine)
    return str(caught.value)


def test_hyphens_and_no_forms_are_read_as_vllms_config_file_takes_them() -> None:
    engine = scenario_with_keys({"no-enable-prefix-caching": True, "max-num-batched-tokens": 8192}).engine
    assert engine.enable_prefix_caching is False
    assert engine.max_num_batched_tokens == 8192


@pytest.mark.parametrize(
    "name", [name for name, field in EngineSettings.model_fields.items() if field.annotation is bool]
)
def test_no_switch_is_turned_round(name: str) -> None:
    for written in (f"no-{name.replace('_', '-')}", f"no_{name}"):
        assert getattr(scenario_with_keys({written: True}).engine, name) is False
        assert f"write {name}: true or false" in refusal({written: False})  # vLLM passes over it


@pytest.mark.parametrize(("text", "tokens"), [("16k", 16_000), ("16K", 16_384), ("1.5k", 1_500)])
def test_numbers_with_a_unit_are_vllms(text: str, tokens: int) -> None:
    assert scenario_with_keys({"max_model_len": text}).engine.max_model_len == tokens


def test_a_flag_of_the_command_line_wins_over_the_file_in_either_spelling() -> None:
    written = scenario_with_keys({"max_num_seqs": 64})
    assert written.override({"engine.max-num-seqs": 8}, origin="--set").engine.max_num_seqs == 8


def test_a_setting_in_two_spellings_is_one_too_many() -> None:
    assert "one setting, twice" in refusal({"max_num_seqs": 64, "max-num-seqs": 8})


def test_groups_of_a_cluster_are_read_alike() -> None:
    cluster = {"groups": [{"replicas": 2, "engine": {"no-async-scheduling": True}}]}
    read = scenario_with_keys({}, cluster=cluster).cluster
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
    others = [row.flag for row in table() if row.flag not in EngineSettings.model_fields]
    with pytest.raises(UserError) as caught:
        scenario_with_keys(dict.fromkeys(others, 1))
    answers = {str(problem.place).rpartition(".")[2]: str(problem) for problem in caught.value.problems}
    assert answers.keys() >= {*others}
    assert [answer for answer in answers.values() if "known here" in answer] == []
