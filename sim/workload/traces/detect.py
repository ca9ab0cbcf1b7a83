"""Which format a file has, by its name and its first line."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.bench import aiperf, guidellm, inference_perf
from simbatch.sim.workload.bench.document import Document, documents, keys_of, read_text
from simbatch.sim.workload.bench.read import is_result
from simbatch.sim.workload.trace_model import HASH_BLOCK_TOKENS, TRACE_FORMATS, TraceFormat
from simbatch.sim.workload.traces.lines import TIMED_TRACE
from simbatch.sim.workload.traces.results import BENCH
from simbatch.sim.workload.traces.tables import AZURE, BURSTGPT, OURS
from simbatch.sim.workload.traces.text import compression_of, text_errors

_HEAD = 1 << 16  # characters of a first line that is longer than any row, as a JSON document's may be


def detect_format(path: Path) -> TraceFormat:
    """The format of `path`; UserError that says what was found when none fits or several do."""
    with path.open("rb") as binary:
        if binary.read(4) == b"PAR1":
            return "parquet"
    packed = compression_of(path)
    if packed:
        raise packed
    with text_errors(path), path.open(encoding="utf-8-sig") as file:
        head = next((line for line in iter(lambda: file.readline(_HEAD), "") if line.strip()), "").strip()
        if head.startswith("{"):
            return _detect_json(path, head, head + file.read(_HEAD))
        if head.startswith("[") and (found := _of_bench(path)):
            return found
    if not head:
        raise UserError(Problem(str(path), "the trace has no requests: the file is empty", mend="name another file"))
    header = {name.strip() for name in next(csv.reader([head]), [])}
    tables: tuple[tuple[TraceFormat, Any], ...] = (("azure", AZURE), ("burstgpt", BURSTGPT), ("csv", OURS))
    for trace_format, columns in tables:
        if header.issuperset(columns.required):
            return trace_format
    # one that has most of a format's columns is that format with a mistake, which its reader explains
    alike = {trace_format: _num_alike(header, columns.required) for trace_format, columns in tables}
    likely = [name for name, number in alike.items() if number >= 2 and number == max(alike.values())]
    if len(likely) == 1:
        return likely[0]
    raise _unknown(path, f"no known format begins with {head[:80]!r}", _hint(head))


def _num_alike(header: set[str], required: tuple[str, ...]) -> int:
    """How many of the columns the header has, give or take some letters."""
    names = [name.lower() for name in header]
    return sum(bool(get_close_matches(name.lower(), names, n=1, cutoff=0.7)) for name in required)


def _hint(head: str) -> str:
    """What the first line tells about a file that nothing can be made of."""
    if head.startswith("version https://git-lfs"):
        return "this is Git LFS's pointer to the file: get the file itself by git lfs pull"
    if head.startswith("["):
        return "write one JSON object a line, without the list around them"
    for name, separator in (("semicolons", ";"), ("tabs", "\t")):
        if head.count(separator) >= 2 and "," not in head:
            return f"separate the columns by commas, not by {name}"
    return ""


def _detect_json(path: Path, head: str, more: str) -> TraceFormat:
    try:
        row = json.loads(head)
    except ValueError:
        row = None
    if row is None:
        if any(f'"{name}"' in more for name in BENCH.required):
            return "vllm_bench"
        if f'"{OURS.arrival}"' in head:
            return "jsonl"
        if found := _of_bench(path):
            return found
        raise _unknown(path, "the first line is not a whole JSON object", "write one JSON object a line")
    if OURS.arrival in row:
        return "jsonl"
    if set(TIMED_TRACE.required) <= row.keys():
        return _detect_unit(path, row)
    if found := _bench_format([Document(str(path), row)]):
        return found
    if row.keys() & set(BENCH.required):
        return "vllm_bench"
    if len(row.keys() & set(OURS.required)) >= 2:
        return "jsonl"
    raise _unknown(path, f"no known format has {keys_of(row)}")


def _of_bench(path: Path) -> TraceFormat | None:
    """The client that wrote a whole JSON document; UserError for one that no known client wrote, or that is cut off."""
    read = list(documents(path, read_text(path)))
    found = _bench_format(read)
    if found is None and isinstance(read[0].value, dict):
        raise _unknown(path, f"no known format has {keys_of(read[0].value)}")
    return found


def _bench_format(read: Sequence[Document]) -> TraceFormat | None:
    first = read[0].value
    if guidellm.is_report(first):
        return "guidellm"
    if aiperf.is_record(first) or aiperf.is_summary(first):
        return "aiperf"
    if inference_perf.is_stage(first) or inference_perf.are_requests(first):
        return "inference_perf"
    return "vllm_bench" if is_result(read) else None


def _detect_unit(path: Path, row: dict[str, Any]) -> TraceFormat:
    """Mooncake and timed_trace share their keys; the number of hashes tells them apart, or the file's name."""
    hashes, prompt = row.get("hash_ids"), row["input_length"]
    names: tuple[TraceFormat, ...] = ("mooncake", "timed_trace")
    fitting = names
    if isinstance(hashes, list) and type(prompt) is int:
        fitting = tuple(n for n in names if prompt // (h := HASH_BLOCK_TOKENS[n]) <= len(hashes) <= -(-prompt // h))
    if len(fitting) != 1:
        fitting = tuple(name for name in names if name in path.name.lower())
    if len(fitting) == 1:
        return fitting[0]
    rule = (
        "mooncake (ms, 512 tokens a hash) and timed_trace (s, 16) have the same keys, and this row fits both or neither"
    )
    raise UserError(Problem(f"{path}:1", rule, mend="give the format"))


def _unknown(path: Path, found: str, mend: str = "") -> UserError:
    mend = mend or f"give one of {', '.join(TRACE_FORMATS)} as format, if it is one"
    return UserError(Problem(f"{path}:1", f"the format cannot be told: {found}", mend=mend))
