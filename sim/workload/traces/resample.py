"""A trace drawn anew: the circular block bootstrap, over time.

The trace is bent to a circle, its last request followed by its first after the mean gap. Blocks of equal length in time
begin at moments drawn uniformly; what lies in them is put one after the other, every row with all of its columns and
its distance from the row before, until there are as many requests as the trace has. Then all times are stretched by one
factor, so that the rate is the trace's own: as `vllm bench serve` does with its gamma gaps. Within a block bursts,
lengths and shared prefixes are as they were; which blocks come, how often and in what order is chance.

Of sessions whole ones are drawn, by when they begin: their turns come along, each as long after the first as it was.

A block that is drawn twice would find its own prompts in the prefix cache. So a hash that the trace has within one
block's length of time alone gets another name in each block; those that last (system prompts) keep theirs.

Source: D. N. Politis, J. P. Romano, A circular block-resampling procedure for stationary data, in R. LePage, L. Billard
(eds.), Exploring the Limits of Bootstrap, Wiley (1992) 263-270.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.workload.chunk import CHUNK_SIZE, Purpose, RequestChunk, RequestSource, stream, unread_of
from simbatch.sim.workload.turns import NO_ROW, Turns, awaited_of, turns_in, turns_of

Ints = NDArray[np.int64]


class Drawn(NamedTuple):
    """Which row each request is a copy of, in which block, and when it arrives."""

    row: Ints
    block: Ints
    arrival_ps: Ints


class ResampledSource:
    """A `RequestSource` with the requests of another one, in `num_blocks` blocks that the seed draws; all in memory."""

    def __init__(self, source: RequestSource, num_blocks: int, seed: int) -> None:
        self._source, self._num_blocks, self._seed = source, num_blocks, seed
        self.hash_block_tokens, self.num_requests = source.hash_block_tokens, source.num_requests
        self.max_concurrency, self.think_time_ps = source.max_concurrency, source.think_time_ps
        self.skipped = 0

    @cached_property
    def turns(self) -> Turns | None:
        """Which of the requests wait for which, where the trace has sessions."""
        turns = turns_in(self._source)
        if turns is None:
            return None
        times = np.array([ps for chunk in self._source.chunks() for ps in chunk.arrival_ps], dtype=np.int64)
        return _copied(turns, self._draw(times, SessionRows(times, turns)).row.tolist())

    def unread(self) -> tuple[str, ...]:
        """What the trace itself says of its file."""
        return unread_of(self._source)

    def chunks(self) -> Iterator[RequestChunk]:
        """Read the whole trace and draw; always the same ones."""
        columns, turns = _columns(self._source), turns_in(self._source)
        self.skipped = self._source.skipped
        times = np.array(columns.pop("arrival_ps"), dtype=np.int64)
        sessions = None if turns is None else SessionRows(times, turns)
        drawn = self._draw(times, sessions)
        hashes = columns.pop("hash_ids")
        if hashes is not None:
            moments = times if sessions is None else sessions.begins[sessions.session]
            hashes = _renamed(hashes, drawn, _local(hashes, moments, self._num_blocks))
        names = columns.pop("request_id")
        rows = drawn.row.tolist()
        picked = {key: None if values is None else [values[i] for i in rows] for key, values in columns.items()}
        picked["arrival_ps"], picked["hash_ids"] = drawn.arrival_ps.tolist(), hashes
        picked["request_id"] = None if names is None else _named(names, rows)
        for begin in range(0, len(rows), CHUNK_SIZE):
            part = slice(begin, begin + CHUNK_SIZE)
            of_part: dict[str, Any] = {key: values and values[part] for key, values in picked.items()}
            yield RequestChunk(**of_part)

    def _draw(self, times: Ints, sessions: SessionRows | None) -> Drawn:
        rng = stream(self._seed, Purpose.BLOCKS)
        if sessions is None:
            return draw_blocks(times, self._num_blocks, rng)
        return draw_sessions(times, sessions, self._num_blocks, rng)


def draw_blocks(times: Ints, num_blocks: int, rng: np.random.Generator) -> Drawn:
    """As many rows as there are `times` (ps, ascending), in blocks of a `num_blocks`-th of their circle each."""
    n, span = len(times), int(times[-1] - times[0])
    if n < 2 or not span:  # no time passes, so there are no blocks of it: each row by itself
        return Drawn(rng.integers(n, size=n), np.arange(n), times)
    offsets = times - times[0]
    circle = span + span // (n - 1)
    length = -(-circle // num_blocks)
    rows: list[Ints] = []
    arrivals: list[Ints] = []
    blocks: list[Ints] = []
    found = begin = 0
    while found < n:
        start = int(rng.integers(circle))
        first, last = np.searchsorted(offsets, [start, start + length])
        beyond = int(np.searchsorted(offsets, start + length - circle))
        inside = np.concatenate([np.arange(first, last), np.arange(beyond)])
        wrapped = np.arange(len(inside)) >= last - first
        rows.append(inside)
        arrivals.append(begin + offsets[inside] + wrapped * circle - start)
        blocks.append(np.full(len(inside), len(blocks)))
        found, begin = found + len(inside), begin + length
    row, arrival, block = (np.concatenate(parts)[:n] for parts in (rows, arrivals, blocks))
    return Drawn(row, block, times[0] + _stretched(arrival, span))


class SessionRows:
    """When each session of a trace begins (ps), and its rows: `rows[ends[s] - counts[s]:ends[s]]`, in their order."""

    def __init__(self, times: Ints, turns: Turns) -> None:
        self.session = np.array(turns.session)
        self.waits = np.array(turns.num_awaited) > 0
        self.begins = np.full(turns.num_sessions, np.iinfo(np.int64).max)
        np.minimum.at(self.begins, self.session[~self.waits], times[~self.waits])
        self.rows = np.argsort(self.session, kind="stable")
        self.counts = np.bincount(self.session)
        self.ends = np.cumsum(self.counts)

    def of(self, session: int) -> Ints:
        """The rows of one."""
        found: Ints = self.rows[self.ends[session] - self.counts[session] : self.ends[session]]
        return found


def draw_sessions(times: Ints, sessions: SessionRows, num_blocks: int, rng: np.random.Generator) -> Drawn:
    """As many sessions as there are, in blocks by when they begin; each with all of its rows, in their order."""
    order = np.argsort(sessions.begins, kind="stable")
    drawn = draw_blocks(sessions.begins[order], num_blocks, rng)
    numbers = order[drawn.row]
    row = np.concatenate([sessions.of(number) for number in numbers.tolist()])
    sizes = sessions.counts[numbers]
    later = times[row] - sessions.begins[sessions.session[row]]
    has_time = ~sessions.waits[row] | (times[row] > 0)  # one that waits has a time of its own or 0
    return Drawn(row, np.repeat(drawn.block, sizes), np.where(has_time, np.repeat(drawn.arrival_ps, sizes) + later, 0))


def _copied(turns: Turns, rows: list[int]) -> Turns:
    """The turns of copies of sessions, `rows` of which are given one copy after the other."""
    session = np.array(turns.session)
    order, counts = np.argsort(session, kind="stable"), np.bincount(session)
    place = np.empty(len(session), dtype=np.int64)  # of a row among those of its session
    place[order] = np.arange(len(session)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = [i - int(place[row]) for i, row in enumerate(rows)]
    before, copies = awaited_of(turns), dict[int, int]()
    names: list[str] = []
    for start, row in zip(starts, rows, strict=True):
        number = int(session[row])
        copies[number] = copies.get(number, 0) + (len(names) == start)
        names.append(turns.name(row) if copies[number] == 1 else f"{turns.name(row)}~{copies[number]}")
    parents = [turns.parent[row] for row in rows]
    copied = turns_of(
        [[start + int(place[other]) for other in before[row]] for start, row in zip(starts, rows, strict=True)],
        [turns.delay_ps[row] for row in rows],
        [NO_ROW if other < 0 else start + int(place[other]) for start, other in zip(starts, parents, strict=True)],
        names,
    )
    return replace(copied, max_sessions=turns.max_sessions)


def _stretched(arrival: Ints, span: int) -> Ints:
    """From 0 to `span`; all at 0 where they came at one moment."""
    arrival = arrival - arrival[0]
    scaled: Ints = np.rint(arrival * (span / max(int(arrival[-1]), 1))).astype(np.int64)
    return scaled


def _columns(source: RequestSource) -> dict[str, Any]:
    """All chunks as one: lists by column, None for those that no chunk has."""
    chunks = list(source.chunks())
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(RequestChunk)):
        parts = [getattr(chunk, name) for chunk in chunks]
        if any(part is not None for part in parts):
            blank = () if name == "hash_ids" else 0 if name == "priority" else None
            parts = [part or [blank] * len(chunk) for part, chunk in zip(parts, chunks, strict=True)]
            columns[name] = [value for part in parts for value in part]
        else:
            columns[name] = None
    return columns


def _local(hashes: list[tuple[int, ...]], moments: Ints, num_blocks: int) -> set[int]:
    """Hashes whose first and last appearance are no more than a block's length of time apart."""
    span = int(moments.max() - moments.min())
    moments, length = (moments, span // num_blocks) if span else (np.arange(len(moments)), 0)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for moment, row in zip(moments.tolist(), hashes, strict=True):
        for hash_id in row:
            first[hash_id] = min(moment, first.get(hash_id, moment))
            last[hash_id] = max(moment, last.get(hash_id, moment))
    return {hash_id for hash_id, moment in last.items() if moment - first[hash_id] <= length}


def _renamed(hashes: list[tuple[int, ...]], drawn: Drawn, local: set[int]) -> list[tuple[int, ...]]:
    """The rows that were drawn; a local hash has one new name a block, and no name is anybody else's."""
    names: dict[tuple[int, int], int] = {}
    unused = 1 + max((hash_id for row in hashes for hash_id in row), default=0)

    def name(hash_id: int, block: int) -> int:
        return names.setdefault((block, hash_id), unused + len(names)) if hash_id in local else hash_id

    pairs = zip(drawn.row.tolist(), drawn.block.tolist(), strict=True)
    return [tuple(name(hash_id, block) for hash_id in hashes[row]) for row, block in pairs]


def _named(names: list[str], rows: list[int]) -> list[str]:
    """`a`, and for its further copies `a~2`, `a~3`."""
    copies: dict[int, int] = {}
    found = []
    for row in rows:
        copies[row] = copies.get(row, 0) + 1
        found.append(names[row] if copies[row] == 1 else f"{names[row]}~{copies[row]}")
    return found
