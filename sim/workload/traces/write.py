"""Requests into a file, a chunk at a time, who waits for whom, and an account of what the format could not hold."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from simbatch.sim.clock import to_s
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import check_target, replacing
from simbatch.sim.workload.chunk import RequestChunk, RequestSource
from simbatch.sim.workload.formats import FORMATS, OWN, REQUIRED, TABLES, Format
from simbatch.sim.workload.traces.times import PS_PER_UNIT
from simbatch.sim.workload.turns import Turns, awaited_of, turns_in

NOBODY = -1  # the parent of a row that waits for nobody, where a format has no sessions


class Links(NamedTuple):
    """Columns over all rows of a source with turns."""

    session: list[str]
    parent: Sequence[str | int | list[str] | None]  # None: it waits for the row before it of its session, if any
    delay_ps: Sequence[int]
    waits: list[bool]
    num_lost: int  # rows whose parents the format cannot say
    system: list[str] | None  # which system prompt a row's session begins with
    num_system_tokens: int


def links_of(source: RequestSource, form: Format) -> Links | None:
    """What to write of the source's turns, None where nobody waits; UserError for a format without sessions."""
    turns = turns_in(source)
    if turns is None:
        return None
    if not (form.columns.session or form.columns.parent):
        rule = f"has no sessions, and {sum(num > 0 for num in turns.num_awaited):,} turns wait for the ones before them"
        mend = "write jsonl, csv, parquet or mooncake, or simulate it and convert the result's requests.parquet"
        raise UserError(Problem(f"--to {form.name}", rule, mend=mend))
    names = [name for chunk in source.chunks() for name in chunk.request_id or ()]
    waits = [num > 0 for num in turns.num_awaited]
    system = None if turns.system is None else [str(turns.system[number]) for number in turns.session]
    if form.columns.session is None:
        chats = [_named(awaited, names) if awaited else NOBODY for awaited in awaited_of(turns)]
        return Links([], chats, turns.delay_ps, waits, 0, system, turns.num_system_tokens)
    parents = _beside_order(turns, names)
    num_lost = 0 if form.columns.parent else sum(parent is not None for parent in parents)
    names = [turns.name(row) for row in range(len(turns))]
    return Links(names, parents, turns.delay_ps, waits, num_lost, system, turns.num_system_tokens)


def _beside_order(turns: Turns, names: Sequence[str]) -> list[str | int | list[str] | None]:
    """Parents of the rows that do not wait for the row before them of their session alone."""
    last: dict[int, int] = {}
    parents: list[str | int | list[str] | None] = []
    for row, awaited in enumerate(awaited_of(turns)):
        before, goes_on = last.get(turns.session[row]), turns.parent[row]
        if goes_on >= 0 and goes_on not in awaited:  # it has ended, and a file's prompt goes on the first that is named
            awaited = [goes_on, *awaited]
        is_plain = awaited == ([] if before is None else [before])
        parents.append(None if is_plain else _named(awaited, names))
        last[turns.session[row]] = row
    return parents


def _named(awaited: Sequence[int], names: Sequence[str]) -> str | list[str]:
    """Ids of requests: one, or a list of none or several."""
    ids = [names[row] if names else str(row) for row in awaited]
    return ids[0] if len(ids) == 1 else ids


