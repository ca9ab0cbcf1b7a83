"""Where a scenario's values come from: a file's lines, flags of the command line, or a dict; each knows its place."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError, shorten
from simbatch.sim.files import read_at_most, user_path
from simbatch.sim.scenario.document import (
    MAX_DEPTH,
    MAY_BE_INFINITE,
    Key,
    KeyPath,
    Places,
    YamlDocument,
    dotted,
    line_and_column,
    parse_document,
    parse_plain,
)

MAX_BYTES = 1 << 18
Value = str | int | float | bool | None | list[Any] | dict[Any, Any]


@dataclass(frozen=True)
class Source:
    """Plain data with the place of each value; `overrides` says which paths came from which flag and key."""

    name: str
    folder: Path
    stem: str
    data: dict[Key, Any]
    places: dict[KeyPath, Places]
    overrides: dict[KeyPath, tuple[str, str]] = field(default_factory=dict)

    def with_data(self, data: dict[Key, Any]) -> Source:
        """A copy that holds other data."""
        return replace(self, data=data)

    def locate(self, path: KeyPath, of_key: bool) -> str:
        """`file:line:column key`, the value's place or the key's; `--set key` where that set it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.overrides:
                origin, name = self.overrides[path[:length]]
                shown = name if name.startswith(dotted(path)) else dotted(path)
                return origin if self._is_whole_flag(origin, shown) else f"{origin} {shown}"
        if not self.places:
            return f"{self.name} {dotted(path)}".rstrip()
        known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in self.places), None)
        if known is None:
            return f"{self.name}:1:1 {dotted(path)}".rstrip()
        places = self.places[known]
        mark = places.key if of_key or known != path else places.value
        return f"{self.name}:{mark.line}:{mark.column} {dotted(path)}"

    def in_order(self, problems: Iterable[Problem]) -> list[Problem]:
        """Problems as they stand in the file, from top to bottom; those of flags last."""

        def position(problem: Problem) -> tuple[float, int]:
            found = re.match(rf"{re.escape(self.name)}:(\d+):(\d+)", problem.place)
            return (int(found[1]), int(found[2])) if found else (math.inf, 0)

        return sorted(problems, key=position)

    def _is_whole_flag(self, origin: str, name: str) -> bool:
        """Whether the flag itself says what it sets: `--seed`, `--policy`, `--host`, `--on-empty`."""
        name = name.removesuffix(".name").removesuffix(".from").removeprefix("cluster.").removeprefix("workload.trace.")
        return name.replace("_", "-") == origin.removeprefix("--")

    def relocated(self, problem: Problem) -> Problem:
        """A problem whose place is one of our keys, with the line and column of it."""
        name, _, rest = problem.place.partition(" ")
        path = self._path_of(name)
        if path is None:
            return problem
        return replace(problem, place=f"{self.locate(path, False)} {rest}".rstrip())

    def _path_of(self, name: str) -> KeyPath | None:
        """The path that `workload.phases[0].rate` names, when its first key is one of ours."""
        path: list[Key] = []
        for part in name.split("."):
            key, *indices = part.replace("]", "").split("[")
            path.append(key)
            path += [int(index) for index in indices if index.isdigit()]
        first = path[0]
        return tuple(path) if first in SECTIONS else None

    def override(self, values: Mapping[str, Value], origins: str | Mapping[str, str]) -> Source:
        """A copy with the dotted keys set; UserError when a key cannot be set."""
        data, overrides = copy.deepcopy(self.data), dict(self.overrides)
        for name, value in values.items():
            origin = origins if isinstance(origins, str) else origins[name]
            path = keys_of(name)
            if len(path) > MAX_DEPTH:
                rule = f"keys are nested more than {MAX_DEPTH} deep"
                raise UserError(Problem(f"{origin} {shorten(name)}", rule, mend="name a key of the scenario"))
            new = _set(data, path, plain_value(value, f"{origin} {name}"), f"{origin} {name}")
            overrides = {other: where for other, where in overrides.items() if other[: len(new)] != new}
            overrides[new] = (origin, name)
        return replace(self, data=data, overrides=overrides)

    @property
    def changes(self) -> dict[str, Any]:
        """What was set over the file, by dotted key."""
        return {name: reduce(getitem, keys_of(name), self.data) for _, name in self.overrides.values()}

    def with_absolute_paths(self, data: dict[str, Any]) -> dict[str, Any]:
        """`data` with relative paths of files taken from the scenario's folder."""
        return {key: self._absolute(key, value) for key, value in data.items()}

    def _absolute(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._absolute(name, child) for name, child in value.items()}
        if isinstance(value, list):
            return [self._absolute("", child) for child in value]
        is_file = key == "path" or (key in ("profile", "from") and isinstance(value, str) and value.endswith(".json"))
        return str(user_path(self.folder, value).absolute()) if is_file else value


