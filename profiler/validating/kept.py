"""The files of a replay: each run's requests and steps are written when it has ended, and read again by --resume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simbatch.profiler.validating.real_run import Run, segments_of
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import NEVER_PS, STATUS_NAMES, RequestColumns, RunRecord, StepRow
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.results import RunFacts, files
from simbatch.sim.results.columns import COUNT_COLUMNS, TIME_COLUMNS
from simbatch.sim.scheduler.config import EngineConfig

SETTING_FILE = "replay.json"
MAY_DIFFER = ("command", "seed", "total_bytes", "weights_bytes", "activation_bytes", "graphs_bytes", "kv_cache_bytes")


@dataclass(frozen=True)
class Kept:
    """A folder with the runs of one scenario on one engine; run 1 is in `run-1`."""

    folder: Path
    run_files: ClassVar[Sequence[str]] = ("steps.parquet", "requests.parquet")
    last_file: ClassVar[str] = "requests.parquet"  # with it a run is whole

    def begin(self, setting: Mapping[str, Any], *, resume: bool) -> int:
        """Remember what is replayed; returns how many whole runs of it there are to go on with.

        `setting` is plain data. Raises UserError when the folder's runs are of another setting; without `resume` they
        go away.
        """
        path, content = self.folder / SETTING_FILE, files.plain(setting)
        if resume and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for part in content:
                if _same(before.get(part)) != _same(content[part]):
                    rule = f"the runs in it are of another {part}"
                    raise UserError(Problem(str(self.folder), rule, mend="leave out --resume, or name another folder"))
            return self._num_whole()
        for number in range(self._num_whole(), 0, -1):
            for name in self.run_files:
                (self._of(number) / name).unlink(missing_ok=True)
        files.write_all(self.folder, {SETTING_FILE: lambda target: files.write_json(target, content)})
        return 0

    def _num_whole(self) -> int:
        number = 0
        while (self._of(number + 1) / self.last_file).exists():
            number += 1
        return number

    def _of(self, number: int) -> Path:
        return self.folder / f"run-{number}"


def _same(part: Any) -> Any:
    return {key: value for key, value in part.items() if key not in MAY_DIFFER} if isinstance(part, dict) else part
