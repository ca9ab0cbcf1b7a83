"""What can go wrong while cells run: dying workers, Ctrl-C, cells that fail; shards and a real Dask cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from simbatch import UserError
from simbatch.sim.search.cells import Cell, CellStore, cells_of, evaluate
from simbatch.sim.search.run import run_cells
from simbatch.sim.search.sweep import Sweep, planned, write_summary
from tests import exit_code
from tests.made_scenarios import SEATS, YAML, runs, toy, watched

SIMBATCH = [sys.executable, "-m", "simbatch"]
LOOPBACK = "127.0.0.1"


def sweep(*arguments: object) -> int:
    return exit_code("sweep", *arguments)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(f"{YAML}sweep: {{'engine.max_num_seqs': {{from: 1, to: 30, steps: 30}}}}\n")
    return path


def test_a_killed_worker_costs_nothing_but_its_cell(tmp_path: Path) -> None:
    cells = cells_of(watched(tmp_path, fatal_seats=6), SEATS, [3, 4])
    said: list[str] = []
    results: list[Cell] = []
    store = CellStore(tmp_path / "cells")
    found = run_cells(cells, store, jobs=2, on_result=lambda cell, _: results.append(cell), say=said.append)
    assert (tmp_path / "died").exists()
    assert len(said) == 1
    assert "a worker process died" in said[0]
    assert sorted(cell.key for cell in results) == sorted(found) == sorted(cell.key for cell in cells)
    assert found == {cell.key: evaluate(cell) for cell in cells}  # `died` is there: it lives now
    assert all(store.get(key) == summary for key, summary in found.items())
    again = runs(tmp_path) - 2 * len(cells)  # half of them by `evaluate` above
    assert 1 <= again <= 6  # at most what was handed out: three a process


def test_a_cell_that_always_kills_its_worker_is_named_and_no_other_is_lost(tmp_path: Path) -> None:
    cells = cells_of(watched(tmp_path, fatal_seats=6, again=True), SEATS, [3])
    store = CellStore(tmp_path / "cells")
    with pytest.raises(UserError) as raised:
        run_cells(cells, store, jobs=2)
    (problem,) = raised.value.problems
    assert problem.place == "cell engine.max_num_seqs=6 seed=3"
    assert "the process that ran it died 4 times" in problem.rule
    assert [cell.settings["engine.max_num_seqs"] for cell in cells if not store.has(cell.key)] == [6]


def test_when_every_process_dies_it_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simbatch.sim.search.run.MAX_DEATHS_IN_A_ROW", 5)  # of 10: each costs new processes
    settings = [{"engine.max_num_seqs": 6, "engine.watermark": i / 100} for i in range(20)]
    with pytest.raises(UserError, match="worker processes died 5 times, and no cell was finished in between"):
        run_cells(cells_of(watched(tmp_path, fatal_seats=6, again=True), settings, [3]), jobs=2)


@pytest.mark.parametrize(("kind", "problem"), [("Wrong", "seats"), ("Exits", "sys.exit(3)")])
@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_that_fail_hold_up_no_other(tmp_path: Path, jobs: int, kind: str, problem: str) -> None:
    settings = [*SEATS[:4], {"engine.max_num_seqs": 5, "policy.name": f"watched.py:{kind}"}, *SEATS[5:8]]
    cells = cells_of(watched(tmp_path), settings, [3])
    store = CellStore(tmp_path / "cells")
    with pytest.raises(UserError) as raised:
        run_cells(cells, store, jobs=jobs)
    assert problem in str(raised.value)
    assert "cell engine.max_num_seqs=5" in str(raised.value)
    assert sum(store.has(cell.key) for cell in cells) == len(cells) - 1


def test_resume_skips_what_is_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(file, "-o", "whole", "--jobs", 1) == 0
    whole = Path("whole/summary.csv").read_bytes()
    there = sorted(Path("whole/cells").iterdir())
    marks = {path: path.stat().st_mtime_ns for path in there}
    there[4].unlink()
    there[9].write_text("{")
    assert sweep(file, "-o", "whole", "--jobs", 1, "--resume") == 0
    assert "28 of 30 cells are there already" in capsys.readouterr().err
    assert Path("whole/summary.csv").read_bytes() == whole
    changed = [path for path in there if path.stat().st_mtime_ns != marks[path]]
    assert changed == [there[4], there[9]]
    assert sweep(file, "-o", "whole", "--jobs", 1) == 0
    assert "30 cells are there already and are simulated again; --resume" in capsys.readouterr().err


def test_shards_add_up_to_the_whole(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(file, "-o", "whole", "--replications", 2) == 0
    for i, num_missing in ((2, 45), (4, 30), (1, 15)):
        assert sweep(file, "-o", "parts", "--replications", 2, "--shard", f"{i}/4", "--jobs", 1) == 0
        assert f"{num_missing} of 60 cells are missing" in capsys.readouterr().out
    assert sweep(file, "-o", "parts", "--replications", 2, "--shard", "3/4", "--jobs", 1) == 0
    for name in ("summary.csv", "points.csv", "summary.parquet"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()
    assert sorted(p.name for p in Path("parts/cells").iterdir()) == sorted(
        p.name for p in Path("whole/cells").iterdir()
    )


def test_a_shard_that_ends_while_another_writes_is_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = planned(toy(), {"engine.max_num_seqs": [1, 2, 3]}), CellStore(tmp_path / "cells")
    late = [(cell.key, evaluate(cell)) for cell in plan.cells[::-1]]
    store.put(*late.pop())
    save = Sweep.save

    def save_slowly(self: Sweep, folder: Path | str, **ways: Any) -> list[Path]:
        if late:
            store.put(*late.pop())
        return save(self, folder, **ways)

    monkeypatch.setattr(Sweep, "save", save_slowly)
    done, _ = write_summary(plan, store, tmp_path)
    assert done.num_missing == 0
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_the_finished_cells(file: Path, jobs: int) -> None:
    file.write_text(file.read_text().replace("num_prompts: 30", "num_prompts: 1000"))
    command = [*SIMBATCH, "sweep", str(file), "-o", "cut", "--jobs", str(jobs)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert "3 of 30 simulations" in process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert re.search(r"\d+ of 30 cells are in cut/cells; go on with --resume", said)
    kept = sorted(Path("cut/cells").iterdir())
    assert 3 <= len(kept) < 30
    assert not [path for path in kept if path.suffix != ".json"]
    assert sweep(file, "-o", "cut", "--resume", "--quiet") == 0
    assert sweep(file, "-o", "whole", "--quiet") == 0
    assert Path("cut/summary.csv").read_bytes() == Path("whole/summary.csv").read_bytes()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A real scheduler and two worker processes on loopback: its address, and the three processes, itself first."""
    pytest.importorskip("distributed")
    dask = str(Path(sys.executable).with_name("dask"))
    quiet = {**os.environ, "PYTHONPATH": str(tmp_path)}
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        begun.append(subprocess.Popen([dask, *arguments], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=quiet))
        return begun[-1]

    try:
        scheduler = begin("scheduler", "--host", LOOPBACK, "--port", "0", "--no-dashboard")
        address = line_with(scheduler.stderr, r"Scheduler at: +(tcp://\S+)")
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        workers = [begin("worker", address, *options, "--local-directory", str(tmp_path)) for _ in range(2)]
        for worker in workers:
            line_with(worker.stderr, r"Registered to: +(\S+)")
        yield address, begun
    finally:
        for process in reversed(begun):
            process.kill()
            process.communicate()


