"""Finished cells on disk: `<key>.json` holds what summary.json would, written beside its target and renamed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import json_text, write_text


@dataclass(frozen=True)
class CellStore:
    """A folder of finished cells by key; several processes may write to it at once."""

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

    def put(self, key: str, summary: dict[str, Any]) -> None:
        """Write it; UserError when the folder cannot be written to."""
        try:
            write_text(self.path_of(key), json_text(summary))
        except OSError as error:
            rule = f"a finished cell cannot be written: {error.strerror or error}"
            mend = "make room or choose another folder with -o; --resume keeps the cells that are there"
            raise UserError(Problem(str(self.folder), rule, mend=mend)) from error
