"""What every result says of its profile: what its error is one of, whether real runs stand behind it, what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simbatch import Scenario, simulate
from simbatch.profiler.fit.from_samples import fit_samples
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.error import span
from simbatch.sim.cost.load import shipped_names, shipped_text
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.trust import ASSUMED_HOST, NO_HOST_TIMES, error_line, lacks_host_times
from simbatch.sim.search.recommend_report import error_note
from tests.made_samples import made_samples
from tests.test_cli import run

WORKLOAD = {
    "num_prompts": 30,
    "request_rate": 2,
    "prompt_len": {"distribution": "fixed", "mean": 200},
    "output_len": {"distribution": "fixed", "mean": 50},
}
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
    assert len(tables) == 24
    for name in set(tables) - {COMPARED}:
        line = error_line(shipped(name))
        assert line is not None
        assert line.endswith("(fit to composed tables); no real run stands behind it"), name


def test_real_runs_are_told_where_there_are_any() -> None:
    assert [name for name in shipped_names() if shipped(name).compared] == REAL
    assert error_line(shipped(COMPARED)) == (
        "decode 1.3 %, prefill 0.7 %, mixed 1.2 % (fit to composed tables); real runs: mean TTFT -29 to -6 %, "
        "mean TPOT -10 to -1.3 % (vllm serve 0.32 at 8, 16 and 22 req/s; docs/accuracy.md)"
    )


def test_measured_steps_are_held_out_and_hold_the_host_s_part() -> None:
    steps = measured_steps()
    assert steps.fit_error is not None
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
    assert result.summary["simbatch"]["warnings"][-1] == ASSUMED_HOST
    other = {"profile": name, "workload": WORKLOAD, "host": {"from": "h100-llama-3.1-8b-bf16-measured"}}
    summary = simulate(Scenario.from_dict(other)).summary["simbatch"]
    assert ASSUMED_HOST not in summary["warnings"]
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
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert warnings == [f"WARNING: {ASSUMED_HOST}"]


def test_a_recommendation_says_what_its_error_is_of() -> None:
    assert error_note(shipped(TABLES)) == (
        "The profile's fit is off by 1.34 % (decode) and 1.52 % (mixed) on average from steps composed of tables; "
        "no real run stands behind it."
    )
    assert "; real runs: mean TTFT +1.7 %" in error_note(shipped("rtx4090-llama-3.1-8b-bf16"))
    assert error_note(measured_steps()).startswith("The profile's step times are off by ")


def test_the_list_has_a_column_of_real_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profiles", "list") == 0
    head, *lines = capsys.readouterr().out.splitlines()
    start = head.index("TTFT error")
    cells = {line.split()[0]: line[start : start + 12].strip() for line in lines}
    assert cells[COMPARED] == "-29 to -6 %"
    assert cells["rtx4090-llama-3.1-8b-bf16"] == "+1.7 %"
    assert [name for name, cell in cells.items() if cell == "no real run"] == [
        name for name in shipped_names() if name not in REAL
    ]
    assert run("profiles", "list", "--json") == 0
    facts = {entry["name"]: entry.get("real runs") for entry in json.loads(capsys.readouterr().out)}
    assert facts[TABLES] == "none"