class Rehash:
    """Turns `hash_ids` of `old` tokens each into ones of `new` tokens each, one for every block of a prompt."""

    def __init__(self, old: int, new: int) -> None:
        self._old, self._new = old, new
        self._private = count(1, 2).__next__  # odd; what is shared is even
        self._splits = old % new == 0

    def __call__(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> tuple[int, ...]:
        """One hash for every block of the prompt, the last one for what is left."""
        new = self._new
        covered = min(len(hash_ids) * self._old, num_prompt_tokens)
        ends = [min(start + new, num_prompt_tokens) for start in range(0, num_prompt_tokens, new)]
        return tuple(
            self._name(hash_ids, i * new, end) if end <= covered else self._private() for i, end in enumerate(ends)
        )

    def _name(self, hash_ids: tuple[int, ...], start: int, end: int) -> int:
        old, new = self._old, self._new
        first, offset = divmod(start, old)
        if self._splits:
            return 2 * (hash_ids[first] * (old // new) + offset // new)
        last = -(-end // old)
        text = ",".join(map(str, (offset, *hash_ids[first:last])))
        return 2 * int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


WRITE_FORMATS = tuple(TABLES)
HOLDS_HASHES = tuple(name for name, form in TABLES.items() if form.hash_block_tokens)
NEEDS_HASHES = ("mooncake", "timed_trace")
AZURE_START = datetime(2023, 11, 16)  # timestamps need a day; it is arbitrary, and has no zone
_PS_PER_TICK = 10**5  # a timestamp's seventh decimal
_ORDER = (
    *("request_id", "arrival", "prompt", "output", "priority", "tenant"),
    *("session", "parent", "delay", "predicted_output", "hash_ids", "system_prompt", "num_system_tokens"),
)


class Losses(Counter[str]):
    """What was left out or changed, and for how many requests."""

    def lines(self) -> list[str]:
        """One sentence each."""
        return [f"{what} ({count} requests)" for what, count in self.items()]


def write_trace(
    source: RequestSource,
    path: Path,
    to: str,
    *,
    hash_block_tokens: int,
    regroup: bool,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, Losses]:
    """Write all requests of `source`; returns how many and what `to` could not hold.

    `hash_block_tokens` is what one hash stands for in the file; `regroup` names the blocks anew, which must be done
    when the source's hashes stand for another number of tokens or do not cover whole prompts. mooncake and timed_trace
    need hashes, so prompts without any get ones of their own. The file appears when it is complete.
    """
    losses, form = Losses(), FORMATS[to]
    links = links_of(source, form)
    old = source.hash_block_tokens
    is_renamed = to in HOLDS_HASHES and (regroup if old else to in NEEDS_HASHES)
    rehash = Rehash(old or hash_block_tokens, hash_block_tokens) if is_renamed else None
    there = {"predicted_output": getattr(source, "foretells", False), "hash_ids": bool(old) or rehash is not None}
    there |= dict.fromkeys(("session", "delay"), links is not None)
    there["parent"] = links is not None and any(parent is not None for parent in links.parent)
    there |= dict.fromkeys(("system_prompt", "num_system_tokens"), links is not None and links.system is not None)
    held = [kind for kind in _ORDER if getattr(form.columns, kind) and there.get(kind, True)]
    num_written = 0
    if links is not None:
        _note_links(links, form, losses)
    with _writer(path, form, held) as write:
        for chunk in source.chunks():
            _note_losses(chunk, form, losses)
            write(_rows(chunk, num_written, rehash, links), losses)
            num_written += len(chunk)
            if progress:
                progress(num_written)
    return num_written, losses


Row = dict[str, Any]
Write = Callable[[list[Row], Losses], None]


def _rows(chunk: RequestChunk, first: int, rehash: Rehash | None, links: Links | None) -> list[Row]:
    """The chunk's requests by what a column means, `arrival` and `delay` in ps; no arrival where others decide it."""
    n = len(chunk)
    columns: dict[str, Any] = {
        "request_id": chunk.request_id or [str(i) for i in range(first, first + n)],
        "arrival": chunk.arrival_ps,
        "prompt": chunk.num_prompt_tokens,
        "output": chunk.num_output_tokens,
        "priority": chunk.priority or [0] * n,
        "tenant": chunk.tenant or [None] * n,
        "predicted_output": chunk.predicted_output_tokens or [None] * n,
        "hash_ids": chunk.hash_ids or [()] * n,
    }
    if links is not None:
        part = slice(first, first + n)
        columns |= {"session": links.session[part] or [""] * n, "parent": links.parent[part]}
        columns["delay"] = links.delay_ps[part]
        columns["system_prompt"] = [None] * n if links.system is None else links.system[part]
        columns["num_system_tokens"] = [links.num_system_tokens] * n
        waits = zip(chunk.arrival_ps, links.waits[part], strict=True)
        columns["arrival"] = [None if is_later and not ps else ps for ps, is_later in waits]
    if rehash:
        known = zip(columns["hash_ids"], chunk.num_prompt_tokens, strict=True)
        # a turn's prompt goes on its conversation where nothing names its blocks
        columns["hash_ids"] = [rehash(ids, num) if ids or links is None else () for ids, num in known]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _note_links(links: Links, form: Format, losses: Losses) -> None:
    if links.num_lost:
        losses[f"{form.name} has no parent: turns wait for the row before them of their session"] += links.num_lost
    if links.system is not None and form.columns.system_prompt is None:
        losses[f"{form.name} has no system_prompt: sessions share none"] += len(links.system)
    num_delays = sum(map(bool, links.delay_ps))
    if num_delays and form.columns.delay is None:
        losses[f"{form.name} has no delay: left out"] += num_delays


def _note_losses(chunk: RequestChunk, form: Format, losses: Losses) -> None:
    for kind in ("request_id", "tenant", "priority", "predicted_output", "hash_ids"):
        found = getattr(chunk, "predicted_output_tokens" if kind == "predicted_output" else kind)
        if getattr(form.columns, kind) is None and (number := sum(map(bool, found or ()))):
            losses[f"{form.name} has no {getattr(OWN, kind)}: left out"] += number


@contextmanager
def _writer(path: Path, form: Format, held: Sequence[str]) -> Iterator[Write]:
    """A function that takes rows, for a file that is put in place when all went well."""
    check_target(path)
    with replacing(path) as temporary:
        if form.written_as == "parquet":
            with _parquet(temporary, form, held) as write:
                yield write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                yield (_csv if form.written_as == "csv" else _lines)(file, form, held)


def _timed(row: Row, form: Format, losses: Losses) -> None:
    """Give a row its times as the format has them."""
    row["arrival"] = None if row["arrival"] is None else _time(row["arrival"], form, losses)
    row["delay"] = _time(row["delay"], form, losses) if row.get("delay") else 0


def _time(ps: int, form: Format, losses: Losses) -> float | int | str:
    """A time as the format has it: a timestamp, seconds of ours, or plain numbers, whole where they are."""
    if form.unit == "iso":
        ticks, rest = divmod(ps, _PS_PER_TICK)
        if rest:
            losses[f"{form.name}'s times have 7 decimals: cut"] += 1
        seconds, fraction = divmod(ticks, 10**7)
        return f"{AZURE_START + timedelta(seconds=seconds)}.{fraction:07d}"
    if form.columns == OWN:
        return to_s(ps)
    unit = PS_PER_UNIT[form.unit or "s"]
    return ps // unit if ps % unit == 0 else ps / unit


def _lines(file: IO[str], form: Format, held: Sequence[str]) -> Write:
    always = {"request_id", "parent", *REQUIRED}

    def write(rows: list[Row], losses: Losses) -> None:
        for row in rows:
            if form.name in NEEDS_HASHES and not row["hash_ids"] and "session" not in row:
                losses["without hash_ids; vllm bench serve would send an empty prompt"] += 1
            _timed(row, form, losses)
            said = (kind for kind in held if row[kind] or (row[kind] is not None and kind in always))
            line = {getattr(form.columns, kind): row[kind] for kind in said}
            file.write(json.dumps(line) + "\n")

    return write


def _csv(file: IO[str], form: Format, held: Sequence[str]) -> Write:
    table = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # the other forgets to quote \r
    table.writerow([getattr(form.columns, kind) for kind in held])

    def write(rows: list[Row], losses: Losses) -> None:
        for row in rows:
            _timed(row, form, losses)
            row["hash_ids"] = " ".join(map(str, row["hash_ids"]))
            if isinstance(row.get("parent"), list):
                row["parent"] = f"[{', '.join(row['parent'])}]"
            has_return = "\r" in row["request_id"] or "\r" in (row["tenant"] or "")
            (quoted if has_return else table).writerow([row[kind] for kind in held])

    return write


@contextmanager
def _parquet(path: Path, form: Format, held: Sequence[str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds: dict[str, Any] = dict.fromkeys(("prompt", "output", "priority"), pa.int64())
    kinds |= dict.fromkeys(("request_id", "tenant", "session", "system_prompt"), pa.string())
    kinds |= {"arrival": pa.float64(), "predicted_output": pa.float64(), "hash_ids": pa.list_(pa.int64())}
    kinds |= {"delay": pa.float64(), "parent": pa.list_(pa.string()), "num_system_tokens": pa.int64()}
    schema = pa.schema([(getattr(form.columns, kind), kinds[kind]) for kind in held])
    with pq.ParquetWriter(path, schema) as table:

        def write(rows: list[Row], losses: Losses) -> None:
            for row in rows:
                _timed(row, form, losses)
                if row.get("parent") is not None:
                    row["parent"] = row["parent"] if isinstance(row["parent"], list) else [row["parent"]]
                row["hash_ids"] = row["hash_ids"] or None  # an empty list would say that the prompt has no blocks
            columns = [pa.array([row[kind] for row in rows], kinds[kind]) for kind in held]
            table.write_table(pa.Table.from_arrays(columns, schema=schema))

        yield write
