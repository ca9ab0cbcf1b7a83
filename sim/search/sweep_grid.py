"""Which cells a sweep has: the scenario's `sweep` section and what the command line adds, multiplied out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.document import KeyPath, dotted
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.policy import Range, SweepSection
from simbatch.sim.scenario.problems import Hints
from simbatch.sim.scenario.reading import read_value

MAX_CELLS = 1_000_000
Place = Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """Settings of each point, and beside each of them where its values come from."""

    settings: list[dict[str, Any]]
    places: list[dict[str, str]]

    def keys(self) -> list[str]:
        """Every key that some point sets, in order."""
        return list(dict.fromkeys(key for chosen in self.settings for key in chosen))


def parse_over(assignments: Iterable[str]) -> dict[str, Any]:
    """`["engine.max_num_seqs=8,16"]` as lists of values; brackets and braces are read as YAML."""
    over: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not key or not text:
            mend = "write --over engine.max_num_seqs=8,16,32"
            raise UserError(Problem(f"--over {assignment}", "must be a dotted key, =, and values", mend=mend))
        parts = [text] if text.startswith(("[", "{")) else text.split(",")
        values = [read_value(part.strip(), "--over", key) for part in parts]
        over[key] = values[0] if text.startswith(("[", "{")) else values
    return over


def grid_of(scenario: Scenario, over: Mapping[str, Any] | None = None, *, origin: str = "--over") -> Grid:
    """Every combination, the first key changing slowest; `over` takes the place of the section's keys of that name.

    Cells are combined with what stands beside them. Raises UserError when nothing is varied, or far too much.
    """
    added = _checked(scenario, over, origin) if over else SweepSection()
    section = scenario.sweep or SweepSection()
    axes: dict[str, list[tuple[Any, str]]] = {
        key: _axis(scenario, key, axis, None if key in added.axes() else ("sweep", key), origin)
        for key, axis in (section.axes() | added.axes()).items()
    }
    cells = [
        {key: (value, _place(scenario, ("sweep", "cells", i, key))) for key, value in cell.items()}
        for i, cell in enumerate(section.cells or [{}])
    ]
    count = len(cells)
    for axis in axes.values():
        count *= len(axis)
    if count > MAX_CELLS:
        rule = f"{count:,} combinations; a sweep has at most {MAX_CELLS:,}"
        raise UserError(Problem("sweep", rule, mend="give fewer values, or search with `simbatch tune`"))
    if not axes and cells == [{}]:
        mend = "add `sweep: {engine.max_num_seqs: [16, 32]}` to the file, or --over engine.max_num_seqs=16,32"
        raise UserError(Problem(scenario.locate(("sweep",)), "nothing is varied", mend=mend))
    points = [cell | dict(zip(axes, chosen, strict=True)) for cell in cells for chosen in product(*axes.values())]
    return Grid(
        [{key: value for key, (value, _) in point.items()} for point in points],
        [{key: place for key, (_, place) in point.items()} for point in points],
    )


def _checked(scenario: Scenario, over: Mapping[str, Any], origin: str) -> SweepSection:
    try:
        section = scenario.override({"sweep": dict(over)}, origin=origin).sweep
    except UserError as error:  # the flag has no section
        place = f"{origin} sweep."
        raise UserError(*(_renamed(problem, place, f"{origin} ") for problem in error.problems)) from None
    assert section is not None
    return section


def _renamed(problem: Problem, old: str, new: str) -> Problem:
    if not problem.place.startswith(old):
        return problem
    return replace(problem, place=new + problem.place.removeprefix(old))


def _axis(
    scenario: Scenario, key: str, axis: list[Any] | Range, path: KeyPath | None, origin: str
) -> list[tuple[Any, str]]:
    if isinstance(axis, Range):
        place = origin if path is None else _place(scenario, path)
        return [(number, place) for number in _numbers(scenario, key, axis)]
    return [(value, origin if path is None else _place(scenario, (*path, i))) for i, value in enumerate(axis)]


def _numbers(scenario: Scenario, key: str, axis: Range) -> list[float]:
    """Rounded, and each once, where the setting takes whole numbers; whole ones without a point everywhere."""
    numbers = axis.numbers()
    if not all(number.is_integer() for number in numbers) and _is_whole(scenario, key):
        numbers = list(dict.fromkeys(float(round(number)) for number in numbers))
    return [int(number) if number.is_integer() else number for number in numbers]


def _is_whole(scenario: Scenario, key: str) -> bool:
    from simbatch.sim.scenario.schema import scenario_schema

    data = scenario.dump()
    varied = scenario.sweep.axes() if scenario.sweep else {}
    if "policy.name" in varied:
        data.pop("policy")
    return Hints(scenario_schema()).takes_whole_numbers(tuple(key.split(".")), data)


def _place(scenario: Scenario, path: KeyPath) -> str:
    """`scenarios/x.yaml:14:5`, without the key."""
    return scenario.locate(path).removesuffix(dotted(path)).rstrip()
