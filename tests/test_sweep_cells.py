"""A cell is a pure function of its scenario: where, when and in which order it runs changes nothing."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch import Scenario, UserError, simulate
from simbatch.sim.search.cells import Cell, cells_of, evaluate
from simbatch.sim.search.run import run_cells
from simbatch.sim.search.store import CellStore
from tests.sweep_cases import DATA, SEATS, runs, toy, watched

CELLS = cells_of(toy(), SEATS, [3, 4])
EXPECTED = {cell.key: evaluate(cell) for cell in CELLS}


def key_of(scenario: Scenario, **changes: Any) -> str:
    return cells_of(scenario, [changes], [0])[0].key


def test_the_figures_are_those_of_a_run() -> None:
    for cell in CELLS[::5]:
        summary = simulate(toy().override({**cell.settings, "seed": cell.seed})).summary
        found = copy.deepcopy(EXPECTED[cell.key])
        for part in (summary["simbatch"], found["simbatch"]):
            del part["engine_defaults"]  # what a cell runs has no defaults left
        assert found == summary


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(CELLS))
def test_the_order_of_the_cells_changes_nothing(order: list[Cell]) -> None:
    assert run_cells(order, jobs=1) == EXPECTED


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_the_number_of_processes_changes_nothing(jobs: int, tmp_path: Path) -> None:
    cells = random.Random(jobs).sample(CELLS, len(CELLS))
    store = CellStore(tmp_path / "cells")
    assert run_cells(cells, store, jobs=jobs) == EXPECTED
    assert {path.stem: json.loads(path.read_text()) for path in store.folder.iterdir()} == EXPECTED


def test_all_cells_have_names_of_their_own() -> None:
    assert len(EXPECTED) == len(CELLS) == 24


def test_whose_host_it_is_makes_another_cell_by_what_is_in_the_file(tmp_path: Path) -> None:
    def key(lag_s: float, name: str = "host.json") -> str:
        (tmp_path / name).write_text(json.dumps(DATA["profile"] | {"host": {"lag_s": lag_s}}))
        return key_of(toy(), **{"host.from": str(tmp_path / name)})

    assert key(0.001) == key(0.001, "copy.json") != key(0.002)
    assert key_of(toy()) != key(0.001)


def test_cells_of_one_name_are_run_once(tmp_path: Path) -> None:
    scenario = watched(tmp_path)
    cells = cells_of(scenario, [{"engine.max_num_seqs": 256}, {"engine.block_size": 16}], [0, 0])
    assert len({cell.key for cell in cells}) == 1  # both are the defaults
    run_cells(cells, jobs=1)
    assert runs(tmp_path) == 1


def test_the_name_follows_what_is_simulated_and_nothing_else(tmp_path: Path) -> None:
    base = key_of(toy())
    assert key_of(toy(sweep={"engine.max_num_seqs": [1]})) == base
    assert key_of(toy(engine={"max_num_seqs": 256})) == base
    assert Scenario.from_dict(DATA, folder=tmp_path, name="toy").folder != toy().folder
    assert key_of(Scenario.from_dict(DATA, folder=tmp_path, name="toy")) == base
    assert key_of(toy(), **{"engine.max_num_seqs": 8}) != base
    assert key_of(toy(slo={})) != base


def test_files_count_by_what_is_in_them(tmp_path: Path) -> None:
    def key(folder: Path, line: str) -> str:
        folder.mkdir(exist_ok=True)
        (folder / "t.csv").write_text(f"arrival_s,num_prompt_tokens,num_output_tokens\n{line}\n")
        data = {**DATA, "workload": {"trace": {"path": "t.csv", "format": "csv"}}}
        return key_of(Scenario.from_dict(data, folder=folder, name="toy"))

    assert key(tmp_path / "a", "0,10,10") == key(tmp_path / "b", "0,10,10")
    assert key(tmp_path / "a", "0,10,11") != key(tmp_path / "b", "0,10,10")
    first = key_of(watched(tmp_path))
    (tmp_path / "watched.py").write_text((tmp_path / "watched.py").read_text() + "# changed\n")
    changed = {**DATA, "policy": {"name": "watched.py:Watched"}}
    assert key_of(Scenario.from_dict(changed, folder=tmp_path, name="toy")) != first


def test_a_damaged_file_counts_for_nothing(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells")
    assert not store.has("a")
    store.put("a", {"x": 0.1})
    assert store.get("a") == {"x": 0.1}
    store.path_of("a").write_text('{"x": 0.')
    assert not store.has("a")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(UserError, match="a finished cell cannot be written"):
        run_cells(CELLS[:2], CellStore(tmp_path / "cells"), jobs=1)
