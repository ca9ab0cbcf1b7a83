"""Traces from `vllm bench serve --save-result --save-detailed`: one JSON document, so it is loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.traces.columns import values
from simbatch.sim.workload.traces.columns.assemble import assemble
from simbatch.sim.workload.traces.columns.header import check_header
from simbatch.sim.workload.traces.formats.lines import decode_json
from simbatch.sim.workload.traces.rows import BATCH_ROWS, Batch, Columns
from simbatch.sim.workload.traces.text import text_errors

BENCH = Columns("start_times", "input_lens", "output_lens")


class BenchReader:
    """The requests of a real run, ordered by their start and counted from the first one's."""

    hash_block_tokens = 0

    def __init__(self, path: Path, columns: Columns, ps_per_unit: int) -> None:
        self._path, self.columns = path, columns
        with text_errors(path):
            document = decode_json(path.read_text(encoding="utf-8-sig"), f"{path}")
        if not isinstance(document, dict):
            rule = "must be the JSON object that vllm bench serve writes"
            raise UserError(Problem(f"{path}:1", rule, document, "check the format"))
        self._check_saved_in_detail(document)
        check_header(list(document), columns, str(path))
        self.present = set(columns.required)
        self.ignored: set[str] = set()  # the rest are a run's results, not its requests
        self._batch = self._ordered(document, ps_per_unit)

    def _check_saved_in_detail(self, document: dict[str, Any]) -> None:
        if "input_lens" not in document and {"completed", "request_throughput"} & document.keys():
            rule = "has a run's totals only, not its requests"
            raise UserError(
                Problem(str(self._path), rule, mend="run vllm bench serve with --save-result --save-detailed")
            )

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
        batch = batch.keep(sorted(range(n), key=batch.arrival_ps.__getitem__))
        # a failed request has no output and may have no start either, so it does not say when the run began
        started = (ps for ps, output in zip(batch.arrival_ps, batch.num_output_tokens, strict=True) if output)
        first_ps = min(started, default=0)
        batch.arrival_ps = [ps - first_ps for ps in batch.arrival_ps]
        return batch

    def batches(self) -> Iterator[Batch]:
        """The loaded requests, in batches."""
        n = len(self._batch.arrival_ps)
        for first in range(0, n, BATCH_ROWS):
            yield self._batch.keep(list(range(first, min(first + BATCH_ROWS, n))))
