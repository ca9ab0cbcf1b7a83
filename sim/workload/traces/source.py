"""A trace file as a source of requests: what all formats must keep to, and what a scenario sets about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.workload.chunk import RequestChunk
from simbatch.sim.workload.synthetic import Purpose, draw_shares, stream
from simbatch.sim.workload.trace_model import Trace, TraceFormat
from simbatch.sim.workload.traces.rows import Batch, Reader
from simbatch.sim.workload.traces.values import MAX_PS


class TraceSource:
    """A `RequestSource` that reads a file in batches, from its start at every `chunks()`."""

    num_requests: int | None = None
    think_time_ps = 0

    def __init__(
        self,
        path: Path,
        trace_format: TraceFormat,
        reader: Reader,
        settings: Trace,
        *,
        max_concurrency: int | None = None,
        priorities: list[tuple[int, float]] | None = None,
        tenants: list[tuple[str | None, float]] | None = None,
        seed: int = 0,
    ) -> None:
        self.path, self.format = path, trace_format
        self.hash_block_tokens = reader.hash_block_tokens
        self.has_times: bool = getattr(reader, "has_times", True)  # False: sent as soon as a place is free
        self.notes: tuple[str, ...] = getattr(reader, "notes", ())  # on what the file does not say
        self.max_concurrency = max_concurrency
        self.skipped = 0
        self._reader, self._settings = reader, settings
        self._priorities, self._tenants, self._seed = priorities or [], tenants or [], seed
        self._has_ids: bool | None = None  # by the first batch
        self._has_tenants: bool | None = None  # by the batches so far

    @property
    def foretells(self) -> bool:
        """Whether the file says what was predicted of the output lengths."""
        return self._reader.columns.predicted_output_tokens in self._reader.present

    @property
    def ignored(self) -> set[str]:
        """Columns of the file that mean nothing here; complete when all is read."""
        return self._reader.ignored

    def chunks(self) -> Iterator[RequestChunk]:
        """Read the file; UserError for a malformed row, and for a file without requests."""
        self.skipped = num_requests = 0
        self._has_ids = self._has_tenants = None
        first_ps = last = None
        priorities, tenants = (stream(self._seed, purpose) for purpose in (Purpose.PRIORITIES, Purpose.TENANTS))
        limit = self._settings.limit
        for batch in self._reader.batches():
            kept = self._without_empty(batch, None if limit is None else limit - num_requests)
            if kept.arrival_ps:
                last = self._check(kept, last)
                if first_ps is None:
                    first_ps = kept.arrival_ps[0] if self.format == "azure" else 0
                num_requests += len(kept.arrival_ps)
                n = len(kept.arrival_ps)
                drawn = draw_shares(self._priorities, priorities, n), draw_shares(self._tenants, tenants, n)
                yield self._chunk(kept, first_ps, *drawn)
            if num_requests == limit:
                break
        if num_requests == 0:
            rule = "the trace has no requests"
            rule += f": all its {self.skipped} rows are without output tokens" if self.skipped else ""
            raise UserError(Problem(str(self.path), rule, mend="name another file"))

    def _without_empty(self, batch: Batch, room: int | None) -> Batch:
        """The first `room` rows with output tokens; the others before them are counted, or an error."""
        outputs, skip = batch.num_output_tokens, self._settings.on_empty == "skip"
        if 0 not in outputs[:room] and (room is None or room >= len(outputs)):
            return batch
        indices: list[int] = []
        for i, output in enumerate(outputs):
            if len(indices) == room:
                break
            if output:
                indices.append(i)
            elif skip:
                self.skipped += 1
            else:
                mend = "remove the row, or set on_empty: skip, which counts it"
                raise self._error(
                    batch, i, self._reader.columns.num_output_tokens, "a request needs output tokens", 0, mend
                )
        return batch.keep(indices)

    def _error(self, batch: Batch, i: int, column: str, rule: str, value: object, mend: str) -> UserError:
        return UserError(Problem(self._reader.place(batch.lines[i], column), rule, value, mend))

    def _check(self, batch: Batch, last: int | None) -> int:
        """What holds for a row beside its neighbours and its other columns; returns the last arrival."""
        columns, times = self._reader.columns, batch.arrival_ps
        if 0 in batch.num_prompt_tokens:
            i = batch.num_prompt_tokens.index(0)
            rule = "a request needs prompt tokens"
            raise self._error(batch, i, columns.num_prompt_tokens, rule, 0, "fill it in, or remove the row")
        before = [times[0] if last is None else last, *times[:-1]]
        if any(map(int.__gt__, before, times)):
            i = next(i for i, (a, b) in enumerate(zip(before, times, strict=True)) if a > b)
            rule = f"is {(before[i] - times[i]) / 1e12:g} s earlier than the request before it"
            raise self._error(batch, i, columns.arrival, rule, NOTHING, f"sort the file by {columns.arrival}")
        if self._has_ids is None:
            self._has_ids = batch.request_id is not None
        elif self._has_ids != (batch.request_id is not None):
            rule, mend = "stands in some rows only", "give every row one, or none"
            raise self._error(batch, 0, columns.request_id or "", rule, NOTHING, mend)
        if self.foretells != (batch.predicted_output_tokens is not None):
            name, rule = columns.predicted_output_tokens or "", "stands in some rows only"
            raise self._error(batch, 0, name, rule, NOTHING, "give every row a prediction, or none")
        if batch.hash_ids is not None:
            self._check_hashes(batch, batch.hash_ids)
        return times[-1]

    def _check_hashes(self, batch: Batch, rows: list[tuple[int, ...] | None]) -> None:
        h, columns = self.hash_block_tokens, self._reader.columns
        for i, (hashes, prompt) in enumerate(zip(rows, batch.num_prompt_tokens, strict=True)):
            if hashes is not None and not prompt // h <= len(hashes) <= -(-prompt // h):
                low, high = prompt // h, -(-prompt // h)
                expected = f"{low} or {high}" if low != high else f"{low}"
                rule = f"a prompt of {prompt} tokens has {expected} hashes of {h} tokens each"
                mend = "set hash_block_tokens to what one hash stands for"
                raise self._error(batch, i, columns.hash_ids or "", rule, len(hashes), mend)

    def _chunk(
        self, batch: Batch, first_ps: int, priority: list[int] | None, tenant: list[str | None] | None
    ) -> RequestChunk:
        for name, drawn, given in (("priorities", priority, batch.priority), ("tenants", tenant, batch.tenant)):
            if drawn is not None and given is not None:
                rule = f"{self.path} has {name} of its own"
                raise UserError(Problem(f"workload.{name}", rule, mend=f"leave {name} out"))
        self._has_tenants = self._has_tenants or batch.tenant is not None
        times, scale = batch.arrival_ps, self._settings.rate_scale
        if first_ps:
            times = [ps - first_ps for ps in times]
        if scale != 1:
            times = [round(ps / scale) for ps in times]
        if times[-1] > MAX_PS:
            clock_s = f"{MAX_PS / PS_PER_S:.0f} s (106 days)"
            rule = f"is {times[-1] / PS_PER_S:.0f} s after the trace's start, and the clock holds {clock_s}"
            mend = "use limit, or mend the time" if scale == 1 else "raise rate_scale, or use limit"
            raise self._error(batch, len(times) - 1, self._reader.columns.arrival, rule, NOTHING, mend)
        return RequestChunk(
            arrival_ps=times,
            num_prompt_tokens=batch.num_prompt_tokens,
            num_output_tokens=batch.num_output_tokens,
            priority=batch.priority if priority is None else priority,
            request_id=batch.request_id,
            tenant=tenant or batch.tenant or ([None] * len(times) if self._has_tenants else None),
            predicted_output_tokens=batch.predicted_output_tokens,
            hash_ids=None if batch.hash_ids is None else [hashes or () for hashes in batch.hash_ids],
        )