SECTIONS = ("profile", "host", "engine", "policy", "cluster", "workload", "slo", "seed", "tune")


def keys_of(name: str) -> KeyPath:
    """A dotted name as keys: `workload.phases.0.rate` names an entry of a list by its number."""
    return tuple(int(part) if part.isdecimal() else part for part in name.split("."))


def _set(data: Any, path: KeyPath, value: Any, place: str) -> KeyPath:
    """Set the value at `path`, a list's entry by its number; returns the path where something new begins."""
    begin: KeyPath | None = None
    *parents, last = path
    for i, key in enumerate([*parents, last]):
        if isinstance(data, list):
            if not isinstance(key, int) or key >= len(data):
                rule = f"{dotted(path[:i])} is a list of {len(data)} entries"
                raise UserError(Problem(place, rule, key, f"name an entry by its number, 0 to {len(data) - 1}"))
        elif not isinstance(data, dict):
            rule = f"{dotted(path[:i])} is a value, not a mapping"
            raise UserError(Problem(place, rule, data, f"set {dotted(path[:i])} as a whole"))
        if i == len(parents):
            data[key] = value
        elif isinstance(data, dict) and data.get(key) is None:
            data[key] = {}
            begin = begin or path[: i + 1]
        data = data[key]
    return begin or path


def plain_data(data: Mapping[str, Any], name: str) -> dict[Key, Any]:
    """A caller's mapping as plain dicts, lists and numbers; UserError when it cannot be."""
    if not isinstance(data, Mapping):
        raise UserError(Problem(name, "must be a mapping", data, "give a dict, or a path to Scenario.load"))
    plain: dict[Key, Any] = plain_value(data, name)
    return plain


def plain_value(value: Any, place: str) -> Any:
    """Tuples to lists, numpy's numbers to Python's, paths to text; no NaN or infinity."""
    if isinstance(value, Mapping):
        joint = "." if " " in place else " "  # `scenario workload.request_rate`
        return {key: plain_value(child, f"{place}{joint}{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(child, place) for child in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, (str, int, float, bool)) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value) and not (value > 0 and place.endswith(MAY_BE_INFINITE)):
        raise UserError(Problem(place, "a number must be finite", value, "write a finite number"))
    return value


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


def read_document(path: Path) -> YamlDocument:
    """Read a YAML file; UserError when it cannot be read or breaks a rule."""
    return parse_document(_read_text(path), name=str(path))


def _read_text(path: Path) -> str:
    name = str(path)
    try:
        content = read_at_most(path, MAX_BYTES)
    except IsADirectoryError:
        raise UserError(Problem(name, "is a folder, not a file", mend="name the YAML file in it")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem(name, f"cannot be read: {reason}", mend=_similar_file(path))) from None
    if len(content) > MAX_BYTES:
        mend = "a scenario is short; give a trace by `workload: {trace: {path: ...}}`"
        raise UserError(Problem(name, f"is larger than {MAX_BYTES} bytes", mend=mend))
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(Problem(f"{name}:1:1", "must be UTF-8 text, and is UTF-16", mend="save it as UTF-8"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8", "replace")
        line, column = line_and_column(before, len(before))
        bad = error.object[error.start : error.start + 1]
        place = f"{name}:{line}:{column}"
        raise UserError(Problem(place, "must be UTF-8 text, and a byte here is not", bad, "save it as UTF-8")) from None


def _similar_file(path: Path) -> str:
    try:
        names = [
            other.name
            for other in path.parent.iterdir()
            if other.suffix in (".yaml", ".yml") and other.name != path.name
        ]
    except (OSError, ValueError):
        return "check the path"
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "check the path"
