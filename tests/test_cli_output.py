"""Results are not lost: a folder a mode, what was replaced is said, and targets are checked before the work."""

import json
import os
import threading
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from simbatch import Scenario, simulate
from simbatch.cli._output import progress_of, working
from simbatch.cli.tune import _mode
from simbatch.sim.scheduler.config import NEWEST
from simbatch.sim.search import sweep as sweep_module
from tests import exit_code as run
from tests import traffic

SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
    "workload": traffic(20, 20, 20, request_rate=8),
    "slo": {"ttft_ms": 200},
    "seed": 3,
}
TWO = ("--policy", "vllm", "--policy", "fixed")
SEATS = ("--over", "engine.max_num_seqs=1,2")
ESTIMATE = ("--base", "rtx4090-llama-3.1-8b-bf16", "--quantization", "fp8", "--model-config", "t.csv")
COMMANDS = {
    "small": ("run", "small.yaml"),
    "small-compare": ("compare", "small.yaml", *TWO),
    "small-loads": ("compare", "small.yaml", *TWO, "--rate", "4,8"),
    "small-sweep": ("sweep", "small.yaml", *SEATS),
    "small-tune": ("tune", "small.yaml", *SEATS, "--confirm", "0"),
    "small-pareto": ("tune", "small.yaml", *SEATS, "--confirm", "0", "--pareto", "throughput,p99_ttft_ms"),
    "small-knee": ("tune", "small.yaml", *SEATS, "--confirm", "0", "--knee"),
    "small-capacity": ("tune", "small.yaml", "--capacity", "--replications", "2"),
    "rank": ("rank", "small.yaml", *TWO, "--replications", "2"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SCENARIO))
    return tmp_path


def origin(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "run.json").read_text())
    return content


def schedulers(said: Any) -> set[str]:
    """The versions of vLLM of one certificate, of a list, or of one for each name."""
    several = said if isinstance(said, list) else [said] if "certificate" in said else [*said.values()]
    assert {one["certificate"] for one in several} == {"identical"}
    return {one["vllm_version"] for one in several}


def test_every_mode_has_a_folder_with_its_command_and_date() -> None:
    before = datetime.now().astimezone() - timedelta(seconds=1)
    for name, command in COMMANDS.items():
        jobs = () if name == "small" else ("--jobs", "1")
        assert run(*command, *jobs, "--quiet") == 0
        found = origin(f"results/{name}")
        assert found["command"] == " ".join(["simbatch", *command, *jobs, "--quiet"])
        assert before < datetime.fromisoformat(found["date"]) <= datetime.now().astimezone()
        assert found["versions"]["simbatch"] == version("simbatch")
        assert schedulers(found["scheduler"]) == {NEWEST}
    assert {path.name for path in Path("results").iterdir()} == set(COMMANDS)


def test_every_scheduler_that_was_tried_is_named() -> None:
    versions = ("--over", "engine.vllm_version=0.12.0,0.27", "--quiet", "--jobs", "1")
    for command in (("sweep", "small.yaml"), ("tune", "small.yaml", "--confirm", "0")):
        assert run(*command, *versions) == 0
        as_it_stands = {NEWEST} if command[0] == "tune" else set()
        assert schedulers(origin(f"results/small-{command[0]}")["scheduler"]) == {"0.12.0", "0.27", *as_it_stands}


def test_what_a_mode_of_tune_is_called() -> None:
    assert _mode(None, knee=False, capacity=False) == "tune"
    assert _mode("throughput,p99_ttft_ms", knee=True, capacity=False) == "knee"


def test_what_was_replaced_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "small.yaml", "--seed", "4") == 0
    assert capsys.readouterr().err == ""
    path = Path("results/small/run.json")
    known = {**origin("results/small"), "date": datetime(2026, 11, 28, 14, 2).astimezone().isoformat()}
    path.write_text(json.dumps(known))
    assert run("run", "small.yaml") == 0
    assert capsys.readouterr().err == "replaced the results of 2026-11-28 14:02 (simbatch run small.yaml --seed 4)\n"
    assert origin("results/small")["command"] == "simbatch run small.yaml"
    assert run("run", "small.yaml", "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_results_without_a_date_go_by_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/summary.json").write_text("{}")
    moment = datetime(2025, 1, 2, 3, 4).timestamp()
    os.utime("out/summary.json", (moment, moment))
    assert run("run", "small.yaml", "-o", "out") == 0
    assert capsys.readouterr().err == "replaced the results of 2025-01-02 03:04\n"


