"""What a sweep leaves behind, and what the command says."""

from __future__ import annotations

import csv
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from simbatch import Scenario, sweep
from simbatch.sim.scenario.document import parse_document
from simbatch.sim.search import sweep_plot
from simbatch.sim.search.sweep import planned
from simbatch.sim.statistics import mean_interval
from tests import exit_code as run
from tests.made_scenarios import WORKLOAD, YAML, toy

ROOT = Path(__file__).parents[1]
SEATS, RATE, POLICY = "engine.max_num_seqs", "workload.request_rate", "policy.name"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(f"{YAML}sweep: {{'{SEATS}': [1, 8], '{RATE}': [2, 200]}}\n")
    return path


def test_a_row_has_the_settings_and_every_figure_of_its_cell(file: Path) -> None:
    assert run("sweep", file, "--replications", 2, "--jobs", 1, "--quiet") == 0
    folder = Path("results/x-sweep")
    with (folder / "summary.csv").open() as text:
        rows = list(csv.DictReader(text))
    table = pq.read_table(folder / "summary.parquet")
    assert table.column_names == list(rows[0])
    first = [(row[SEATS], row[RATE], row["seed"]) for row in rows[:3]]
    assert first == [("1", "2", "3"), ("1", "2", "4"), ("1", "200", "3")]
    for row, typed in zip(rows, table.to_pylist(), strict=True):
        cell = json.loads((folder / "cells" / f"{row['key']}.json").read_text())
        assert float(row["p99_ttft_ms"]) == typed["p99_ttft_ms"] == cell["p99_ttft_ms"]
        assert float(row["kv_cache.mean_use"]) == typed["kv_cache.mean_use"] == cell["simbatch"]["kv_cache"]["mean_use"]
        assert typed["request_goodput"] == cell["request_goodput"]
        assert typed["overloaded"] == ("Overloaded" in typed["warnings"])
        assert (row["overloaded"] == "true") == typed["overloaded"]
    assert {row["overloaded"] for row in rows} == {"true", "false"}


def test_points_are_means_with_their_intervals(file: Path) -> None:
    assert run("sweep", file, "--replications", 4, "--jobs", 1, "--quiet", "-o", "out") == 0
    with Path("out/points.csv").open() as text:
        points = list(csv.DictReader(text))
    rows = pq.read_table("out/summary.parquet").to_pylist()
    for point in points:
        setting = point[SEATS], point[RATE]
        values = [row["mean_ttft_ms"] for row in rows if (str(row[SEATS]), str(row[RATE])) == setting]
        interval = mean_interval(values).within(0, np.inf)
        found = [float(point[f"mean_ttft_ms{end}"]) for end in ("", ".low", ".high")]
        assert found == pytest.approx([np.mean(values), interval.low, interval.high])
        assert point["replications"] == "4"
    assert len(points) == 4
    assert run("sweep", file, "--jobs", 1, "--quiet", "-o", "out") == 0
    assert not Path("out/points.csv").exists()  # of an earlier run


def test_every_setting_gets_the_same_arrivals() -> None:
    rows = sweep(toy(), {SEATS: [2, 8], POLICY: ["vllm", "fixed"]}, replications=2, jobs=1).rows
    for seed in (3, 4):
        assert len({row["total_input_tokens"] for row in rows if row["seed"] == seed}) == 1
    assert len({row["total_input_tokens"] for row in rows}) == 2


def test_a_policy_that_is_told_as_a_whole_is_one_column_of_json(tmp_path: Path) -> None:
    policies = [{"name": "fixed", "batch_size": 2}, {"name": "vllm"}]
    result = sweep(toy(), {"policy": policies}, jobs=1, folder=tmp_path)
    with (tmp_path / "summary.csv").open() as text:
        assert [json.loads(row["policy"]) for row in csv.DictReader(text)] == policies
    assert "name fixed batch_size 2" in result.text()


def test_a_second_sweep_of_the_same_folder_takes_what_is_there(tmp_path: Path) -> None:
    first = sweep(toy(), {SEATS: [2, 4]}, jobs=1, folder=tmp_path)
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    more = sweep(toy(), {SEATS: [2, 4, 8]}, jobs=1, folder=tmp_path)
    assert more.rows[:2] == first.rows
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    assert more.to_pandas()[SEATS].tolist() == [2, 4, 8]


