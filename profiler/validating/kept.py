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

    def write(self, number: int, run: Run) -> None:
        """Keep a whole run."""
        writers = {
            "steps.parquet": lambda path: files.write_steps(path, run.record),
            "requests.parquet": lambda path: _write_requests(path, run),
        }
        files.write_all(self._of(number), writers)

    def read(self, number: int, config: EngineConfig, facts: RunFacts) -> Run:
        """A run that was kept."""
        import pyarrow.parquet as pq

        table = pq.read_table(self._of(number) / "requests.parquet").to_pydict()
        index = {name: i for i, name in enumerate(table["request_id"])}
        steps = [_step(row, index) for row in pq.read_table(self._of(number) / "steps.parquet").to_pylist()]
        columns: dict[str, Any] = {f"{name.removesuffix('_s')}_ps": _ps(table[name]) for name in TIME_COLUMNS}
        columns |= {name: np.array(table[name], dtype=np.int64) for name in COUNT_COLUMNS}
        requests = RequestColumns(
            **columns,
            status=np.array([STATUS_NAMES.index(name) for name in table["status"]], dtype=np.int8),
            request_id=table["request_id"],
            reason={i: reason for i, reason in enumerate(table.get("reason", ())) if reason is not None},
        )
        record = RunRecord(
            requests=requests,
            segments=segments_of(steps, requests.num_prompt_tokens),
            gaps=_ps(list(chain.from_iterable(table["itl_s"]))),
            num_preemptions=int(requests.num_preemptions.sum()),
            end_ps=int(requests.finish_ps.max(initial=0)),
            num_gpu_blocks=config.num_gpu_blocks,
            block_size=config.block_size,
            client_overhead_ps=0,
            event_loop_cpu_s=0.0,
            steps=steps,
        )
        return Run(record, facts, _ps(table["taken_in_s"]), table["itl_s"], table.get("admission_s", ()))

    def _num_whole(self) -> int:
        number = 0
        while (self._of(number + 1) / self.last_file).exists():
            number += 1
        return number

    def _of(self, number: int) -> Path:
        return self.folder / f"run-{number}"


def _write_requests(path: Path, run: Run) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    taken_in_ps = run.taken_in_ps if run.taken_in_ps is not None else np.zeros(0)
    requests = replace(run.record.requests, queued_ps=run.taken_in_ps)
    table = files.requests_table(replace(run.record, requests=requests))
    table = table.append_column("taken_in_s", pa.array(taken_in_ps / PS_PER_S))
    table = table.append_column("itl_s", pa.array(run.itl_s or [[] for _ in range(len(table))], pa.list_(pa.float64())))
    table = table.append_column("admission_s", pa.array(run.admission_s or [None] * len(table), pa.float64()))
    pq.write_table(table, path)


def _step(row: dict[str, Any], index: Mapping[str, int]) -> StepRow:
    times = {f"{name}_ps": _whole_ps(row.pop(f"{name}_s", None)) for name in files.STEP_TIMES}
    row.pop("replica", None)
    entries = [(index[e["request_id"]], e["num_tokens"], e["num_computed_tokens"]) for e in row.pop("scheduled")]
    return StepRow(**{**row, **times, "scheduled": entries, "preempted": [], "finished": []})


def _ps(times_s: list[float | None]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([_whole_ps(time_s) for time_s in times_s], dtype=np.int64)


def _whole_ps(time_s: float | None) -> int:
    return NEVER_PS if time_s is None else round(time_s * PS_PER_S)


def _same(part: Any) -> Any:
    return {key: value for key, value in part.items() if key not in MAY_DIFFER} if isinstance(part, dict) else part
