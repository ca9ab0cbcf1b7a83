"""`simbatch tune` as a command: its answer, its files, what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from simbatch.cli import main
from simbatch.sim.tuning.space import SEQS

FILE = """
profile: {num_gpu_blocks: 2000, step_time: {base_s: 0.01, per_decode_seq_s: 0.001}}
workload: {num_prompts: 60, arrival: {process: all_at_once}, prompt_len: {distribution: fixed, mean: 20},
           output_len: {distribution: fixed, mean: 10}}
tune: {engine.max_num_seqs: [2, 4, 8, 16]}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(FILE)
    return Path("mine.yaml")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["tune", *map(str, words)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_answers_and_writes_its_evidence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--limit", "p99_tpot_ms=20", "--jobs", "1") == 0
    shown = capsys.readouterr().out
    assert "--set engine.max_num_seqs=8" in shown
    assert "vllm serve MODEL --max-num-seqs 8" in shown
    folder = Path("results/mine-tune")
    answer = json.loads((folder / "tune.json").read_text())
    assert (answer["feasible"], answer["best"]["settings"]) == (True, {SEQS: 8})
    assert answer["binds"] == [{"metric": "p99_tpot_ms", "at_most": 20.0}]
    with (folder / "trials.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == answer["num_trials"] == 5
    assert [row[SEQS] for row in rows if row["best"] == "true"] == ["8"]
    assert (folder / "tune.png").stat().st_size > 5000


def test_the_command_says_what_cannot_be_had(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--limit", "p99_tpot_ms=3", "--jobs", "1", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["feasible"], answer["best"]["settings"]) == (False, {SEQS: 2})
    assert answer["binds"] == [{"metric": "p99_tpot_ms", "at_most": 3.0}]
    assert run(file, "--limit", "p99_tpot_ms=3", "--jobs", "1") == 0
    assert "Nothing that was tried keeps p99_tpot_ms <= 3" in capsys.readouterr().out


def test_resume_takes_finished_simulations(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (file, "--over", "engine.max_num_seqs=2,4", "--jobs", "1", "--quiet")
    assert run(*words) == 0
    first = Path("results/mine-tune/tune.json").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a simulation ran again")

    monkeypatch.setattr("simbatch.sim.search.run.run_cells", refuse)
    assert run(*words, "--resume") == 0
    assert Path("results/mine-tune/tune.json").read_bytes() == first


def test_pareto_knee_and_capacity_by_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--knee", "--pareto", "throughput,p99_tpot_ms", "--jobs", "1") == 0
    assert "Knee (*)" in capsys.readouterr().out
    assert run(file, "--knee", "--over", "engine.max_num_seqs=128", "--jobs", "1") == 0
    assert "No knee: the set has fewer than three" in capsys.readouterr().out
    open_loop = "workload.arrival={process: poisson, request_rate: 5}"
    words = ("--set", open_loop, "--capacity", "--limit", "p99_ttft_ms=200", "--replications", "2", "--jobs", "1")
    assert run(file, *words, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["feasible"]
    assert answer["rate"]["of_seeds"] == answer["rate"]["kept_in"] == 12
    assert 0 < answer["rate"]["bound"] <= answer["rate"]["median"]
    assert answer["load"] == 5 / answer["rate"]["bound"]
    assert not Path("results/mine-tune/tune.png").exists()  # an earlier answer does not stay beside this one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--maximize", "goodput"), "the scenario has none"),
        (("--maximize", "p99_ttft_ms"), "better when it is small"),
        (("--maximize", "goodput", "--knee"), "for a trade-off"),
        (("--capacity", "--knee"), "searches none"),
        (("--capacity", "--trials", "5"), "searches none"),
        (("--capacity", "--limit", "p99_ttft_ms=9", "--replications", "1"), "at least two seeds"),
        (("--capacity",), "has no SLO"),
        (("--pareto", "throughput"), "at least two metrics"),
        (("--knee", "--pareto", "throughput,goodput"), "a knee lies between"),
        (("--limit", "p99_tpto_ms=9"), "did you mean p99_tpot_ms"),
        (("--jobs", "0"), "must not be 0"),
        (("--over", "engine.max_num_seqs"), "must be a dotted key"),
    ],
)
def test_flags_that_make_no_sense(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(file, *words) == 2
    assert message in capsys.readouterr().err