def test_another_mode_s_results_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "small.yaml", "-o", "out", "--quiet") == 0
    summary = Path("out/summary.json").read_bytes()
    assert run("compare", "small.yaml", *TWO, "-o", "out") == 0
    said = capsys.readouterr().err
    assert said.startswith("the results of 20")
    assert said.endswith("(simbatch run small.yaml -o out --quiet) in out stay; only run.json is replaced\n")
    assert Path("out/summary.json").read_bytes() == summary


def test_python_has_no_command(tmp_path: Path) -> None:
    simulate(Scenario.load("small.yaml")).save(tmp_path / "mine")
    assert origin("mine")["command"] is None
    assert origin("mine")["steps"] > 0


def test_a_file_that_was_replaced_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n0,1,1\n")
    assert run("trace", "convert", "t.csv", "t.jsonl") == 0
    assert capsys.readouterr().err == ""
    moment = datetime(2025, 1, 2, 3, 4).timestamp()
    os.utime("t.jsonl", (moment, moment))
    assert run("trace", "convert", "t.csv", "t.jsonl") == 0
    assert capsys.readouterr().err == "replaced t.jsonl of 2025-01-02 03:04\n"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to, not even root")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_target_is_checked_before_the_work(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("simulated, and only then looked where to write")

    monkeypatch.setattr("simbatch.sim.engine.run", never)
    monkeypatch.setattr("simbatch.sim.search.run.run_cells", never)
    assert run(*command, "-o", "/proc/results") == 2
    expected = "error: -o /proc/results: /proc cannot be written to: No such file or directory; name another folder\n"
    assert capsys.readouterr().err == expected
    Path("taken").write_text("")
    assert run(*command, "-o", "taken") == 2
    assert "taken is a file, not a folder" in capsys.readouterr().err
    assert not Path("results").exists()


def test_a_folder_at_a_file_s_name_is_seen_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "run_cells", lambda *_, **__: pytest.fail("simulated first"))
    Path("out/summary.csv").mkdir(parents=True)
    assert run("sweep", "small.yaml", *SEATS, "-o", "out") == 2
    assert "out/summary.csv: is a folder, and a file of the results has its name" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["profile --roofline config.json h100", "estimate config.json --gpu h100"])
def test_an_estimate_that_was_replaced_is_said_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_hidden_layers": 2}
    model = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
        **shape,
    }
    Path("config.json").write_text(json.dumps(model))
    for times_replaced in (0, 1):
        assert run(*command.split(), "-o", "new.json") == 0
        assert capsys.readouterr().err.count("replaced new.json of ") == times_replaced


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody can write to, not even root")
@pytest.mark.parametrize(
    "command",
    [
        ("trace", "convert", "t.csv", "/proc/t.jsonl"),
        ("trace", "describe", "t.csv", "-o", "/proc/t.png"),
        ("profiles", "show", "rtx4090-llama-3.1-8b-bf16", "--plot", "/proc/p.png"),
        ("fit", "t.csv", "-o", "/proc/p.json"),
        ("profiles", "estimate", *ESTIMATE, "-o", "/proc/new/p.json"),
    ],
    ids=" ".join,
)
def test_a_file_s_folder_is_tried_too(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n0,1,1\n")
    assert run(*command) == 2
    assert "/proc cannot be written to: No such file or directory" in capsys.readouterr().err


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 5.0, 12.0, 24.0])
    monkeypatch.setattr("simbatch.cli._output.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with progress_of("tune", 100, quiet=False) as tell:
        for ended in (10, 20, 60):
            tell(ended)
    assert capsys.readouterr().err == "tune: 20 of 100, 48 s left\ntune: 60 of 100, 16 s left\n"


def test_work_that_nobody_counts_says_how_long_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds, said = iter([0.0, 3.0, 13.0]), threading.Event()
    waits = iter([False, False, True])

    class Ended:
        """Three seconds pass, then ten, then the work is over."""

        def wait(self, _: float) -> bool:
            is_over = next(waits)
            if is_over:
                said.set()
            return is_over

        def set(self) -> None:
            """Nothing waits for it."""

    fake = SimpleNamespace(Event=Ended, Thread=threading.Thread)
    monkeypatch.setattr("simbatch.cli._output.threading", fake)
    monkeypatch.setattr("simbatch.cli._output.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with working("fit of samples"):
        said.wait()
    assert capsys.readouterr().err == "fit of samples: 3 s so far\nfit of samples: 13 s so far\n"
    with working("fit of samples", quiet=True):
        assert capsys.readouterr().err == ""
