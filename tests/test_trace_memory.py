"""Traces are streamed: memory does not grow with the file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from simbatch.sim.workload.traces import TraceSource
from simbatch.sim.workload.traces.tools.statistics import describe
from tests.trace_files import source_of

ROWS = 120_000


def write_csv(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.write("request_id,arrival_s,num_prompt_tokens,num_output_tokens\n")
        file.writelines(f"r{i},{i / 8},{100 + i % 900},{1 + i % 200}\n" for i in range(rows))


def write_jsonl(path: Path, rows: int) -> None:
    hashes = "[" + ", ".join(map(str, range(300, 363))) + "]"
    with path.open("w") as file:
        file.writelines(
            f'{{"arrival_s": {i / 8}, "num_prompt_tokens": 1000, "num_output_tokens": 5, "hash_ids": {hashes}}}\n'
            for i in range(rows // 4)
        )


def write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"arrival_s": [i / 8 for i in range(rows)]}
    columns |= {name: [5 + i % 99 for i in range(rows)] for name in ("num_prompt_tokens", "num_output_tokens")}
    pq.write_table(pa.table(columns), path, row_group_size=10_000)


def peak_bytes(source: TraceSource) -> int:
    tracemalloc.start()
    try:
        for chunk in source.chunks():
            assert len(chunk) <= 65_536
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, write: object) -> None:
    assert callable(write)
    ending = str(getattr(write, "__name__", "")).removeprefix("write_")
    small, large = tmp_path / f"small.{ending}", tmp_path / f"large.{ending}"
    write(small, ROWS // 3)
    write(large, ROWS)
    few, many = peak_bytes(source_of(small)), peak_bytes(source_of(large))
    assert many < 1.3 * few
    assert many < 40_000_000


def test_describe_keeps_counts_only(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ROWS)
    tracemalloc.start()
    try:
        found = describe(source_of(tmp_path / "t.csv")).summary()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["num_requests"] == ROWS
    assert found["num_prompt_tokens"]["max"] == 999
    assert peak < 40_000_000
