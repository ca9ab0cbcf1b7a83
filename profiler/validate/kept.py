"""The files of real runs: each is written when it has ended, and read again by --resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import plain, write_all, write_json
from simbatch.sim.json_values import json_object

RESULT_FILE = "result.json"  # of each run: that of `vllm bench serve --save-detailed`; with it a run is whole
CUT_FILE = "cut-off.json"  # of a run that did not end: the requests that did
STEPS_FILE = "steps.jsonl"  # what the recorder of a server of our own wrote meanwhile
RUN_FILES = (RESULT_FILE, CUT_FILE, STEPS_FILE)
SETTING_FILE = "replay.json"
MAY_DIFFER = ("command", "seed", "total_bytes", "weights_bytes", "activation_bytes", "graphs_bytes", "kv_cache_bytes")


@dataclass(frozen=True)
class KeptRuns:
    """A folder with the runs of one scenario on one server; run 1 is in `run-1`."""

    folder: Path

    def begin(self, setting: Mapping[str, Any], *, resume: bool) -> int:
        """Remember what is replayed; returns how many whole runs of it there are to go on with.

        `setting` is plain data. Raises UserError when the folder's runs are of another setting; without `resume` they
        go away.
        """
        path, content = self.folder / SETTING_FILE, plain(setting)
        if resume and path.exists():
            before = json_object(path.read_text(encoding="utf-8"), path)
            for part in content:
                if _same(before.get(part)) != _same(content[part]):
                    rule = f"the runs in it are of another {part}"
                    raise UserError(Problem(str(self.folder), rule, mend="leave out --resume, or name another folder"))
            return self._num_whole()
        for number in range(self._num_whole(), 0, -1):
            for name in RUN_FILES:
                (self.of(number) / name).unlink(missing_ok=True)
        write_all(self.folder, {SETTING_FILE: lambda target: write_json(target, content)})
        return 0

    def keep(self, number: int, name: str, content: Mapping[str, Any], steps: bytes = b"") -> None:
        """Write a run, or what there is of it; `steps` are the recorder's lines."""
        writers: dict[str, Callable[[Path], None]] = {name: lambda path: write_json(path, content)}
        if steps:
            writers = {STEPS_FILE: partial(_write, steps), **writers}
        write_all(self.of(number), writers, RUN_FILES)

    def of(self, number: int) -> Path:
        """The folder of a run."""
        return self.folder / f"run-{number}"

    def _num_whole(self) -> int:
        number = 0
        while (self.of(number + 1) / RESULT_FILE).exists():
            number += 1
        return number


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _same(part: Any) -> Any:
    return {key: value for key, value in part.items() if key not in MAY_DIFFER} if isinstance(part, dict) else part
