"""The command line: help, mistakes, exit codes, lists."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from simbatch.cli import BROKEN_PIPE
from simbatch.sim import is_compiled
from tests import exit_code as run

ROOT = Path(__file__).parents[1]
TEXT = """\
profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01, per_decode_seq_s: 0.0001}}
policy: {name: fixed, batch_size: 4}
workload:
  num_prompts: 20
  request_rate: 3
  prompt_len: {distribution: fixed, mean: 10}
  output_len: {distribution: lognormal, mean: 10, cv: 1}
  priorities: {high: 0.2, normal: 0.8}
slo: {ttft_ms: 100}
"""
OWN_POLICY = '''\
from simbatch import Policy

class OneByOne(Policy):
    """One request at a time."""

    def seats(self, engine):
        return 1

class Broken(Policy):
    """Forgets something."""

    def seats(self, engine):
        return forgotten

class Odd(Policy):
    """Has an annotation that means nothing."""

    size: "Nothing" = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(TEXT)
    Path("own.py").write_text(OWN_POLICY)
    return tmp_path


def simbatch(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simbatch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_version() -> None:
    done = simbatch("--version")
    build = "compiled" if is_compiled() else "interpreted"
    assert (done.returncode, done.stdout) == (0, f"simbatch {version('simbatch')} ({build})\n")


def test_public_names_are_there_and_lazy() -> None:
    import simbatch as package

    assert {"Policy", "Scenario", "simulate", "UserError", "__version__"} <= set(dir(package))
    assert package.__version__ == version("simbatch")
    with pytest.raises(AttributeError, match="Scenari"):
        package.Scenari  # noqa: B018
    code = "import simbatch, sys; print([n for n in ('pydantic', 'numpy', 'yaml') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.usefixtures("folder")
def test_run_writes_its_files_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "small.yaml", "--steps") == 0
    printed = capsys.readouterr()
    assert "Mean TTFT (ms)" in printed.out
    assert "files in results/small" in printed.out
    assert printed.err == ""  # no terminal: no progress
    written = {path.name for path in Path("results/small").iterdir()}
    assert {"summary.json", "requests.parquet", "steps.parquet", "scenario.yaml", "run.json"} <= written
    assert pq.read_table("results/small/requests.parquet").num_rows == 20


def test_the_resolved_scenario_gives_the_same_run_again(folder: Path) -> None:
    assert run("run", "small.yaml", "--quiet") == 0
    stored = yaml.safe_load(Path("results/small/scenario.yaml").read_text())
    assert stored["engine"]["max_num_batched_tokens"] == 2048
    assert stored["policy"] == {"name": "fixed", "batch_size": 4}
    first = json.loads(Path("results/small/summary.json").read_text())
    assert run("run", "results/small/scenario.yaml", "-o", "again", "--quiet") == 0
    second = json.loads(Path("again/summary.json").read_text())
    assert {k: v for k, v in second.items() if k != "simbatch"} == {k: v for k, v in first.items() if k != "simbatch"}
    assert folder.joinpath("again", "scenario.yaml").read_text() == Path("results/small/scenario.yaml").read_text()


def test_json_is_the_file_itself_and_the_same_each_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "small.yaml", "--json", "-o", "a") == 0
    first = capsys.readouterr().out
    assert first == (folder / "a" / "summary.json").read_text()
    assert json.loads(first)["completed"] == 20
    assert run("run", "small.yaml", "--json", "-o", "b") == 0
    assert capsys.readouterr().out == first


@pytest.mark.usefixtures("folder")
def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "small.yaml", "--quiet") == 0
    assert run("compare", "small.yaml", "--policy", "fixed", "--policy", "priority", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("folder")
def test_flags_change_the_scenario() -> None:
    sets = ["--set", "policy.max_batch_size=3", "--set", "workload.num_prompts=5"]
    assert run("run", "small.yaml", "--quiet", "--policy", "adaptive", *sets, "--seed", "9") == 0
    summary = json.loads(Path("results/small/summary.json").read_text())
    assert summary["completed"] == 5
    stored = yaml.safe_load(Path("results/small/scenario.yaml").read_text())
    assert (stored["policy"]["name"], stored["policy"]["max_batch_size"], stored["seed"]) == ("adaptive", 3, 9)


@pytest.mark.usefixtures("folder")
def test_policy_of_the_same_name_keeps_its_parameters() -> None:
    assert run("run", "small.yaml", "--quiet", "--policy", "fixed") == 0
    assert yaml.safe_load(Path("results/small/scenario.yaml").read_text())["policy"]["batch_size"] == 4


@pytest.mark.usefixtures("folder")
def test_own_policy_from_a_file() -> None:
    assert run("run", "small.yaml", "--policy", "own.py:OneByOne", "--quiet") == 0
    assert json.loads(Path("results/small/summary.json").read_text())["simbatch"]["batch_size"]["max"] == 1
    assert run("run", "results/small/scenario.yaml", "--quiet", "-o", "again") == 0  # its path is stored whole


@pytest.mark.usefixtures("folder")
def test_compare_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "small.yaml", "--policy", "fixed", "--policy", "own.py:OneByOne") == 0
    out = capsys.readouterr().out
    assert re.search(r"fixed +own\.py:OneByOne", out)
    assert {path.name for path in Path("results/small-compare").iterdir()} >= {"compare.json", "compare.png"}
    assert run("compare", "small.yaml", "--policy", "fixed", "--policy", "vllm", "--json", "-o", "there") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["same_arrivals"] is True
    assert list(content["candidates"]) == ["fixed", "vllm"]


@pytest.mark.usefixtures("folder")
def test_compare_profiles() -> None:
    inline = {"num_gpu_blocks": 900, "step_time": {"base_s": 0.02}}
    Path("slow.json").write_text(json.dumps(inline))
    Path("fast.json").write_text(json.dumps({**inline, "step_time": {"base_s": 0.001}}))
    assert run("compare", "small.yaml", "--profile", "slow.json", "--profile", "fast.json", "--quiet") == 0
    rows = {row["key"]: row for row in json.loads(Path("results/small-compare/compare.json").read_text())["metrics"]}
    assert rows["mean_tpot_ms"]["best"] == ["fast.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run"], "Missing argument 'FILE'"),
        (["run", "small.yaml", "--polcy", "x"], "No such option"),
        (["run", "small.yaml", "--seed", "x"], "'x' is not a valid integer"),
        (["run", "small.yaml", "--seed", "-1"], "error: --seed: must be at least 0 (got -1); raise it"),
        (["run", "smal.yaml"], "error: smal.yaml: cannot be read: No such file or directory; did you mean small.yaml?"),
        (
            ["run", "small.yaml", "--policy", "fxed"],
            "--policy: no such policy (got 'fxed'); did you mean fixed?",
        ),
        (["run", "small.yaml", "--policy", "own.py:None"], "error: --policy: own.py has no subclass"),
        (["run", "small.yaml", "--policy", "own.py:Odd"], "error: own.py:15: the policy cannot be made: NameError"),
        (
            ["run", "small.yaml", "--policy", "own.py:Broken"],
            "error: own.py:13 policy Broken at 0.805641 s: seats() failed: NameError: name 'forgotten' is not defined; "
            "mend the line: return forgotten",
        ),
        (["run", "small.yaml", "--set", "engine.max_num_seq=4"], "did you mean max_num_seqs?"),
        (["run", "small.yaml", "--set", "seed"], "error: --set seed: must be a dotted key, =, and a value"),
        (["run", "small.yaml", "-o", "small.yaml"], "error: -o small.yaml: small.yaml is a file, not a folder"),
        (["run", "small.yaml", "-o", "small.yaml/deep"], "small.yaml is a file, not a folder; name another folder"),
        (
            ["run", "small.yaml", "-o", "/proc/nothing"],
            "error: -o /proc/nothing: /proc cannot be written to: No such file or directory",
        ),
        (
            ["compare", "small.yaml"],
            "compare: needs at least two policies, profiles, routers or versions of vLLM",
        ),
        (["compare", "small.yaml", "--policy", "fixt"], "--policy: no such policy (got 'fixt'); did you mean fixed?"),
        (["compare", "small.yaml", "--policy", "fixed"], "for example: --policy fixed --policy adaptive"),
        (["compare", "small.yaml", "--policy", "fixed", "--policy", "fixed"], "error: --policy: is named twice"),
        (["compare", "small.yaml", "--profile", "a.json", "--profile", "b"], "error: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_with_2_and_write_nothing(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert {path.name for path in folder.iterdir()} <= {"small.yaml", "own.py", "__pycache__"}


def test_a_wrong_file_through_the_installed_command(folder: Path) -> None:
    (folder / "wrong.yaml").write_text(TEXT + "sede: 3\n")
    done = simbatch("run", "wrong.yaml", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: wrong.yaml:10:1 sede: unknown key (got 3); did you mean seed?\n"


@pytest.mark.parametrize("words", ["run small.yaml", "profiles list", "scenarios list", "--help"])
def test_reader_that_leaves_early_is_no_error(words: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "simbatch", *words.split()]
    done = subprocess.run(command, cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")
    assert (folder / "results" / "small" / "summary.json").exists() == words.startswith("run")


def test_a_checkout_that_hides_the_installed_package_says_so() -> None:
    """As `python mine.py` in the checkout after `pip install .`; -S: without what the editable installation adds."""
    command = [sys.executable, "-S", "-c", "import simbatch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {ROOT / 'simbatch'} is a checkout's folder and hides the simbatch that is installed: "
        "run Python from another folder, or install with pip install --editable ."
    )


def test_nobody_reads_what_is_wrong(folder: Path) -> None:
    """As `simbatch run small.yam 2>&1 | head`: the exit code still says it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "simbatch", "run", "x.yaml"], cwd=folder, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 2


