"""A cell: one simulation of many, a pure function of its resolved scenario, named by a hash of all it depends on.

A finished cell is kept as a summary under that hash, in one folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import json_text, write_text
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import resampling, resolve, seeds_of
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.reading import plain_value
from simbatch.sim.scenario.resolved import Fleet, Resolved


class Fingerprints:
    """Hashes of resolved scenarios, in which files count by what is in them; each file is read once."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._profiles: dict[str, str] = {}
        self._version = version("simbatch")

    def of(self, resolved: Resolved, data: dict[str, Any]) -> str:
        """Of everything but the seed."""
        content = {**self._by_content(data), "profile": self._profile(resolved, data), "host": None, "seed": None}
        kind = type(resolved.policy)
        source = None if kind.__module__.startswith("simbatch.policies.") else _source_of(kind)
        if source is not None:
            content["policy"] = {**content["policy"], "name": kind.__qualname__, "source": self._file(source)}
        if resolved.fleet is not None:
            content["cluster"] = {**content["cluster"], "by content": self._fleet(resolved.fleet, data["cluster"])}
        return digest(json.dumps([self._version, content], sort_keys=True).encode())

    def _fleet(self, fleet: Fleet, section: dict[str, Any]) -> list[str | None]:
        """The groups' profiles, and the router's source where it is the user's own."""
        kind = type(fleet.router)
        source = None if kind.__module__.startswith("simbatch.routers.") else _source_of(kind)
        parts = section.get("groups") or []
        profiles = [self._profile(g.resolved, part) for g, part in zip(fleet.groups, parts, strict=False)]
        return [None if source is None else self._file(source), *profiles]

    def _profile(self, resolved: Resolved, data: dict[str, Any]) -> str:
        """Of the profile with its host, whosever that is."""
        name = json.dumps([data["profile"], data.get("host")])
        if name not in self._profiles:
            self._profiles[name] = digest(resolved.profile.model_dump_json().encode())
        return self._profiles[name]

    def _by_content(self, data: dict[str, Any]) -> dict[str, Any]:
        return {key: self._value(key, value) for key, value in data.items()}

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self._by_content(value)
        if isinstance(value, list):
            return [self._value("", child) for child in value]
        return self._file(value) if key == "path" and isinstance(value, str) else value

    def _file(self, path: str) -> str:
        if path not in self._files:
            try:
                with Path(path).open("rb") as file:
                    self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except (OSError, ValueError):  # the simulation says what is wrong with it
                self._files[path] = path
        return self._files[path]


def _source_of(kind: type) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except (OSError, TypeError):  # typed at a prompt
        return None


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class CellStore:
    """A folder of finished cells, `<key>.json` with what summary.json would hold; several processes may write to it."""

    folder: Path

    def path_of(self, key: str) -> Path:
        """Where a cell's summary stands, or will."""
        return self.folder / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether the cell is finished; a file that is not JSON (a disk that was full) counts for nothing."""
        return self.get(key) is not None

    def get(self, key: str) -> dict[str, Any] | None:
        """The summary, or None when there is none."""
        try:
            found = json.loads(self.path_of(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def those(self, keys: Iterable[str]) -> dict[str, Summary]:
        """The summaries of those that are finished."""
        found = {key: self.get(key) for key in keys}
        return {key: summary for key, summary in found.items() if summary is not None}

    def put(self, key: str, summary: Summary) -> None:
        """Write it; UserError when the folder cannot be written to."""
        try:
            write_text(self.path_of(key), json_text(summary))
        except OSError as error:
            rule = f"a finished cell cannot be written: {error.strerror or error}"
            mend = "make room or choose another folder with -o; --resume keeps the cells that are there"
            raise UserError(Problem(str(self.folder), rule, mend=mend)) from error


Settings = Mapping[str, Any]  # dotted keys of a scenario to values
KEY_LENGTH = 20  # hexadecimal digits: no two of a million cells are alike by chance
MAX_PROBLEMS = 20
_POLICY, _ROUTER = "policy.name", "cluster.router.name"


@dataclass(frozen=True)
class Cell:
    """What `settings` and `seed` make of a scenario, as plain data that any process can run.

    `policy`: an object in place of the scenario's, which goes to the process with the rest.
    """

    settings: dict[str, Any]
    seed: int
    scenario: dict[str, Any]
    folder: Path
    name: str
    key: str
    policy: Policy | None = None

    def label(self) -> str:
        """The settings and the seed, for a message."""
        shown = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.settings.items()]
        return " ".join([*shown, f"seed={self.seed}"])


def cells_of(
    scenario: Scenario,
    settings: Sequence[Settings],
    seeds: Sequence[int],
    *,
    places: Sequence[Mapping[str, str]] | None = None,
    policy: Policy | None = None,
) -> list[Cell]:
    """Every entry of `settings` under every seed, in that order; nothing has run yet.

    A `policy.name` or `cluster.router.name` other than the scenario's starts from its own defaults. `places` says where
    each value comes from, for the messages; `policy` is an object in place of the scenario's, and two of them are never
    taken for one. Raises one UserError with the problems of all cells.
    """
    _check_seeds(scenario, seeds)
    origins = places or [dict.fromkeys(chosen, "setting") for chosen in settings]
    return _cells(scenario, settings, origins, lambda changed: (changed, seeds), policy)


def replicated_cells(
    scenario: Scenario, settings: Sequence[Settings], count: int, *, places: Sequence[Mapping[str, str]]
) -> list[Cell]:
    """`count` runs of each: under as many seeds, of a trace resampled in blocks, or one where no seed changes anything.

    Raises one UserError with the problems of all cells, as `cells_of`.
    """
    _check_seeds(scenario, [scenario.seed + count - 1])

    def runs_of(changed: Scenario) -> tuple[Scenario, Sequence[int]]:
        return changed.override(resampling(changed)), seeds_of([changed], count)

    return _cells(scenario, settings, places, runs_of)


def _cells(
    scenario: Scenario,
    settings: Sequence[Settings],
    origins: Sequence[Mapping[str, str]],
    runs_of: Callable[[Scenario], tuple[Scenario, Sequence[int]]],
    policy: Policy | None = None,
) -> list[Cell]:
    problems: list[Problem] = []
    fingerprints = Fingerprints()
    cells: list[Cell] = []
    for chosen, origin in zip(settings, origins, strict=True):
        try:
            changed, seeds = runs_of(_changed(scenario, chosen, origin))
            cells += _seeded(resolve(changed, policy), chosen, seeds, fingerprints, policy)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*_shortened(problems))
    return cells


def evaluate(cell: Cell) -> Summary:
    """Simulate: the content of summary.json. Raises UserError, its places after the cell's settings."""
    from simbatch.sim.files import plain
    from simbatch.sim.search import simulate

    try:
        scenario = Scenario.from_dict(cell.scenario, folder=cell.folder, name=cell.name)
        summary: Summary = plain(simulate(scenario, cell.policy).summary)
    except UserError as error:
        at = f"cell {cell.label()}: "
        raise UserError(*(replace(problem, place=at + problem.place) for problem in error.problems)) from error
    return summary


