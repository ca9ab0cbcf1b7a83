"""aiperf's records (profile_export.jsonl, one line a request) and its summary (profile_export_aiperf.json).

Read: ai-dynamo/aiperf @ db4f6397 (common/models/record_models.py, export_models.py, exporters/json_exporter.py) and
examples/artifacts/run1 @ 7c31f579, whose keys are the older ones. The records do not say how the client sent; the
summary beside them does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import MAX_TOKENS, JsonValue, Lenient, checked, count_of, json_values, number_at
from simbatch.sim.workload.bench.run import (
    BenchRun,
    BenchTotals,
    Ints,
    Load,
    gaps_told,
    objects,
    rate_of,
    read_text,
    untold_of,
)

AIPERF = "aiperf"
SUMMARY_FILE = "profile_export_aiperf.json"
NO_FIRST = "the records have no time of the first token: run aiperf with --streaming"
NO_GAPS = "the records have no gaps between chunks (inter_chunk_latency)"
FAILED = "failed in the recorded run: left out"
TURNS = "are later turns of a conversation: here they do not wait for the turn before"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}
TOKENS = ("prompt", "output")
COLUMNS = {
    "prompt": ("input_sequence_length",),
    "output": ("output_sequence_length", "output_token_count"),
    "e2el": ("request_latency",),
}
_TTFT = ("time_to_first_token", "ttft")
_SUMMARY = {"ttft": _TTFT[0], "tpot": "inter_token_latency", "e2el": "request_latency"}
_STATISTICS = {"mean": "avg", "median": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "std": "std"}


class _Metric(Lenient):
    value: float | list[float]
    unit: str | None = None


class _Metadata(Lenient):
    request_start_ns: int | None = None
    timestamp_ns: int | None = None  # as it was called first
    benchmark_phase: str | None = None
    credit_phase: str | None = None  # as it was called first
    turn_index: int | None = None


class _Record(Lenient):
    metadata: _Metadata
    metrics: dict[str, Any]
    error: Any = None


def is_record(value: Any) -> bool:
    """Whether it is a line of profile_export.jsonl."""
    return (
        isinstance(value, dict) and isinstance(value.get("metadata"), dict) and isinstance(value.get("metrics"), dict)
    )


def is_summary(value: Any) -> bool:
    """Whether it is profile_export_aiperf.json."""
    metric = value.get("request_latency") if isinstance(value, dict) else None
    return isinstance(metric, dict) and "avg" in metric and "unit" in metric


def read(path: Path, rows: Sequence[JsonValue]) -> BenchRun:
    """The run that the lines record, without its warm-up; UserError for what is malformed in them."""
    records: list[_Record] = [checked(_Record, row.value, row.place) for row in rows]
    counted = [
        (row, r)
        for row, r in zip(rows, records, strict=True)
        if (r.metadata.benchmark_phase or r.metadata.credit_phase or "profiling") == "profiling"
    ]
    ended = [(row, r) for row, r in counted if r.error is None]
    if not ended:
        raise UserError(Problem(str(path), "none of its requests ended well", len(counted)))
    columns = {name: _column(ended, theirs) for name, theirs in COLUMNS.items()}
    missing = [name for name, column in columns.items() if column is None]
    if missing:
        rule = f"has a record without {COLUMNS[missing[0]][0]}"
        raise UserError(Problem(str(path), rule, mend="run aiperf with a tokenizer"))
    tokens = {name: _tokens(columns[name] or [], ended, COLUMNS[name][0]) for name in TOKENS}
    outputs = tokens["output"]
    gaps = _gaps(ended)
    ttft = _column(ended, _TTFT)
    why = NO_GAPS if gaps is None else gaps_told(gaps, outputs)
    odd = ((len(counted) - len(ended), FAILED), (sum(bool(r.metadata.turn_index) for _, r in ended), TURNS))
    return BenchRun(
        tool=AIPERF,
        place=str(path),
        load=_load_beside(path),
        num_prompt_tokens=tokens["prompt"],
        num_output_tokens=outputs,
        error=objects(["" if n else "no tokens" for n in outputs]),
        e2el_s=np.array(columns["e2el"]),
        ttft_s=None if ttft is None else np.array(ttft),
        sent_s=_sent(ended),
        gaps_s=gaps,
        untold=untold_of(why, "" if ttft is not None else NO_FIRST),
        notes=tuple(f"{n:,} of {len(counted):,} requests {what}" for n, what in odd if n),
    )


def _tokens(column: Sequence[float], ended: Sequence[tuple[JsonValue, _Record]], name: str) -> Ints:
    for (row, _), value in zip(ended, column, strict=True):
        if not (0 <= value <= MAX_TOKENS and value == int(value)):
            raise UserError(Problem(f"{row.place} metrics.{name}", "must be a whole number of tokens", value))
    return np.array(column).astype(np.int64)


def _sent(ended: Sequence[tuple[JsonValue, _Record]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    starts = []
    for row, record in ended:
        start = record.metadata.request_start_ns or record.metadata.timestamp_ns
        if start is None:
            raise UserError(Problem(f"{row.place} metadata.request_start_ns", "required key is missing"))
        starts.append(start)
    first = min(starts)
    return np.array([(start - first) / 1e9 for start in starts])


def _metric(row: JsonValue, record: _Record, names: Sequence[str]) -> _Metric | None:
    name = next((name for name in names if name in record.metrics), None)
    return None if name is None else checked(_Metric, record.metrics[name], f"{row.place} metrics.{name}")


def _column(ended: Sequence[tuple[JsonValue, _Record]], names: Sequence[str]) -> list[float] | None:
    """One number a record, times in s; None unless every record has it."""
    found = [(row, _metric(row, record, names)) for row, record in ended]
    column = []
    for row, metric in found:
        if metric is None:
            return None
        if isinstance(metric.value, list):
            raise UserError(Problem(f"{row.place} metrics.{names[0]}", "must be a number", metric.value))
        column.append(metric.value * _SECONDS.get(metric.unit or "", 1.0))
    return column


def _gaps(ended: Sequence[tuple[JsonValue, _Record]]) -> Any:
    gaps = []
    for row, record in ended:
        metric = _metric(row, record, ("inter_chunk_latency",))
        if metric is None and record.metrics.get("output_sequence_length", {}).get("value") == 1:
            gaps.append(np.zeros(0))
        elif metric is None or not isinstance(metric.value, list):
            return None
        else:
            gaps.append(np.array(metric.value) * _SECONDS.get(metric.unit or "", 1.0))
    return objects(gaps)


def _load_beside(path: Path) -> Load:
    """As the summary in the same folder says."""
    beside = path.with_name(path.name.replace("profile_export", "profile_export_aiperf").replace(".jsonl", ".json"))
    if beside == path or not beside.is_file():
        return Load()
    value = next(json_values(beside, read_text(beside))).value
    return _load(value) if isinstance(value, dict) else Load()


def _load(summary: dict[str, Any]) -> Load:
    settings = summary.get("input_config")
    sent = settings.get("loadgen") if isinstance(settings, dict) else None
    if not isinstance(sent, dict):
        return Load()
    limit, rate = count_of(sent.get("concurrency")), rate_of(sent.get("request_rate"))
    return Load(np.inf if limit and rate is None else rate, max_concurrency=limit)


def read_summary(document: JsonValue) -> BenchTotals:
    """The totals of a run whose records were not exported."""
    value: dict[str, Any] = document.value

    totals = {}
    for name, metric in _SUMMARY.items():
        unit = value[metric].get("unit") if isinstance(value.get(metric), dict) else None
        for statistic, theirs in _STATISTICS.items():
            if (number := number_at(value, metric, theirs)) is not None:
                totals[f"{statistic}_{name}_ms"] = number * 1000 * _SECONDS.get(unit or "ms", 1e-3)
    for key, metric in (("request_throughput", "request_throughput"), ("output_throughput", "output_token_throughput")):
        if (number := number_at(value, metric, "avg")) is not None:
            totals[key] = number
    keys = ("request_count", "input_sequence_length", "output_sequence_length")
    count, prompt, output = (number_at(value, key, "avg") for key in keys)
    return BenchTotals(AIPERF, document.place, _load(value), totals, int(count) if count else None, prompt, output)