def test_dry_run_lists_and_writes_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", file, "--dry-run", "--replications", 2) == 0
    out = capsys.readouterr().out
    assert f"{SEATS}=1 {RATE}=200 seed=4" in out
    assert "8 cells, 0 of them there already; the others take about" in out
    assert not Path("results").exists()
    assert run("sweep", file, "--quiet", "--jobs", 1) == 0
    assert run("sweep", file, "--dry-run", "--shard", "1/2", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [cell["settings"] for cell in listed["cells"]] == [{SEATS: 1, RATE: 2}, {SEATS: 8, RATE: 2}]
    assert all(cell["there"] for cell in listed["cells"])
    assert listed["estimate_s"] is None


def test_json_has_the_rows(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", file, "--json", "--shard", "1/2", "--jobs", 1) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["scenario"], printed["num_cells"], printed["missing"]) == ("x", 4, 2)
    assert [row[SEATS] for row in printed["rows"]] == [1, 8]


def test_progress_goes_to_stderr_and_quiet_is_quiet(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", file, "--jobs", 1) == 0
    said = capsys.readouterr()
    assert "4 of 4 simulations" in said.err
    assert "overloaded" in said.out
    assert run("sweep", file, "--jobs", 1, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_run_says_that_the_section_is_not_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", file) == 0
    assert "simbatch sweep" in capsys.readouterr().err
    assert run("run", file, "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [["--shard", "0/2"], ["--shard", "3/2"], ["--shard", "x"], ["--jobs", "0"]])
def test_wrong_flags_are_told(file: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", file, *flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {flags[0]}: must ")


def test_processes_are_nothing_to_a_cluster(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", file, "--scheduler", "tcp://127.0.0.1:1", "--jobs", 2) == 2
    assert "--jobs: says nothing to a cluster: its workers do (got 2); leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("over", "x", "y", "others"),
    [
        ({SEATS: [1, 2], RATE: [1, 2, 3]}, RATE, SEATS, []),  # a heat map
        ({SEATS: [1, 2], POLICY: ["vllm", "fixed"]}, SEATS, None, [POLICY]),
        ({SEATS: [1, 2, 3]}, SEATS, None, []),
        ({POLICY: ["vllm", "fixed"]}, POLICY, None, []),
        ({SEATS: [1, 2], RATE: [1, 2, 3], POLICY: ["vllm", "fixed"]}, RATE, None, [SEATS, POLICY]),
    ],
)
def test_the_picture_fits_what_is_varied(
    over: dict[str, list[Any]], x: str, y: str | None, others: list[str], tmp_path: Path
) -> None:
    result = sweep(toy(), over, jobs=1)
    drawing = sweep_plot.choose(result.points, result.keys)
    assert (drawing.x, drawing.y, drawing.others) == (x, y, others)
    sweep_plot.write(tmp_path / "a.png", "toy", drawing)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_where_there_is_nothing_to_tell_apart() -> None:
    result = sweep(toy(), {SEATS: [2]}, jobs=1)
    assert sweep_plot.choose(result.points, result.keys) is None
    many = [{SEATS: n, RATE: r, POLICY: p} for n in (1, 2, 3) for r in (1, 2, 3) for p in ("a", "b", "c")]
    assert sweep_plot.choose(many, [SEATS, RATE, POLICY]) is None


def test_a_cell_that_finishes_nothing_has_a_row_without_latencies(tmp_path: Path) -> None:
    workload = WORKLOAD | {"prompt_len": {"distribution": "fixed", "mean": 100}}
    scenario = toy(engine={"max_model_len": 60}, workload=workload)  # every prompt is longer, and rejected
    result = sweep(scenario, {SEATS: [2, 4]}, jobs=1, folder=tmp_path, replications=2)
    assert [(row["completed"], row["p99_ttft_ms"]) for row in result.rows] == [(0, None)] * 4
    assert all(point["p99_ttft_ms"] is None for point in result.points)
    assert pq.read_table(tmp_path / "summary.parquet")["p99_ttft_ms"].null_count == 4
    assert result.text().splitlines()[1].split() == ["2", "0.00", "±", "0.00", "0.00", "±", "0.00", "0.00", "±", "0.00"]


def test_nothing_is_planned_twice() -> None:
    plan = planned(toy(), {SEATS: [2, 4]}, replications=3)
    assert len({cell.key for cell in plan.cells}) == plan.num_missing == 6


def test_the_scenarios_in_the_docs_can_be_swept() -> None:
    found = re.findall(
        r"^( *)```yaml\n(.*?)^ *```$", (ROOT / "docs" / "sweep.md").read_text(), re.DOTALL | re.MULTILINE
    )
    data = [parse_document(textwrap.dedent(text), name="docs/sweep.md").data for _, text in found]
    assert [len(planned(Scenario.from_dict(each)).cells) for each in data] == [40, 4]
    assert len(planned(Scenario.load(ROOT / "scenarios" / "sweep.yaml"), replications=3).cells) == 60
