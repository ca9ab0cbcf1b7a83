"""Cells and the grid that they come from."""

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
from simbatch.sim.scenario import resolve
from simbatch.sim.scenario.policy import Range
from simbatch.sim.search.cells import Cell, CellStore, cells_of, evaluate
from simbatch.sim.search.run import run_cells
from simbatch.sim.search.sweep import planned
from simbatch.sim.search.sweep_grid import grid_of, parse_over
from tests.made_scenarios import DATA, SEATS, YAML, runs, toy, watched

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


SEQS, RATE = "engine.max_num_seqs", "workload.request_rate"


def test_every_combination_the_first_key_slowest() -> None:
    grid = grid_of(toy(sweep={SEQS: [8, 4], RATE: [1, 2.5]}))
    assert grid.settings == [{SEQS: n, RATE: r} for n in (8, 4) for r in (1, 2.5)]


def test_listed_cells_are_combined_with_what_stands_beside_them() -> None:
    cells = [{SEQS: 8, "policy.name": "fixed", "policy.batch_size": 4}, {SEQS: 16}]
    grid = grid_of(toy(sweep={"cells": cells, RATE: [1, 2]}))
    assert grid.settings == [{**cell, RATE: rate} for cell in cells for rate in (1, 2)]
    assert grid.keys() == [SEQS, "policy.name", "policy.batch_size", RATE]


def test_flags_take_the_place_of_the_file_s_keys() -> None:
    scenario = toy(sweep={SEQS: [8, 4]})
    over = parse_over([f"{SEQS}=1,2", "policy.name=[vllm, fixed]", f"{RATE}={{from: 1, to: 2, steps: 3}}"])
    settings = grid_of(scenario, over).settings
    assert len(settings) == 12
    assert settings[1] == {SEQS: 1, "policy.name": "vllm", RATE: 1.5}


@pytest.mark.parametrize(
    ("key", "axis", "values"),
    [
        (RATE, {"from": 1, "to": 2, "steps": 5}, [1, 1.25, 1.5, 1.75, 2]),
        (RATE, {"from": 0.1, "to": 0.7, "steps": 3}, [0.1, 0.4, 0.7]),
        (SEQS, {"from": 8, "to": 128, "steps": 5, "scale": "log"}, [8, 16, 32, 64, 128]),
        (SEQS, {"from": 1, "to": 6, "steps": 3}, [1, 4, 6]),  # whole numbers are needed: 3.5 is rounded
        (SEQS, {"from": 1, "to": 3, "steps": 9}, [1, 2, 3]),
        ("policy.batch_size", {"from": 1, "to": 4, "steps": 3}, [1, 2, 4]),
        ("policy.target_tpot_ms", {"from": 1, "to": 4, "steps": 3}, [1, 2.5, 4]),
    ],
)
def test_ranges(key: str, axis: dict[str, Any], values: list[float]) -> None:
    name = "adaptive" if key.endswith("ms") else "fixed"
    grid = grid_of(toy(sweep={key: axis}, policy={"name": name}))
    assert [chosen[key] for chosen in grid.settings] == values


@given(
    ends=st.lists(st.integers(1, 10**6).map(lambda n: n / 1000), min_size=2, max_size=2, unique=True),
    steps=st.integers(2, 50),
    scale=st.sampled_from(["linear", "log"]),
)
def test_a_range_begins_and_ends_where_it_says(ends: list[float], steps: int, scale: str) -> None:
    first, last = ends
    numbers = Range.model_validate({"from": first, "to": last, "steps": steps, "scale": scale}).numbers()
    assert (numbers[0], numbers[-1], len(numbers)) == (first, last, steps)
    assert sorted(numbers, reverse=first > last) == numbers


def test_another_policy_starts_from_its_defaults_and_the_scenario_s_own_keeps_its_parameters() -> None:
    scenario = toy(policy={"name": "fixed", "batch_size": 4}, sweep={"policy.name": ["fixed", "vllm"]})
    fixed, vllm = (cell.scenario["policy"] for cell in planned(scenario).cells)
    assert fixed == {"name": "fixed", "batch_size": 4}
    assert vllm == {"name": "vllm"}


