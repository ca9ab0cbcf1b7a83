"""Requests into a file, a chunk at a time, and an account of what the format could not hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

from simbatch.sim.clock import to_s
from simbatch.sim.paths import check_target
from simbatch.sim.workload.chunk import RequestChunk, RequestSource


class Rehash:
    """Turns `hash_ids` of `old` tokens each into ones of `new` tokens each, one for every block of a prompt."""

    def __init__(self, old: int, new: int) -> None:
        self._old, self._new = old, new
        self._num_private = 0
        self._splits = old % new == 0

    def __call__(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> tuple[int, ...]:
        """One hash for every block of the prompt, the last one for what is left."""
        new = self._new
        covered = min(len(hash_ids) * self._old, num_prompt_tokens)
        ends = [min(start + new, num_prompt_tokens) for start in range(0, num_prompt_tokens, new)]
        return tuple(
            self._name(hash_ids, i * new, end) if end <= covered else self._private() for i, end in enumerate(ends)
        )

    def _private(self) -> int:
        self._num_private += 1
        return 2 * self._num_private - 1  # odd; what is shared is even

    def _name(self, hash_ids: tuple[int, ...], start: int, end: int) -> int:
        old, new = self._old, self._new
        first, offset = divmod(start, old)
        if self._splits:
            return 2 * (hash_ids[first] * (old // new) + offset // new)
        last = -(-end // old)
        text = ",".join(map(str, (offset, *hash_ids[first:last])))
        return 2 * int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


WriteFormat = Literal["jsonl", "csv", "parquet", "mooncake", "timed_trace", "azure"]
WRITE_FORMATS: tuple[WriteFormat, ...] = get_args(WriteFormat)
HOLDS_HASHES: tuple[WriteFormat, ...] = ("jsonl", "csv", "parquet", "mooncake", "timed_trace")
NEEDS_HASHES: tuple[WriteFormat, ...] = ("mooncake", "timed_trace")
HOLDS_LABELS: tuple[WriteFormat, ...] = ("jsonl", "csv", "parquet")
AZURE_START = datetime(2023, 11, 16)  # Azure's timestamps have no zone; the day is arbitrary
_PS_PER_TICK = 10**5  # Azure's seventh decimal


class Losses(Counter[str]):
    """What was left out or changed, and for how many requests."""

    def lines(self) -> list[str]:
        """One sentence each."""
        return [f"{what} ({count} requests)" for what, count in self.items()]


class Extra(NamedTuple):
    """Columns that a file has when the source has them."""

    hashes: bool
    predictions: bool

    def names(self) -> list[str]:
        """What they are called."""
        there = {"predicted_output_tokens": self.predictions, "hash_ids": self.hashes}
        return [name for name, is_there in there.items() if is_there]


def write_trace(
    source: RequestSource,
    path: Path,
    to: WriteFormat,
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
    losses = Losses()
    old = source.hash_block_tokens
    rehash = None
    if to in HOLDS_HASHES and (regroup if old else to in NEEDS_HASHES):
        rehash = Rehash(old or hash_block_tokens, hash_block_tokens)
    num_written = 0
    with _writer(path, to, Extra(bool(old), getattr(source, "foretells", False))) as write:
        for chunk in source.chunks():
            _note_losses(chunk, to, losses)
            write(_rows(chunk, num_written, rehash), losses)
            num_written += len(chunk)
            if progress:
                progress(num_written)
    return num_written, losses


Row = dict[str, Any]
Write = Callable[[list[Row], Losses], None]


def _rows(chunk: RequestChunk, first: int, rehash: Rehash | None) -> list[Row]:
    """The chunk's requests in our own columns, `arrival_ps` instead of `arrival_s`."""
    n = len(chunk)
    columns: dict[str, Any] = {
        "request_id": chunk.request_id or [str(i) for i in range(first, first + n)],
        "arrival_ps": chunk.arrival_ps,
        "num_prompt_tokens": chunk.num_prompt_tokens,
        "num_output_tokens": chunk.num_output_tokens,
        "priority": chunk.priority or [0] * n,
        "tenant": chunk.tenant or [None] * n,
        "predicted_output_tokens": chunk.predicted_output_tokens or [None] * n,
        "hash_ids": chunk.hash_ids or [()] * n,
    }
    if rehash:
        columns["hash_ids"] = list(map(rehash, columns["hash_ids"], chunk.num_prompt_tokens))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _note_losses(chunk: RequestChunk, to: WriteFormat, losses: Losses) -> None:
    if to in HOLDS_LABELS:
        return
    labels: dict[str, Sequence[object] | None] = {"request_id": chunk.request_id}
    labels |= {"tenant": chunk.tenant, "priority": chunk.priority}
    labels |= {"predicted_output_tokens": chunk.predicted_output_tokens}
    if to not in HOLDS_HASHES:
        labels["hash_ids"] = chunk.hash_ids
    for name, found in labels.items():
        number = sum(map(bool, found or ()))
        if number:
            losses[f"{to} has no {name}: left out"] += number


