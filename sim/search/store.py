"""What a finished cell is known by and where it is kept: a hash of what it depends on, a folder of summaries."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import json_text, write_text
from simbatch.sim.results.runs import Summary
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
