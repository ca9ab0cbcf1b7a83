"""Traces: requests from files of several formats, read as streams."""

from __future__ import annotations

from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.paths import user_path
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.trace_model import (
    BENCH_FORMATS,
    HASH_BLOCK_TOKENS,
    TIME_UNITS,
    Trace,
    TraceFormat,
    settings_mistakes,
)
from simbatch.sim.workload.traces.rows import Columns, Reader
from simbatch.sim.workload.traces.source import TraceSource
from simbatch.sim.workload.traces.text import check_file

__all__ = ["TraceSource", "foretells", "open_trace"]


def open_trace(
    trace: Trace,
    *,
    folder: Path = Path(),
    workload: Workload | None = None,
    seed: int = 0,
    place: str = "workload.trace",
    run: int | None = None,
) -> TraceSource:
    """A trace's requests; a relative path starts at `folder`.

    `workload` adds its `priorities`, `tenants` and `max_concurrency`; `place` names the settings in messages; `run` is
    the number of a run in a benchmark's file of several. UserError at once for settings, missing files and headers,
    while reading for malformed rows.
    """
    path = user_path(folder, trace.path)
    check_file(path, f"{place}.path" if place else str(path))
    trace_format = trace.format or _detected(path)
    mistakes = settings_mistakes(trace, trace_format)
    if mistakes:
        raise UserError(*(Problem(_named(place, key), rule, getattr(trace, key), mend) for key, rule, mend in mistakes))
    reader = _reader(path, trace, trace_format, run)
    _check_named(trace, reader, place)
    return TraceSource(
        path,
        trace_format,
        reader,
        trace,
        max_concurrency=(workload.max_concurrency if workload else None) or getattr(reader, "max_concurrency", None),
        priorities=workload.priority_shares() if workload else None,
        tenants=workload.tenant_shares() if workload else None,
        seed=seed,
    )


def foretells(trace: Trace, folder: Path) -> bool:
    """Whether the file says what was predicted of the output lengths; its first row is read, and no more."""
    path = user_path(folder, trace.path)
    check_file(path, "workload.trace.path")
    if (trace.format or _detected(path)) in BENCH_FORMATS:  # they have none, and would be loaded whole
        return False
    return open_trace(trace, folder=folder).foretells


def _check_named(trace: Trace, reader: Reader, place: str) -> None:
    """UserError when the file lacks a column that the settings name."""
    name = None if trace.columns is None else trace.columns.predicted_output
    if name is not None and name not in reader.present:
        rule = "the file has no such column"
        mend = f"other columns in it: {', '.join(sorted(reader.ignored)) or 'none'}"
        raise UserError(Problem(_named(place, "columns.predicted_output"), rule, name, mend))


def _named(place: str, key: str) -> str:
    return f"{place}.{key}" if place else f"--{key.replace('_', '-')}"


def _detected(path: Path) -> TraceFormat:
    from simbatch.sim.workload.traces.detect import detect_format

    return detect_format(path)


def _reader(path: Path, trace: Trace, trace_format: TraceFormat, run: int | None) -> Reader:
    from simbatch.sim.workload.traces import columnar, lines, results, tables
    from simbatch.sim.workload.traces.values import PS_PER_UNIT

    unit = PS_PER_UNIT[trace.time_unit or TIME_UNITS.get(trace_format, "s")]
    hash_block_tokens = trace.hash_block_tokens or HASH_BLOCK_TOKENS.get(trace_format, 0)

    def own(columns: Columns) -> Columns:
        named = {} if trace.columns is None else {"predicted_output_tokens": trace.columns.predicted_output}
        return columns._replace(**{key: name for key, name in named.items() if name is not None})

    match trace_format:
        case "azure":
            return tables.TableReader(path, own(tables.AZURE), None, 0)
        case "burstgpt":
            return tables.TableReader(path, own(tables.BURSTGPT), unit, 0)
        case "csv":
            return tables.TableReader(path, own(tables.OURS), unit, hash_block_tokens)
        case "mooncake" | "timed_trace":
            return lines.LinesReader(path, own(lines.TIMED_TRACE), unit, hash_block_tokens)
        case "jsonl":
            return lines.LinesReader(path, own(tables.OURS), unit, hash_block_tokens)
        case "parquet":
            return columnar.ParquetReader(path, own(tables.OURS), unit, hash_block_tokens)
        case "vllm_bench" | "guidellm" | "aiperf" | "inference_perf":
            return results.BenchReader(path, results.BENCH, unit, run)
