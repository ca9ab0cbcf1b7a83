"""Scenarios that ship are found by name, wherever the command runs, and can be copied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from simbatch import Scenario, UserError
from simbatch.sim.scenario.shipped import shipped_scenarios
from tests.test_cli import run

ROOT = Path(__file__).parents[1]
FEW = ("--set", "workload.num_prompts=20")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_that_ship_are_listed_with_what_they_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scenarios", "list", "--json") == 0
    listed = {entry["name"]: entry["about"] for entry in json.loads(capsys.readouterr().out)}
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))
    assert listed["steady"].startswith("Plain Poisson traffic well below capacity")
    assert run("scenarios", "list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(listed)


def test_a_name_runs_as_its_file_does(elsewhere: Path) -> None:
    assert run("run", "bursty", *FEW, "--quiet") == 0
    by_name = (elsewhere / "results" / "bursty" / "summary.json").read_bytes()
    assert run("run", str(ROOT / "scenarios" / "bursty.yaml"), *FEW, "--quiet", "-o", "by-path") == 0
    assert (elsewhere / "by-path" / "summary.json").read_bytes() == by_name


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("compare", "bursty", "--policy", "vllm", "--policy", "fixed"), "results/bursty-compare/compare.json"),
        (("explain", "bursty", "--request", "3"), None),
        (("trace", "generate", "out.csv", "--scenario", "bursty"), "out.csv"),
        (("sweep", "bursty", "--over", "engine.max_num_seqs=8", "--jobs", "1"), "results/bursty-sweep/summary.csv"),
    ],
)
def test_every_command_that_takes_a_scenario_takes_a_name(words: tuple[str, ...], written: str | None) -> None:
    assert run(*words, *FEW) == 0
    assert written is None or Path(written).is_file()


def test_a_file_of_that_name_wins_and_a_folder_does_not() -> None:
    Path("steady").mkdir()
    assert Scenario.load("steady").seed == 1
    text = yaml.safe_load((ROOT / "scenarios" / "steady.yaml").read_text())
    Path("bursty").write_text(yaml.safe_dump({**text, "seed": 99}))
    assert Scenario.load("bursty").seed == 99


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("burst", "scenario: neither a shipped scenario nor a file (got 'burst'); did you mean bursty? "),
        ("small", "scenario: neither a shipped scenario nor a file (got 'small'); did you mean small.yaml? "),
        (
            "scenarios/bursty.yaml",
            "scenarios/bursty.yaml: cannot be read: No such file; write `bursty` for the one that ships",
        ),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(reference: str, said: str) -> None:
    Path("small.yaml").write_text("")
    with pytest.raises(UserError) as refused:
        Scenario.load(reference)
    assert str(refused.value).startswith(said)


def test_a_copy_is_the_file_and_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scenarios", "copy", "priority_mix") == 0
    assert capsys.readouterr().out == "priority_mix.yaml; run it: simbatch run priority_mix.yaml\n"
    assert Path("priority_mix.yaml").read_bytes() == (ROOT / "scenarios" / "priority_mix.yaml").read_bytes()
    assert run("scenarios", "copy", "steady", "-o", "priority_mix.yaml") == 2
    assert "priority_mix.yaml: is there already; name another file with -o" in capsys.readouterr().err
    assert run("scenarios", "copy", "stedy") == 2
    assert "no scenario of this name ships (got 'stedy'); did you mean steady?" in capsys.readouterr().err


def test_a_scenario_whose_trace_does_not_ship_says_where_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "azure_conversation") == 2
    said = capsys.readouterr().err
    assert "azure_conversation:15:11 workload.trace.path: there is no such file" in said
    assert "get it from github.com/Azure/AzurePublicDataset (folder data) and say where it is" in said
    assert "--set workload.trace.path=FILE" in said


def test_relative_paths_in_a_shipped_one_start_here(elsewhere: Path) -> None:
    """A file of the user's is not looked for where the package is installed."""
    rows = "".join(f"2023-11-16 18:17:0{i}.0000000,{100 + i},{10 + i}\n" for i in range(5))
    Path("mine.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    assert run("run", "azure_conversation", "--set", "workload.trace.path=mine.csv", "--json", "-o", "out") == 0
    assert json.loads((elsewhere / "out" / "summary.json").read_text())["completed"] == 5


def test_help_names_no_file_of_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    """What `--help` and the names in it say must hold for a wheel, which has no folder scenarios/ beside it."""
    for path in (ROOT / "simbatch" / "cli").glob("*.py"):
        assert "scenarios/" not in path.read_text(), path
    assert run("--help") == 0
    assert "Start with: simbatch run bursty" in capsys.readouterr().out
    assert "bursty" in shipped_scenarios()
