"""Helpers of the tests of traces: real files, and requests read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simbatch.sim.workload.formats import Trace
from simbatch.sim.workload.traces import TraceSource, open_trace
from tests import bench_files

COLUMNS = ("request_id", "arrival_ps", "num_prompt_tokens", "num_output_tokens", "priority", "tenant", "hash_ids")


def shared(name: str) -> Path:
    """A real trace; skips the test where the folder of them is not there."""
    return bench_files.shared(f"traces/{name}")


def source_of(path: Path, **settings: Any) -> TraceSource:
    """The trace in `path`."""
    return open_trace(Trace(path=str(path), **settings))


def read(path: Path, **settings: Any) -> dict[str, Any]:
    """All requests of a trace, as columns; None where the file has no such column."""
    columns: dict[str, Any] = {}
    for chunk in source_of(path, **settings).chunks():
        for name in COLUMNS:
            values = getattr(chunk, name)
            columns[name] = None if values is None else (columns.get(name) or []) + values
    return columns


def write_lines(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
