"""Traces from the results of benchmarks: whole JSON documents, so they are loaded whole.

`vllm bench serve` and SGLang's client need their lengths and times of sending alone; the others, and results without
times of sending, are read as `simbatch validate --recorded` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, json_values
from simbatch.sim.text import cut_short
from simbatch.sim.workload.bench.read import is_result, results_of
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals, read_text
from simbatch.sim.workload.bench.sending import sending_of
from simbatch.sim.workload.columns import Columns
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Head, Reading, RowBatch, assemble
from simbatch.sim.workload.traces.times import Clock


class BenchReader:
    """The requests of a real run, ordered by their start and counted from the first one's.

    `max_concurrency` and `notes` are of a run whose times of sending are not in the file: it is sent as it was then.
    `run` chooses one of several, from 0. Raises UserError for several when none is chosen, and for totals.
    """

    hash_block_tokens = 0

    def __init__(self, path: Path, columns: Columns, clock: Clock, run: int | None, *, lengths_only: bool) -> None:
        self._path, self.columns, self.clock = path, columns, clock
        self.present = set(filter(None, columns))
        self.ignored: set[str] = set()  # the rest are a run's results, not its requests
        self.max_concurrency: int | None = None
        self.has_times = True
        self.notes: tuple[str, ...] = ()
        read = list(json_values(path, read_text(path)))
        if len(read) == 1 and run is None and self._has_lists(read[0]):
            self._batch = self._ordered(read[0].value)
        else:
            self._batch = self._of_run(_chosen(path, read, run), lengths_only=lengths_only)

    def _has_lists(self, document: JsonValue) -> bool:
        """Whether it is vLLM's or SGLang's with times of sending, or a malformed one, which is explained by column."""
        value = document.value
        if not isinstance(value, dict):
            return False
        if self.columns.arrival not in value and is_result([document]):
            return False
        missing = [name for name in self.columns[:3] if name not in value]
        if missing:
            rule = f"the list is missing; the file has {cut_short(value)}"
            mend = "record with --save-result --save-detailed, or check the format"
            raise UserError(*(Problem(f"{self._path} {name}", rule, mend=mend) for name in missing))
        return True

    def place(self, line: int, column: str) -> str:
        """`bench.json input_lens[17]`: lists, counted from 0."""
        return f"{self._path} {column}[{line}]"

    def _ordered(self, document: dict[str, Any]) -> RowBatch:
        lists = {name: document[name] for name in self.columns[:3] if name}
        for name, found in lists.items():
            if not isinstance(found, list):
                raise UserError(Problem(f"{self._path} {name}", "must be a list", found, "check the format"))
        lengths = {name: len(found) for name, found in lists.items()}
        if len(set(lengths.values())) > 1:
            rule = "the lists must have the same length"
            raise UserError(
                Problem(f"{self._path} {', '.join(lists)}", rule, list(lengths.values()), "write the file again")
            )

        def find(name: str) -> Sequence[object] | None:
            return lists.get(name)

        n = lengths[self.columns.arrival or ""]
        head = Head("list", list(lists), {}, str(self._path))
        reading = Reading(head, self.columns, self.clock, 0)
        return _ordered(assemble(reading, self.place, range(n), find))

    def _of_run(self, run: BenchRun, *, lengths_only: bool) -> RowBatch:
        self.notes = run.notes
        times_s = run.sent_s
        if times_s is None and not lengths_only:
            sending = sending_of(run)
            self.max_concurrency, self.notes = sending.max_concurrency, (*run.notes, *sending.notes)
            self.has_times, times_s = sending.planned_s is not None, sending.planned_s
        arrival_s = np.zeros(len(run)) if times_s is None else times_s - times_s.min()
        return _ordered(
            RowBatch(
                lines=range(len(run)),
                arrival=np.round(arrival_s * PS_PER_S).astype(np.int64),
                num_prompt_tokens=run.num_prompt_tokens,
                num_output_tokens=run.num_output_tokens,
            )
        )

    def count(self) -> int:
        """All requests of the run."""
        return len(self._batch)

    def batches(self) -> Iterator[RowBatch]:
        """The loaded requests, in batches."""
        n = len(self._batch)
        for first in range(0, n, BATCH_ROWS):
            yield self._batch.keep(np.arange(first, min(first + BATCH_ROWS, n)))


def _ordered(batch: RowBatch) -> RowBatch:
    batch.lines = np.array(batch.lines)
    return batch.keep(np.argsort(batch.arrival, kind="stable"))


def _chosen(path: Path, read: Sequence[JsonValue], run: int | None) -> BenchRun:
    found = results_of(path, read)
    if run is None and len(found) > 1:
        rule = f"has {len(found)} runs, and a trace is one"
        raise UserError(Problem(str(path), rule, mend="write the one you mean to a file of its own"))
    chosen = found[run or 0]
    if isinstance(chosen, BenchTotals):
        rule = "has a run's totals only, not its requests"
        mend = "run vllm bench serve with --save-result --save-detailed"
        raise UserError(Problem(chosen.place, rule, mend=mend))
    return chosen