def test_a_cell_is_what_run_would_simulate() -> None:
    (cell,) = cells_of(toy(), [{SEQS: 2}], [5])
    scenario = toy().override({SEQS: 2, "seed": 5})
    assert cell.scenario == resolve(scenario).dump()
    assert Scenario.from_dict(cell.scenario).sweep is None


def test_run_ignores_the_section() -> None:
    assert simulate(toy(sweep={SEQS: [1]})).summary == simulate(toy()).summary


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("  engine.max_num_seq: [8]", ":10:24 engine.max_num_seq: unknown key (got 8); did you mean max_num_seqs?"),
        ("  engine.max_num_seqs: [8, 0]", ":10:28 engine.max_num_seqs: must be at least 1 (got 0)"),
        (
            "  engine.max_num_seqs: 8",
            ":10:24 sweep.engine.max_num_seqs: must be a list of values, or {from, to, steps}",
        ),
        ("  engine: {max_num_seqs: [8]}", ":10:11 sweep.engine: must be a list of values"),
        ("  engine.max_num_seqs: [8, 8]", ":10:24 sweep.engine.max_num_seqs: 8 stands twice"),
        ("  engine.max_num_seqs: []", ":10:24 sweep.engine.max_num_seqs: must have at least 1 entries"),
        ("  engine.max_num_seqs: {from: 1, to: 2}", ".steps: required, but missing"),
        ("  workload.request_rate: {from: 0, to: 2, steps: 3, scale: log}", "a logarithmic range must start"),
        ("  policy.name: [vllm, fixd]", ":10:23 policy.name: no such policy (got 'fixd'); did you mean fixed?"),
        ("  policy: [vllm]", ":10:12 policy: must be a mapping with a name"),
        ("  cells: [{engine.max_num_seqs: x}]", ":10:33 engine.max_num_seqs: must be a whole number (got 'x')"),
        ("  engin.max_num_seqs: [8]", "no section of a scenario is called 'engin'"),
        ("  seed: [1, 2]", "seed cannot be varied here (got [1, 2]); give --replications N"),
        ("  {}", "nothing is varied"),
        ("  engine.max_num_seqs: [5000]", "vLLM needs --max-num-batched-tokens to be at least --max-num-seqs (5000)"),
        ("  {a.b: {from: 1, to: 9, steps: 9999}, c.d: {from: 1, to: 9, steps: 9999}}", "no section"),
    ],
)
def test_mistakes_stand_at_their_lines(tmp_path: Path, lines: str, problem: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(f"{YAML}sweep:\n{lines}\n")
    with pytest.raises(UserError) as raised:
        planned(Scenario.load(file))
    assert problem in str(raised.value)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("engine.max_num_seqs", "must be a dotted key, =, and values"),
        ("engine.max_num_seqs=", "must be a dotted key, =, and values"),
        ("engine.max_num_seqs=8,x", "--over engine.max_num_seqs: must be a whole number (got 'x')"),
        ("engine.max_num_seqs=8,.inf", "--over engine.max_num_seqs: a number must be finite"),
        ("engine.max_num_seqs=[8", "--over engine.max_num_seqs: a bracket is opened and never closed"),
        ("engine.max_num_seqs=8,8", "--over engine.max_num_seqs: 8 stands twice"),
        ("engine.max_num_seqs={from: 1, to: 8}", "--over engine.max_num_seqs.steps: required, but missing"),
        ("seed=1,2", "--over seed: seed cannot be varied here"),
    ],
)
def test_mistakes_of_a_flag_name_it(flag: str, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        planned(toy(), parse_over([flag]), origin="--over")
    assert problem in str(raised.value)


def test_one_wrong_value_is_told_once_and_too_many_are_counted() -> None:
    with pytest.raises(UserError) as raised:
        planned(toy(sweep={"engine.max_num_seqs": [0], RATE: {"from": 1, "to": 9, "steps": 50}}))
    assert len(raised.value.problems) == 1
    with pytest.raises(UserError, match="480 more problems like these"):
        planned(toy(sweep={SEQS: {"from": 5000, "to": 5499, "steps": 500}}))


def test_far_too_many_cells_are_refused() -> None:
    axis = {"from": 1, "to": 2000, "steps": 2000}
    with pytest.raises(UserError, match="4,000,000 combinations"):
        planned(toy(sweep={SEQS: axis, RATE: axis}))
