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
from simbatch.sim.workload.bench.document import Document, documents, read_text
from simbatch.sim.workload.bench.read import is_result, results_of
from simbatch.sim.workload.bench.run import BenchRun, BenchTotals
from simbatch.sim.workload.bench.sending import sending_of
from simbatch.sim.workload.traces import values
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Batch, Columns, assemble, check_header

BENCH = Columns("start_times", "input_lens", "output_lens")


class BenchReader:
    """The requests of a real run, ordered by their start and counted from the first one's.

    `max_concurrency` and `notes` are of a run whose times of sending are not in the file: it is sent as it was then.
    `run` chooses one of several, from 0. Raises UserError for several when none is chosen, and for totals.
    """

    hash_block_tokens = 0

    def __init__(self, path: Path, columns: Columns, ps_per_unit: int, run: int | None = None) -> None:
        self._path, self.columns = path, columns
        self.present = set(columns.required)
        self.ignored: set[str] = set()  # the rest are a run's results, not its requests
        self.max_concurrency: int | None = None
        self.has_times = True
        self.notes: tuple[str, ...] = ()
        read = list(documents(path, read_text(path)))
        if len(read) == 1 and run is None and self._has_lists(read[0]):
            self._batch = self._ordered(read[0].value, ps_per_unit)
        else:
            self._batch = self._of_run(_chosen(path, read, run))

    def _has_lists(self, document: Document) -> bool:
        """Whether it is vLLM's or SGLang's with times of sending, or a malformed one, which is explained by column."""
        value = document.value
        if not isinstance(value, dict):
            return False
        if self.columns.arrival not in value and is_result([document]):
            return False
        check_header(list(value), self.columns, str(self._path))
        return True

    def place(self, line: int, column: str) -> str:
        """`bench.json input_lens[17]`: lists, counted from 0."""
        return f"{self._path} {column}[{line}]"

    def _ordered(self, document: dict[str, Any], ps_per_unit: int) -> Batch:
        lists = {name: document[name] for name in self.columns.required}
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

        n = lengths[self.columns.arrival]
        batch = assemble(self.columns, self.place, values.times(ps_per_unit), range(n), find, typed=True)
        return _counted_from_first(batch)

    def _of_run(self, run: BenchRun) -> Batch:
        sending = sending_of(run)
        self.notes = run.notes
        if run.sent_s is None:
            self.max_concurrency, self.notes = sending.max_concurrency, (*run.notes, *sending.notes)
            self.has_times = sending.planned_s is not None
        times_s = sending.sent_s if run.sent_s is not None else sending.planned_s
        arrival_s = np.zeros(len(run)) if times_s is None else times_s - times_s.min()
        return _counted_from_first(
            Batch(
                lines=range(len(run)),
                arrival_ps=np.round(arrival_s * PS_PER_S).astype(np.int64).tolist(),
                num_prompt_tokens=run.num_prompt_tokens.tolist(),
                num_output_tokens=run.num_output_tokens.tolist(),
            )
        )

    def batches(self) -> Iterator[Batch]:
        """The loaded requests, in batches."""
        n = len(self._batch.arrival_ps)
        for first in range(0, n, BATCH_ROWS):
            yield self._batch.keep(list(range(first, min(first + BATCH_ROWS, n))))


def _counted_from_first(batch: Batch) -> Batch:
    batch = batch.keep(sorted(range(len(batch.arrival_ps)), key=batch.arrival_ps.__getitem__))
    # a failed request has no output and may have no start either, so it does not say when the run began
    started = (ps for ps, output in zip(batch.arrival_ps, batch.num_output_tokens, strict=True) if output)
    first_ps = min(started, default=0)
    batch.arrival_ps = [ps - first_ps for ps in batch.arrival_ps]
    return batch


def _chosen(path: Path, read: Sequence[Document], run: int | None) -> BenchRun:
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