class Outcome(NamedTuple):
    """What became of a cell: its summary, or what the user must mend."""

    key: str
    summary: Summary | None
    problems: tuple[Problem, ...] = ()


def attempt(cell: Cell) -> Outcome:
    """Evaluate; what goes wrong is the outcome."""
    try:
        return Outcome(cell.key, evaluate(cell))
    except UserError as error:
        return Outcome(cell.key, None, error.problems)
    except MemoryError:
        return failed_cell(cell, "not enough memory", "simulate fewer requests, or take fewer --jobs")
    except SystemExit as end:
        return failed_cell(cell, f"the policy ended the program by sys.exit({end.code!r})", "remove that call")


def failed_cell(cell: Cell, rule: str, mend: str) -> Outcome:
    """What became of a cell that has no summary."""
    return Outcome(cell.key, None, (Problem(f"cell {cell.label()}", rule, mend=mend),))


def _changed(scenario: Scenario, settings: Settings, places: Mapping[str, str]) -> Scenario:
    values, origins = dict(settings), dict(places)
    name = values.get(_POLICY)
    if isinstance(name, str) and name != scenario.policy.name:
        del values[_POLICY]
        values = {"policy": {"name": name}, **values}
        origins["policy"] = origins[_POLICY]
    router = values.get(_ROUTER)
    own = scenario.cluster.router.name if scenario.cluster is not None else None
    if isinstance(router, str) and router != own:
        del values[_ROUTER]
        values = {"cluster.router": {"name": router}, **values}
        origins["cluster.router"] = origins[_ROUTER]
    return scenario.override(values, origin=origins)


def _seeded(
    resolved: Resolved,
    settings: Settings,
    seeds: Sequence[int],
    fingerprints: Fingerprints,
    policy: Policy | None,
) -> Iterable[Cell]:
    data = resolved.dump()
    folder, name = resolved.scenario.folder.absolute(), resolved.scenario.name
    fingerprint = fingerprints.of(resolved, data)
    if policy is not None:  # what such an object does is known to nobody but itself
        fingerprint = f"{fingerprint} object {id(policy)}"
    for seed in seeds:
        key = digest(json.dumps([fingerprint, name, seed]).encode())[:KEY_LENGTH]
        yield Cell(plain_value(settings, "setting"), seed, {**data, "seed": seed}, folder, name, key, policy)


def _check_seeds(scenario: Scenario, seeds: Sequence[int]) -> None:
    for seed in seeds:
        scenario.override({"seed": seed}, origin="--replications")


def _shortened(problems: Sequence[Problem]) -> list[Problem]:
    """Each once: one wrong value makes many cells wrong."""
    different = {str(problem): problem for problem in problems}
    shown = list(different.values())[:MAX_PROBLEMS]
    if len(different) > len(shown):
        shown.append(Problem("sweep", f"{len(different) - len(shown):,} more problems like these", mend="mend these"))
    return shown