def test_schema_in_the_repository_is_the_one_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """But for policies that are newer than it: a policy is one file and its test; `make docs` is for releases."""
    assert run("schema") == 0
    printed, kept = json.loads(capsys.readouterr().out), json.loads((ROOT / "scenarios" / "schema.json").read_text())
    known, there = (content["properties"]["policy"].pop("anyOf") for content in (kept, printed))
    assert kept == printed, "make docs"
    assert [policy for policy in known if policy not in there] == [], "make docs"


def test_the_page_of_policies_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies", "--markdown") == 0
    printed = capsys.readouterr().out.split("\n## ")
    kept = (ROOT / "docs" / "policies.md").read_text().split("\n## ")
    assert [section for section in kept if section.strip() not in map(str.strip, printed)] == [], "make docs"
    assert len(kept) > 14


def test_schema_knows_every_key_of_the_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    from simbatch.sim.scenario.problems import Hints

    assert run("schema") == 0
    hints = Hints(json.loads(capsys.readouterr().out))
    checked = 0

    def check(path: tuple[str | int, ...], value: object, data: object) -> None:
        nonlocal checked
        if isinstance(value, dict):
            known = hints.known_keys(path, data)
            if path[-1:] in (("priorities",), ("sweep",)):
                return
            for key, child in value.items():
                assert key in known, (path, key)
                checked += 1
                check((*path, key), child, data)

    for file in (ROOT / "scenarios").glob("*.yaml"):
        data = yaml.safe_load(file.read_text())
        check((), data, data)
    assert checked > 50