@contextmanager
def _writer(path: Path, to: WriteFormat, extra: Extra) -> Iterator[Write]:
    """A function that takes rows, for a file that is put in place when all went well."""
    check_target(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        if to == "parquet":
            with _parquet(temporary, extra) as write:
                yield write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                yield _TEXT[to](file, extra)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(ps: int, ps_per_unit: int = 10**12) -> float | int:
    """A time as JSON has it: an integer where it is whole."""
    return ps // ps_per_unit if ps % ps_per_unit == 0 else ps / ps_per_unit


def _jsonl(file: IO[str], _: Extra) -> Write:
    def write(rows: list[Row], _: Losses) -> None:
        for row in rows:
            line = {"request_id": row["request_id"], "arrival_s": to_s(row["arrival_ps"])}
            line |= {key: row[key] for key in ("num_prompt_tokens", "num_output_tokens")}
            line |= {key: row[key] for key in ("priority", "tenant", "predicted_output_tokens", "hash_ids") if row[key]}
            file.write(json.dumps(line) + "\n")

    return write


def _timed(ps_per_unit: int) -> Callable[[IO[str], Extra], Write]:
    def open_writer(file: IO[str], _: Extra) -> Write:
        def write(rows: list[Row], losses: Losses) -> None:
            for row in rows:
                if not row["hash_ids"]:
                    losses["without hash_ids; vllm bench serve would send an empty prompt"] += 1
                line = {
                    "timestamp": _plain(row["arrival_ps"], ps_per_unit),
                    "input_length": row["num_prompt_tokens"],
                    "output_length": row["num_output_tokens"],
                }
                file.write(json.dumps(line | ({"hash_ids": row["hash_ids"]} if row["hash_ids"] else {})) + "\n")

        return write

    return open_writer


def _csv(file: IO[str], extra: Extra) -> Write:
    import csv

    names = ["request_id", "arrival_s", "num_prompt_tokens", "num_output_tokens", "priority", "tenant", *extra.names()]
    table = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)  # the other forgets to quote \r
    table.writerow(names)

    def write(rows: list[Row], _: Losses) -> None:
        for row in rows:
            row |= {"arrival_s": to_s(row["arrival_ps"]), "hash_ids": " ".join(map(str, row["hash_ids"]))}
            has_return = "\r" in row["request_id"] or "\r" in (row["tenant"] or "")
            (quoted if has_return else table).writerow([row[name] for name in names])

    return write


def _azure(file: IO[str], _: Extra) -> Write:
    file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    first = True

    def write(rows: list[Row], losses: Losses) -> None:
        nonlocal first
        if first and rows[0]["arrival_ps"]:
            offset = f"{to_s(rows[0]['arrival_ps']):g} s"
            losses[f"azure's times count from the first request, which came at {offset}: the trace begins with it"] += 1
        first = False
        for row in rows:
            ticks, rest = divmod(row["arrival_ps"], _PS_PER_TICK)
            if rest:
                losses["azure's times have 7 decimals: cut"] += 1
            seconds, fraction = divmod(ticks, 10**7)
            moment = AZURE_START + timedelta(seconds=seconds)
            file.write(f"{moment}.{fraction:07d},{row['num_prompt_tokens']},{row['num_output_tokens']}\n")

    return write


@contextmanager
def _parquet(path: Path, extra: Extra) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields: list[tuple[str, pa.DataType]] = [("request_id", pa.string()), ("arrival_s", pa.float64())]
    fields += [("num_prompt_tokens", pa.int64()), ("num_output_tokens", pa.int64())]
    fields += [("priority", pa.int64()), ("tenant", pa.string())]
    kinds = {"predicted_output_tokens": pa.float64(), "hash_ids": pa.list_(pa.int64())}
    fields += [(name, kinds[name]) for name in extra.names()]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema) as table:

        def write(rows: list[Row], _: Losses) -> None:
            for row in rows:
                row["arrival_s"] = to_s(row["arrival_ps"])
                row["hash_ids"] = row["hash_ids"] or None  # an empty list would say that the prompt has no blocks
            table.write_table(pa.Table.from_pylist(rows, schema=schema))

        yield write


_TEXT: dict[WriteFormat, Callable[[IO[str], Extra], Write]] = {
    "jsonl": _jsonl,
    "csv": _csv,
    "mooncake": _timed(10**9),
    "timed_trace": _timed(10**12),
    "azure": _azure,
}