def line_with(stream: IO[str] | None, pattern: str) -> str:
    found = next(match for line in stream if (match := re.search(pattern, line)))
    return found[1]


def test_a_dask_cluster_gives_the_same_bytes(file: Path, cluster: tuple[str, list[subprocess.Popen[str]]]) -> None:
    address, _ = cluster
    assert sweep(file, "-o", "there", "--scheduler", address, "--quiet") == 0
    assert sweep(file, "-o", "here", "--jobs", 1, "--quiet") == 0
    for name in ("summary.csv", "summary.parquet"):
        assert Path("there", name).read_bytes() == Path("here", name).read_bytes()
    for path in Path("here/cells").iterdir():
        assert Path("there/cells", path.name).read_bytes() == path.read_bytes()


def test_a_dask_worker_that_dies_loses_nothing(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[str]]]
) -> None:
    address, (_, *workers) = cluster
    cells = cells_of(watched(tmp_path, fatal_seats=6), SEATS, [3, 4])
    found = run_cells(cells, scheduler=address)
    assert sum(worker.poll() is not None for worker in workers) == 1
    assert found == {cell.key: evaluate(cell) for cell in cells}


def test_a_scheduler_that_dies_is_told_and_keeps_what_is_finished(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[str]]], caplog: pytest.LogCaptureFixture
) -> None:
    address, (scheduler, *_) = cluster
    cells, store = cells_of(toy(), SEATS, range(20)), CellStore(tmp_path / "cells")
    with pytest.raises(UserError, match=r"--scheduler: the scheduler went away.*--resume"):
        run_cells(cells, store, scheduler=address, on_result=lambda *_: scheduler.kill())
    assert 1 <= sum(store.has(cell.key) for cell in cells) < len(cells)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("address", "rule"),
    [("nonsense", "must be an address with a port"), (f"{LOOPBACK}:1", "no Dask scheduler answers")],
)
def test_a_scheduler_that_is_not_there(address: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("simbatch.sim.search.cluster.CONNECT_S", 1)
    with pytest.raises(UserError, match=rule):
        run_cells(cells_of(toy(), SEATS[:1], [0]), scheduler=address)


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'dask\[distributed\]'"):
        run_cells(cells_of(toy(), SEATS[:1], [0]), scheduler="tcp://localhost:8786")
