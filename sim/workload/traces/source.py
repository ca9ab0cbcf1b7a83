"""A trace file as a source of requests: what all formats must keep to, and what a scenario sets about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.text import cut_short
from simbatch.sim.workload.chunk import CHUNK_SIZE, Purpose, RequestChunk, draw_shares, stream
from simbatch.sim.workload.files import BadValueError
from simbatch.sim.workload.trace_model import Trace
from simbatch.sim.workload.traces.columns import words_of
from simbatch.sim.workload.traces.rows import Ints, Reader, RowBatch
from simbatch.sim.workload.traces.sessions import TurnRows, conversations_of
from simbatch.sim.workload.traces.times import MAX_PS, too_late
from simbatch.sim.workload.turns import Turns

_SESSIONS = {"session", "conversation"}
_SENT = {"turn", "client_finish_s"}  # columns of our requests.parquet, where arrival_s is when a request was sent
_IMAGES = {"image", "images", "numimages", "video", "videos", "audio", "audios"}


class TraceSource:
    """A `RequestSource` that reads a file in batches, from its start at every `chunks()`.

    Times count from the first request that is taken. `has_order` False: rows are taken as they stand, for lengths.
    """

    num_requests: int | None = None
    think_time_ps = 0

    def __init__(
        self,
        path: Path,
        trace_format: str,
        reader: Reader,
        settings: Trace,
        *,
        max_concurrency: int | None = None,
        priorities: list[tuple[int, float]] | None = None,
        tenants: list[tuple[str | None, float]] | None = None,
        seed: int = 0,
        notes: tuple[str, ...] = (),
        has_order: bool = True,
        has_turns: bool = False,
    ) -> None:
        self.path, self.format = path, trace_format
        self.hash_block_tokens = reader.hash_block_tokens
        self.has_times: bool = getattr(reader, "has_times", True)  # False: sent as soon as a place is free
        self.max_concurrency = None if has_turns else max_concurrency
        self.skipped = 0
        self._notes = notes
        self._reader, self._settings, self._has_order = reader, settings, has_order
        self._has_turns, self._users = has_turns, max_concurrency if has_turns else None
        self._priorities, self._tenants, self._seed = priorities or [], tenants or [], seed
        self._taken: int | None = None  # rows, when all is read
        self._first = 0  # when the first of them came, ps since the file's first row
        self._has_ids: bool | None = None  # by the first batch
        self._has_tenants: bool | None = None  # by the batches so far

    @property
    def foretells(self) -> bool:
        """Whether the file says what was predicted of the output lengths."""
        return self._reader.columns.predicted_output in self._reader.present

    @property
    def ignored(self) -> set[str]:
        """Columns of the file that mean nothing here; complete when all is read."""
        return self._reader.ignored

    @property
    def notes(self) -> tuple[str, ...]:
        """How the file was read, and what in it was not; complete when all is read."""
        images = sorted(name for name in self.ignored if _IMAGES & set(words_of(name)))
        pictured = [f"only text is simulated: {', '.join(images)} would add to the prompts"] if images else []
        sessions = sorted(name for name in self.ignored if _SESSIONS & set(words_of(name)))
        if sessions and not self._has_turns:
            names, mend = ", ".join(sessions), f"--columns session={sessions[0]}, if a row waits for the one before it"
            pictured.append(f"conversations are not followed: {names}; rows go at their own times ({mend})")
        told = self._conversations.notes if "_conversations" in self.__dict__ else ()
        return (*self._notes, *getattr(self._reader, "notes", ()), *told, *pictured, *self._left_out())

    @property
    def turns(self) -> Turns | None:
        """Which rows wait for which, where the file says so: then all of it is read at once, and kept."""
        return self._conversations.turns if self._has_turns else None

    def _left_out(self) -> Iterator[str]:
        """How many rows `between` and `limit` left out."""
        limits = {key: getattr(self._settings, key) for key in ("between", "limit") if getattr(self._settings, key)}
        if limits and self._taken is not None:
            total = self._conversations.num_read if self._has_turns else self._reader.count()
            if left := total - self._taken - self.skipped:
                why = ", ".join(f"{key}: {value}" for key, value in limits.items())
                yield f"{left:,} of its {total:,} rows {'was' if left == 1 else 'were'} left out ({why})"

    def moment(self, since_ps: int) -> str | int | float:
        """What the file's own clock says so long after the first request, as `between` takes it; complete when read."""
        clock = self._reader.clock
        return clock.shown((clock.origin or 0) + self._first + since_ps)

    def unread(self) -> list[str]:
        """One sentence for each thing of the file that was not simulated, and for how it was read."""
        lines = list(self.notes)
        if self.ignored:
            lines.append(f"columns not used: {cut_short(sorted(self.ignored))}")
        if self.skipped:
            rows = "row without output tokens was" if self.skipped == 1 else "rows without output tokens were"
            lines.append(f"{self.skipped:,} {rows} left out (on_empty: skip)")
        return [f"{self.path.name}: {line}" for line in lines]

    def chunks(self) -> Iterator[RequestChunk]:
        """Read the file; UserError for a malformed row, and for a file without requests."""
        self.skipped, self._taken, num_requests = 0, None, 0
        self._has_ids = self._has_tenants = None
        if self._has_turns:
            yield from self._turn_chunks()
            return
        last, limit = None, self._settings.limit
        priorities, tenants = (stream(self._seed, purpose) for purpose in (Purpose.PRIORITIES, Purpose.TENANTS))
        for batch in self._ordered():
            kept = self._without_empty(batch, None if limit is None else limit - num_requests)
            if len(kept):
                last = self._check(kept, last)
                self._first = self._first if num_requests else int(kept.arrival[0])
                num_requests += len(kept)
                levels = draw_shares(self._priorities, priorities, len(kept))
                names = draw_shares(self._tenants, tenants, len(kept))
                yield self._chunk(kept, self._times(kept), levels, names)
            if num_requests == limit:
                break
        if num_requests == 0:
            raise self._nothing()
        self._taken = num_requests

    def _nothing(self) -> UserError:
        rule = "the trace has no requests"
        rule += f" between {' and '.join(map(str, self._settings.between))}" if self._settings.between else ""
        rule += f": all its {self.skipped} rows are without output tokens" if self.skipped else ""
        return UserError(Problem(str(self.path), rule, mend="name another file, or other rows of it"))

    @cached_property
    def _conversations(self) -> TurnRows:
        """All rows of a file with sessions; UserError for a malformed one."""
        if not (batches := list(self._reader.batches())):
            raise self._nothing()
        rows = RowBatch.joined(batches)
        bounds = None if self._settings.between is None else self._bounds(*self._settings.between)
        columns, are_sent = self._reader.columns, self._reader.ignored >= _SENT and rows.delay_ps is not None
        found = conversations_of(rows, columns, self._reader.place, self._settings, bounds, are_sent=are_sent)
        self.skipped = found.num_skipped
        if not len(found.rows):
            raise self._nothing()
        turns = None if found.turns is None else replace(found.turns, max_sessions=self._users)
        return found._replace(turns=turns)

    def _turn_chunks(self) -> Iterator[RequestChunk]:
        """The rows of a file with sessions; what is drawn is drawn for a session."""
        found = self._conversations
        rows, times, turns = found.rows, found.times_ps, found.turns
        self.skipped, self._taken = found.num_skipped, len(rows)
        number = range(len(rows)) if turns is None else turns.session
        num_sessions = max(number) + 1
        priorities = draw_shares(self._priorities, stream(self._seed, Purpose.PRIORITIES), num_sessions)
        tenants = draw_shares(self._tenants, stream(self._seed, Purpose.TENANTS), num_sessions)
        begin = 0
        for batch in rows.parts(CHUNK_SIZE):
            part = slice(begin, begin := begin + len(batch))
            self._check_columns(batch)
            levels = priorities and [priorities[i] for i in number[part]]
            names = tenants and [tenants[i] for i in number[part]]
            yield self._chunk(batch, times[part], levels, names)

    def _ordered(self) -> Iterator[RowBatch]:
        """The rows between the bounds, in the file's order or sorted by arrival."""
        if not self._settings.sort:
            yield from self._between()
        elif batches := list(self._between()):
            whole = RowBatch.joined(batches)
            yield from whole.parts(CHUNK_SIZE, np.argsort(whole.arrival, kind="stable"))

    def _between(self) -> Iterator[RowBatch]:
        if (between := self._settings.between) is None:
            yield from self._reader.batches()
            return
        bounds: tuple[int, int] | None = None
        for batch in self._reader.batches():
            begin, end = bounds = bounds or self._bounds(*between)
            inside: Ints = np.flatnonzero((batch.arrival >= begin) & (batch.arrival < end))
            yield batch if len(inside) == len(batch) else batch.keep(inside)
            if not self._settings.sort and len(batch) and batch.arrival[-1] >= end:
                return

    def _bounds(self, start: object, end: object) -> tuple[int, int]:
        """START and END since the file's first row, ps."""
        clock = self._reader.clock
        try:
            found = clock.moment(start), clock.moment(end)
        except BadValueError as error:
            raise UserError(Problem("between", error.rule, [start, end], "write it as the file does")) from None
        if found[0] >= found[1]:
            raise UserError(Problem("between", "START must be before END", [start, end], "swap them"))
        origin = clock.origin or 0
        return found[0] - origin, found[1] - origin

    def _without_empty(self, batch: RowBatch, room: int | None) -> RowBatch:
        """The first `room` rows with output tokens; the others before them are counted, or an error."""
        outputs = batch.num_output_tokens
        if outputs[:room].all() and (room is None or room >= len(outputs)):
            return batch
        indices = np.flatnonzero(outputs)[:room]
        passed = len(outputs) if len(indices) != room else int(indices[-1]) + 1 if room else 0
        empty = np.flatnonzero(outputs[:passed] == 0)
        if len(empty) and self._settings.on_empty != "skip":
            mend = "remove the row, or set on_empty: skip (--on-empty skip), which counts it"
            name, rule = self._reader.columns.output, "a request needs output tokens, and here are none"
            raise self._error(batch, int(empty[0]), name, rule, NOTHING, mend)
        self.skipped += len(empty)
        return batch.keep(indices)

    def _error(self, batch: RowBatch, i: int, column: str | None, rule: str, value: object, mend: str) -> UserError:
        return UserError(Problem(self._reader.place(int(batch.lines[i]), column or ""), rule, value, mend))

    def _check(self, batch: RowBatch, last: int | None) -> int:
        """What holds for a row beside its neighbours and its other columns; returns the last arrival."""
        columns, times = self._reader.columns, batch.arrival
        self._check_columns(batch)
        before = np.concatenate([[times[0] if last is None else last], times[:-1]])
        if self._has_order and (before > times).any():
            i = int(np.flatnonzero(before > times)[0])
            rule = f"is {(int(before[i]) - int(times[i])) / PS_PER_S:g} s earlier than the request before it"
            mend = f"sort the file by {columns.arrival}, or let it be sorted: --sort (sort: true in a scenario)"
            raise self._error(batch, i, columns.arrival, rule, NOTHING, mend)
        return int(times[-1])

    def _check_columns(self, batch: RowBatch) -> None:
        """What holds for a row's other columns."""
        columns = self._reader.columns
        if not batch.num_prompt_tokens.all():
            i = int(np.flatnonzero(batch.num_prompt_tokens == 0)[0])
            rule = "a request needs prompt tokens, and here are none"
            raise self._error(batch, i, columns.prompt, rule, NOTHING, "fill it in, or remove the row")
        if self._has_ids is None:
            self._has_ids = batch.request_id is not None
        ids = columns.request_id, self._has_ids, batch.request_id
        predictions = columns.predicted_output, self.foretells, batch.predicted_output_tokens
        for column, is_given, values in (ids, predictions):
            if is_given != (values is not None):
                rule = "stands in some rows only"
                raise self._error(batch, 0, column, rule, NOTHING, "give every row one, or none")
        if batch.hash_ids is not None:
            self._check_hashes(batch, batch.hash_ids)

    def _check_hashes(self, batch: RowBatch, rows: list[tuple[int, ...] | None]) -> None:
        h, columns = self.hash_block_tokens, self._reader.columns
        for i, (hashes, prompt) in enumerate(zip(rows, batch.num_prompt_tokens.tolist(), strict=True)):
            low, high = prompt // h, -(-prompt // h)
            if hashes is not None and not low <= len(hashes) <= high:
                expected = f"{low} or {high}" if low != high else f"{low}"
                rule = f"a prompt of {prompt} tokens has {expected} hashes of {h} tokens each"
                mend = "set hash_block_tokens to what one hash stands for"
                raise self._error(batch, i, columns.hash_ids, rule, len(hashes), mend)

    def _chunk(
        self, batch: RowBatch, times: list[int], priority: list[int] | None, tenant: list[str | None] | None
    ) -> RequestChunk:
        for name, drawn, given in (("priorities", priority, batch.priority), ("tenants", tenant, batch.tenant)):
            if drawn is not None and given is not None:
                rule = f"{self.path} has {name} of its own"
                raise UserError(Problem(f"workload.{name}", rule, mend=f"leave {name} out"))
        self._has_tenants = self._has_tenants or batch.tenant is not None
        return RequestChunk(
            arrival_ps=times,
            num_prompt_tokens=batch.num_prompt_tokens.tolist(),
            num_output_tokens=batch.num_output_tokens.tolist(),
            priority=batch.priority if priority is None else priority,
            request_id=batch.request_id,
            tenant=tenant or batch.tenant or ([None] * len(batch) if self._has_tenants else None),
            predicted_output_tokens=batch.predicted_output_tokens,
            hash_ids=None if batch.hash_ids is None else [hashes or () for hashes in batch.hash_ids],
        )

    def _times(self, batch: RowBatch) -> list[int]:
        """Since the first request, at the rate that is asked for; UserError beyond the clock's range."""
        if not self._has_order:
            return [0] * len(batch)
        since, scale = batch.arrival - self._first, self._settings.rate_scale
        last_ps = int(since[-1]) / scale
        if last_ps > MAX_PS:
            raise self._error(batch, len(batch) - 1, self._reader.columns.arrival, *too_late(last_ps))
        since = since if scale == 1 else np.rint(since.astype(np.float64) / scale)
        return list(since.astype(np.int64).tolist())
