"""`--set engine.max_num_seqs=64`: dotted keys and values as a YAML file would say them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.reading.document import parse_document
from simbatch.sim.scenario.reading.scalars import parse_plain
from simbatch.sim.scenario.reading.source import Value


def parse_overrides(assignments: Iterable[str]) -> dict[str, Value]:
    """`["seed=7"]` as `{"seed": 7}`; the last of two for one key counts.

    A value that starts with a bracket or a quote is read as YAML, any other as one plain scalar, whatever is in it.
    Raises UserError naming the flag.
    """
    values: dict[str, Value] = {}
    problems: list[Problem] = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        name = name.strip()
        if not equals or not name or not all(name.split(".")):
            mend = "write --set engine.max_num_seqs=64"
            problems.append(Problem(f"--set {_short(assignment)}", "must be a dotted key, =, and a value", mend=mend))
            continue
        try:
            values[name] = read_value(text.strip(), "--set", name)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return values


def read_value(text: str, flag: str, name: str) -> Value:
    """What `text` says as the value of `name`; UserError naming the flag."""
    try:
        if not text.startswith(("{", "[", '"', "'")):
            return parse_plain(text)
        value: Value = parse_document(f"value: {text}", name=flag).data["value"]
    except ValueError as error:
        raise UserError(Problem(f"{flag} {name}", str(error), text, "write a finite number")) from None
    except UserError as error:
        raise UserError(*(_of_flag(problem, f"{flag} {name}", text) for problem in error.problems)) from None
    return value


def _of_flag(problem: Problem, place: str, text: str) -> Problem:
    """A mistake in the document that stands for the flag's value, as one of the flag."""
    _, _, key = problem.place.partition(" ")
    value = text if isinstance(problem.value, str) and problem.value.startswith("value: ") else problem.value
    return replace(problem, place=f"{place}{key.removeprefix('value')}", value=value)


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
