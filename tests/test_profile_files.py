"""Wrong profiles, each answered with place, rule, value and mend; and what every result says of its profile."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from simbatch import Scenario, simulate
from simbatch.profiler.fit import fit_samples
from simbatch.sim.cost import load_profile
from simbatch.sim.cost.by_name import shipped_names, shipped_text
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.provenance import span
from simbatch.sim.cost.uncertainty import HOST_IS_ASSUMED, NO_HOST_TIMES, error_line, lacks_host_times
from simbatch.sim.errors import UserError
from simbatch.sim.tuning.recommend_report import error_note
from tests.made_samples import made_samples
from tests.made_scenarios import fixed
from tests.test_cli import run

SHIPPED = json.loads(shipped_text("rtx4090-llama-3.1-8b-bf16"))
REMOVE = object()
NINE = {"num_gpu_blocks": 9}


def changed(path: str, value: object) -> dict:
    """The shipped profile with one key changed, added or removed."""
    content = copy.deepcopy(SHIPPED)
    *parents, last = path.split(".")
    part = content
    for key in parents:
        part = part[key]
    if value is REMOVE:
        del part[last]
    else:
        part[last] = value
    return content


WRONG_FILES = [
    ("gpu", REMOVE, "gpu: required key is missing; add it"),
    ("gpux", "rtx4090", "gpux: unknown key (got 'rtx4090'); did you mean gpu?"),
    ("gpu", 4090, "gpu: must be text (got 4090); put it in quotes"),
    ("tensor_parallel_size", 1.5, "tensor_parallel_size: must be a whole number (got 1.5)"),
    ("tensor_parallel_size", 0, "tensor_parallel_size: must be at least 1 (got 0)"),
    ("tensor_parallel_size", True, "tensor_parallel_size: must be a whole number (got true)"),
    ("kv_cache_dtype", "int3", "kv_cache_dtype: must be one of 'float16', 'bfloat16'"),
    ("memory", 24, "memory: must be an object with keys (got 24)"),
    ("memory.num_gpu_blocks", 3000, "memory: the parts leave 2588 blocks, not 3000"),
    ("memory.weights_bytes", "16e9", "memory.weights_bytes: must be a whole number (got '16e9')"),
    ("memory.gpu_memory_utilization", 1.2, "memory.gpu_memory_utilization: must be at most 1 (got 1.2)"),
    ("memory.num_gpu_blocks_from", "guess", "memory.num_gpu_blocks_from: must be one of 'vllm' or 'estimate'"),
    ("step_time.form", "cubic", "step_time: form must be linear or two_regime"),
    ("step_time.mixed.tokens", {"count": [1, 2], "time_s": [0.1]}, "mixed.tokens: count and time_s must be of"),
    ("step_time.mixed.tokens", {"count": [2, 1], "time_s": [1, 2]}, "step_time.mixed.tokens: count must rise"),
    ("step_time.mixed.tokens", {"count": [1, 2], "time_s": [2, 1]}, "step_time.mixed.tokens: time_s must not fall"),
    ("step_time.mixed.tokens", {"count": [], "time_s": []}, "step_time.mixed.tokens.count: "),
    ("step_time.decode.seqs", {"count": [1], "time_s": ["1"]}, "step_time.decode.seqs.time_s[0]: must be a number"),
    ("step_time.decode.per_context_token_s", -1e-9, "step_time.decode.per_context_token_s: must be at least 0"),
    ("step_time.decode.per_contxt_token_s", 1e-9, "did you mean per_context_token_s?"),
    ("request_overhead_s", -1, "request_overhead_s: must be at least 0 (got -1)"),
    ("range.decode.num_decodes", [256, 1], "range.decode.num_decodes: the lowest stands first (got [256, 1])"),
    ("range.decode.num_decodes", [1], "range.decode.num_decodes[1]: required key is missing"),
    ("error.decode.mape", -0.1, "error.decode.mape: must be at least 0 (got -0.1)"),
    ("notes", "none", "notes: must be a list (got 'none')"),
]


@pytest.mark.parametrize(("path", "value", "expected"), WRONG_FILES)
def test_a_wrong_key_is_named_with_its_file(tmp_path, path, value, expected):
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(UserError) as caught:
        load_profile("wrong.json", folder=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{file} ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "x",\n  "gpu" "y"}', ":2:9: not valid JSON: "),
        ('{"name": "x", "name": "y"}', ": the key 'name' stands twice"),
        ('{"request_overhead_s": NaN}', ": NaN is not a JSON number"),
        ('{"request_overhead_s": Infinity}', ": Infinity is not a JSON number"),
        (
            '{"num_gpu_blocks": 9, "step_time": {"base_s": 1e999}}',
            " step_time.base_s: must be a finite number (got inf)",
        ),
        ("[1]", ": a profile must be an object with keys (got [1])"),
        ("", ":1:1: not valid JSON: "),
        ("[" * 100_000, ": "),
    ],
)
def test_wrong_json_is_named_with_its_line(tmp_path, text, expected):
    file = tmp_path / "wrong.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_profile("wrong.json", folder=tmp_path)
    assert f"{file}{expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("inline", "expected"),
    [
        ({"num_gpu_blocks": 10}, "profile.step_time: required key is missing"),
        ({"step_time": {"base_s": 1}}, "profile.num_gpu_blocks: required key is missing"),
        ({"num_gpu_block": 9, "step_time": {"base_s": 1}}, "unknown key (got 9); did you mean num_gpu_blocks?"),
        ({"num_gpu_blocks": 1, "step_time": {"base_s": 1}}, "profile.num_gpu_blocks: must be above 1 (got 1)"),
        (NINE | {"step_time": {"base_s": True}}, "step_time.base_s: must be a number (got true)"),
        (NINE | {"step_time": {"base_s": "1"}}, "step_time.base_s: must be a number (got '1')"),
        (NINE | {"step_time": {"base_s": -1}}, "step_time.base_s: must be at least 0 (got -1)"),
        (NINE | {"step_time": {"base_s": float("nan")}}, "step_time.base_s: must be a finite number"),
        (NINE | {"step_time": {"base_s": 0}}, "step_time: a step time must be positive"),
        (NINE | {"step_time": {"base_s": 1e-13}}, "a decode of one token takes 0 ps"),
        (
            NINE | {"step_time": {"base_s": 0, "per_decode_seq_s": 0.1}},
            "a prefill of one token takes 0 ps: give it a base",
        ),
        (NINE | {"step_time": {"base_s": 4000}}, "step_time.base_s: must be at most 3600 (got 4000)"),
        (NINE | {"step_time": 0.1}, "profile.step_time: must be an object with keys (got 0.1)"),
        (NINE | {"step_time": {"form": None}}, "profile.step_time: form must be linear or two_regime"),
    ],
)
def test_wrong_inline_profiles(inline, expected):
    with pytest.raises(UserError) as caught:
        load_profile(inline, folder=Path())
    assert expected in str(caught.value)


def test_an_unknown_name_is_answered_with_near_ones_and_what_ships():
    with pytest.raises(UserError) as caught:
        load_profile("rtx4090-llama-3.1-8b", folder=Path())
    message = str(caught.value)
    assert "neither a shipped profile nor a file (got 'rtx4090-llama-3.1-8b')" in message
    assert "did you mean" in message
    assert "rtx4090-llama-3.1-8b-bf16" in message
    assert "`simbatch profiles list` shows what ships" in message


def test_a_missing_file_a_folder_and_binary_are_named(tmp_path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "pickle.json").write_bytes(b"\x80\x04\x95")
    for name, rule in (
        ("missing.json", "no such file"),
        ("folder.json", "cannot be read"),
        ("pickle.json", "not UTF-8 text at byte 0"),
    ):
        with pytest.raises(UserError, match=rule) as caught:
            load_profile(name, folder=tmp_path)
        assert str(tmp_path / name) in str(caught.value)


def test_several_mistakes_are_told_together():
    with pytest.raises(UserError) as caught:
        load_profile({"num_gpu_blocks": "9", "step_time": {"base_s": 1, "bass": 2}}, folder=Path())
    assert len(caught.value.problems) == 2


WORKLOAD = {"num_prompts": 30, "request_rate": 2, "prompt_len": fixed(200), "output_len": fixed(50)}
TABLES = "h200-llama-3.1-8b-bf16"  # kernel tables alone
COMPARED = "h100-llama-3.1-8b-bf16"
REAL = [COMPARED, "h100-llama-3.1-8b-bf16-measured", "rtx4090-llama-3.1-8b-bf16"]


def shipped(name: str) -> MeasuredProfile:
    profile = load_profile(name, folder=Path())
    assert isinstance(profile, MeasuredProfile)
    return profile


def measured_steps() -> MeasuredProfile:
    """What `simbatch profile` makes on a GPU."""
    return fit_samples(made_samples()).profile.model_copy(update={"gpu": "h100"})


def test_the_kernel_tables_say_that_no_real_run_stands_behind_them() -> None:
    tables = [name for name in shipped_names() if shipped(name).source.startswith("aiconfigurator")]
    assert len(tables) == 54
    for name in set(tables) - {COMPARED}:
        line = error_line(shipped(name))
        assert line.endswith("(fit to composed tables); no real run stands behind it"), name


def test_real_runs_are_told_where_there_are_any() -> None:
    assert [name for name in shipped_names() if shipped(name).compared] == REAL
    assert error_line(shipped(COMPARED)) == (
        "decode 1.3 %, prefill 0.7 %, mixed 1.2 % (fit to composed tables); real runs: mean TTFT -29 to -6 %, "
        "mean TPOT -10 to -1.3 % (vllm serve 0.32 at 8, 16 and 22 req/s; docs/accuracy.md)"
    )


def test_measured_steps_are_held_out_and_hold_the_host_s_part() -> None:
    steps = measured_steps()
    assert steps.fit_error.against == "steps"
    assert not lacks_host_times(steps)


@pytest.mark.parametrize(
    ("errors", "said"),
    [((0.017, 0.017), "+1.7 %"), ((-0.504, -0.372), "-50 to -37 %"), ((-0.02, 0.3), "-2.0 to +30 %")],
)
def test_a_span_of_errors(errors: tuple[float, float], said: str) -> None:
    assert span(errors) == said


@pytest.mark.parametrize("name", ["rtx4090-llama-3.1-8b-bf16", TABLES, "rtx4090-llama-3.1-8b-awq"])
def test_a_gpu_profile_without_host_times_says_so_in_every_result(name: str) -> None:
    kept = json.loads(shipped_text(name))
    del kept["host"], kept["front_end"]
    result = simulate(Scenario.from_dict({"profile": kept, "workload": WORKLOAD}))
    assert result.summary["simbatch"]["warnings"][-1] == NO_HOST_TIMES
    assert "under load TTFT is likely 20" in result.text()


@pytest.mark.parametrize("name", ["rtx4090-llama-3.1-8b-bf16", TABLES, "rtx4090-llama-3.1-8b-awq"])
def test_an_assumed_host_is_said_in_every_result_and_another_machine_s_is_not(name: str) -> None:
    result = simulate(Scenario.from_dict({"profile": name, "workload": WORKLOAD}))
    assert result.summary["simbatch"]["warnings"][-1] == HOST_IS_ASSUMED
    other = {"profile": name, "workload": WORKLOAD, "host": {"from": "h100-llama-3.1-8b-bf16-measured"}}
    summary = simulate(Scenario.from_dict(other)).summary["simbatch"]
    assert HOST_IS_ASSUMED not in summary["warnings"]
    assert summary["profile"]["host"] == "h100-llama-3.1-8b-bf16-measured"


def test_a_computed_all_reduce_is_said_in_every_result() -> None:
    result = simulate(Scenario.from_dict({"profile": "rtxpro6000-llama-3.1-8b-bf16-tp2", "workload": WORKLOAD}))
    assert "All-reduce between the GPUs is computed for a link of 40 us and 16 GB/s" in result.text()


def test_step_times_as_written_say_nothing_of_hosts() -> None:
    inline = {"num_gpu_blocks": 100, "step_time": {"base_s": 0.01}, "max_model_len": 1000}
    assert simulate(Scenario.from_dict({"profile": inline, "workload": WORKLOAD})).summary["simbatch"]["warnings"] == []


def test_a_comparison_says_what_holds_for_all_of_them_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--set", "workload.num_prompts=30")
    assert run("compare", "steady", "--policy", "vllm", "--policy", "fixed", *few) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("WARNING") == said.count(f"WARNING: {HOST_IS_ASSUMED}") == 1


def test_a_recommendation_says_what_its_error_is_of() -> None:
    assert error_note(shipped(TABLES)) == (
        "The profile's fit is off by 1.18 % (decode) and 1.74 % (mixed) on average from steps composed of tables; "
        "no real run stands behind it."
    )
    assert "; real runs: mean TTFT +1.8 %" in error_note(shipped("rtx4090-llama-3.1-8b-bf16"))
    assert error_note(measured_steps()).startswith("The profile's step times are off by ")


def test_the_list_has_a_column_of_real_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profiles", "list") == 0
    head, *lines, _ = capsys.readouterr().out.splitlines()
    assert head.endswith("TTFT error  source")
    cells = {line.split()[0]: re.split(" {2,}", line)[-2] for line in lines}
    assert cells[COMPARED] == "-29 to -6 %"
    assert cells["rtx4090-llama-3.1-8b-bf16"] == "+1.8 %"
    assert [name for name, cell in cells.items() if cell == "no real run"] == [
        name for name in shipped_names() if name not in REAL
    ]
    assert run("profiles", "list", "--json") == 0
    facts = {entry["name"]: entry.get("real runs") for entry in json.loads(capsys.readouterr().out)}
    assert facts[TABLES] == "none"
