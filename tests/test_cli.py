"""The command line: help, mistakes, exit codes, lists."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from simbatch.cli import BROKEN_PIPE, cli, exit_code_of
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


def simbatch(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; what it says is caught unless it is said where to."""
    caught = {} if {"stdout", "stderr"} & options.keys() else {"capture_output": True}
    return subprocess.run([sys.executable, "-m", "simbatch", *arguments], text=True, check=False, **caught, **options)


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
def test_own_policy_from_a_file() -> None:
    assert run("run", "small.yaml", "--policy", "own.py:OneByOne", "--quiet") == 0
    assert json.loads(Path("results/small/summary.json").read_text())["simbatch"]["batch_size"]["max"] == 1


@pytest.mark.usefixtures("folder")
def test_compare_profiles() -> None:
    inline = {"num_gpu_blocks": 900, "step_time": {"base_s": 0.02}}
    Path("slow.json").write_text(json.dumps(inline))
    Path("fast.json").write_text(json.dumps({**inline, "step_time": {"base_s": 0.001}}))
    assert run("compare", "small.yaml", "--profile", "slow.json", "--profile", "fast.json", "--quiet") == 0
    rows = {row["key"]: row for row in json.loads(Path("results/small-compare/compare.json").read_text())["metrics"]}
    assert rows["mean_tpot_ms"]["best"] == ["fast.json"]


BROKEN = "seats() failed: NameError: name 'forgotten' is not defined; mend the line: return forgotten"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rnu", "No such command 'rnu'. Did you mean 'run'?"),
        ("run", "Missing argument 'FILE'"),
        ("run small.yaml --polcy x", "No such option"),
        ("run small.yaml --seed x", "'x' is not a valid integer"),
        ("run small.yaml --seed -1", "error: --seed: must be at least 0 (got -1); raise it"),
        ("run smal.yaml", "error: smal.yaml: cannot be read: No such file or directory; did you mean small.yaml?"),
        ("run small.yaml --policy fxed", "--policy: no such policy (got 'fxed'); did you mean fixed?"),
        ("run small.yaml --policy own.py:None", "error: --policy: own.py has no subclass"),
        ("run small.yaml --policy own.py:Odd", "error: own.py:15: the policy cannot be made: NameError"),
        ("run small.yaml --policy own.py:Broken", f"error: own.py:13 policy Broken at 0.805641 s: {BROKEN}"),
        ("run small.yaml -o small.yaml/deep", "small.yaml is a file, not a folder; name another folder"),
        ("compare small.yaml", "compare: needs at least two policies, profiles, routers or versions of vLLM"),
        ("compare small.yaml --policy fixed", "for example: --policy fixed --policy adaptive"),
        ("compare small.yaml --policy fixed --policy fixed", "error: --policy: is named twice"),
        ("compare small.yaml --profile a.json --profile b", "error: "),
    ],
)
def test_mistakes_end_with_2_and_write_nothing(
    words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words.split()) == 2
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


@pytest.fixture
def nobody() -> Iterator[int]:
    """Where to write so that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", ["run small.yaml", "profiles list", "scenarios list", "--help"])
def test_reader_that_leaves_early_is_no_error(words: str, folder: Path, nobody: int) -> None:
    done = simbatch(*words.split(), cwd=folder, stdout=nobody, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")
    assert (folder / "results" / "small" / "summary.json").exists() == words.startswith("run")


def test_nobody_reads_what_is_wrong(folder: Path, nobody: int) -> None:
    """As `simbatch run small.yam 2>&1 | head`: the exit code still says it."""
    assert simbatch("run", "x.yaml", cwd=folder, stderr=nobody).returncode == 2


def test_a_checkout_that_hides_the_installed_package_says_so() -> None:
    """As `python mine.py` in the checkout after `pip install .`; -S: without what the editable installation adds."""
    command = [sys.executable, "-S", "-c", "import simbatch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {ROOT / 'simbatch'} is a checkout's folder and hides the simbatch that is installed: "
        "run Python from another folder, or install with pip install --editable ."
    )


def test_help_imports_nothing_heavy() -> None:
    heavy = ("numpy", "pydantic", "matplotlib", "pyarrow", "scipy", "simpy", "rich", "yaml", "pandas")
    code = (
        "import sys\nfrom simbatch.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in ("run", "compare", "trace", "profiles", "policies", "schema"))


def test_every_command_has_its_help_line_and_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert run(name, "--help") == 0
        assert f"Usage: simbatch {name}" in capsys.readouterr().out


def test_without_a_command_help_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "Commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "results/x"), 2, "error: results/x: No space left on device"),
        (MemoryError(), 2, "error: not enough memory"),
    ],
    ids=["interrupt", "disk", "memory"],
)
def test_other_ends(raised: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise raised

    assert exit_code_of(command) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    def command() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code_of(command)


def test_policies_are_listed_with_their_source_and_told_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("policies") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    first = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert first == sorted(first)
    assert {"fixed", "vllm"} <= {*first}
    assert "(FastServe)" in " ".join(lines)
    assert run("policies", "show", "nobody") == 2
    assert run("routers", "show", "random") == run("policies", "show", "fixed") == 0
    out = capsys.readouterr().out
    assert "fixed  (continuous and static batching)" in out
    assert "batch_size: whole number from 1, default 32" in out
    assert run("policies", "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    for name, policy in listed.items():
        assert "Source:" in policy["description"], name
        assert all(parameter["description"] for parameter in policy["parameters"].values()), name
    assert {"adaptive", "fixed", "priority", "vllm"} <= listed.keys()
    assert listed["adaptive"]["parameters"]["max_batch_size"]["default"] == 64


def test_profiles_are_listed_by_gpu_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profiles", "list", "--gpu", "NVIDIA H100 80GB HBM3", "--model", "Llama-3.1-70b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {facts["gpu"] for facts in found} == {"h100"}
    assert {facts["model"].rsplit("/", 1)[-1] for facts in found} == {"Llama-3.1-70B"}
