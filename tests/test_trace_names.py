"""Files as people have them: any names of columns, units, separators, kinds of file; counted here by a few lines."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simbatch.sim.errors import UserError
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.formats import FORMATS, OURS, TABLES
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.traces.columns import arrival_of, length_of
from simbatch.sim.workload.traces.times import exact_ps
from simbatch.sim.workload.traces.write import write_trace
from tests.bench_files import read, source_of, write_lines

TIMES_S = (0.0, 0.25, 7.5)
PROMPTS, OUTPUTS = [2105, 900, 1200], [650, 300, 7]
SINCE = [round(1e12 * t) for t in TIMES_S]
NAMES = {  # arrival with what a value is of a time, prompt, output: as the tools write them
    "OpenAI's usage": ("created", "unix", "usage.prompt_tokens", "usage.completion_tokens"),
    "Vidur": ("arrived_at", 1, "num_prefill_tokens", "num_decode_tokens"),
    "Splitwise": ("arrival_timestamp", 1, "prompt_size", "token_size"),
    "LLMServingSim": ("arrival_time_ns", 1e9, "input_toks", "output_toks"),
    "BLIS": ("arrival_time_us", 1e6, "input_tokens", "output_tokens"),
    "LMBench": ("launch_time", "unix", "prompt_tokens", "generation_tokens"),
    "LiteLLM": ("startTime", "iso", "prompt_tokens", "completion_tokens"),
    "Langfuse": ("startTime", "iso", "usageDetails.input", "usageDetails.output"),
    "OpenTelemetry": ("start_time", "iso", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
    "Unix ms": ("timestamp", "unix_ms", "Prompt Tokens", "Generated Tokens"),
    "Unix ns": ("ts", "unix_ns", "promptTokens", "completionTokens"),
}
START = 1_700_000_000


def value_of(t: float, how: Any) -> Any:
    if how == "iso":
        return (datetime.fromtimestamp(START, UTC) + timedelta(seconds=t)).isoformat()
    factors = {"unix": 1, "unix_ms": 10**3, "unix_ns": 10**9}
    if how in factors:
        return START * factors[how] + (t if how == "unix" else round(t * factors[how]))
    return t * how


def rows_of(tool: str) -> list[dict[str, Any]]:
    arrival, how, prompt, output = NAMES[tool]
    lengths = zip(TIMES_S, PROMPTS, OUTPUTS, strict=True)
    return [{arrival: value_of(t, how), prompt: p, output: n, "total_tokens": p + n} for t, p, n in lengths]


def write_rows(path: Path, rows: list[dict[str, Any]], kind: str) -> None:
    """As a kind of file; nested objects where JSON has them."""
    separator = {"semicolons": ";", "tabs": "\t"}.get(kind, ",")
    text = "\n".join([separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)])
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        write_lines(path, [nested(row) for row in rows])
    elif kind == "list":
        path.write_text(json.dumps([nested(row) for row in rows], indent=1))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "csv.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text.encode())
    else:
        path.write_text(text)


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tabs", "jsonl", "list", "parquet", "csv.gz", "csv.zst"])
@pytest.mark.parametrize("tool", NAMES)
def test_usual_names_are_read_used_and_said(tmp_path: Path, tool: str, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    write_rows(path, rows_of(tool), kind)
    found = read(path)
    assert (found["num_prompt_tokens"], found["num_output_tokens"]) == (PROMPTS, OUTPUTS)
    assert found["arrival_ps"] == SINCE
    source = source_of(path)
    list(source.chunks())
    said = " ".join(source.unread())
    assert f"arrival is {NAMES[tool][0]}, prompt is {NAMES[tool][2]}, output is {NAMES[tool][3]}" in said
    assert "columns not used: total_tokens" in said


def nested(row: dict[str, Any]) -> dict[str, Any]:
    """`usage.prompt_tokens` as an object within."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        outer, _, inner = key.rpartition(".")
        if outer:
            found.setdefault(outer, {})[inner] = value
        else:
            found[key] = value
    return found


@pytest.mark.parametrize(
    "name", ["total_tokens", "cached_tokens", "usage.total_tokens", "max_tokens", "mean_input_tokens"]
)
def test_no_name_of_a_whole_a_part_or_a_limit_is_a_length(name: str) -> None:
    assert length_of(name) is None


@pytest.mark.parametrize(
    "name", ["end_time", "finish_time", "first_token_time", "elapsed_s", "request_time", "latency_ms"]
)
def test_no_name_of_an_end_or_a_duration_is_an_arrival(name: str) -> None:
    assert arrival_of(name) is None


def test_columns_by_any_name_with_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("when,in,out,who\n1000,5,1,a\n1500,6,2,b\n")
    columns = {"arrival": {"name": "when", "unit": "ms"}, "prompt": "in", "output": "out", "tenant": "who"}
    found = read(path, columns=columns)
    assert (found["arrival_ps"], found["num_prompt_tokens"], found["tenant"]) == ([0, 5 * 10**11], [5, 6], ["a", "b"])


def test_two_columns_that_can_be_meant_are_an_error_unless_they_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,input_tokens,output_tokens\n0,5,6,1\n")
    with pytest.raises(UserError, match="several columns can be the prompt: prompt_tokens, input_tokens; say which"):
        read(path)
    assert read(path, columns={"prompt": "input_tokens"})["num_prompt_tokens"] == [6]
    path.write_text("arrival_s,prompt_tokens,input_tokens,output_tokens\n0,5,5,1\n")
    assert read(path)["num_prompt_tokens"] == [5]


def test_decimal_commas_and_european_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s;num_prompt_tokens;num_output_tokens\n0,5;5;1\n1,75;6;2\n")
    assert read(path)["arrival_ps"] == [0, 1_250_000_000_000]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", TABLES)
def test_every_format_in_every_kind_of_file(tmp_path: Path, name: str, kind: str) -> None:
    form = FORMATS[name]
    times = [value_of(t, "iso") if form.unit == "iso" else t * (1e3 if form.unit == "ms" else 1) for t in TIMES_S]
    rows = [dict(zip(form.columns[:3], row, strict=True)) for row in zip(times, PROMPTS, OUTPUTS, strict=True)]
    path = tmp_path / f"{name}.{kind}"
    write_rows(path, rows, kind)
    assert source_of(path).format == (kind if name in OURS else name)
    found = read(path)
    assert (found["arrival_ps"], found["num_prompt_tokens"], found["num_output_tokens"]) == (SINCE, PROMPTS, OUTPUTS)


@pytest.mark.parametrize("name", TABLES)
def test_to_every_format_and_back(tmp_path: Path, name: str) -> None:
    row = {"request_id": "a", "num_prompt_tokens": 40, "num_output_tokens": 3, "priority": 1, "tenant": "x"}
    rows = [row | {"arrival_s": t, "request_id": str(t), "hash_ids": [1, 2, 3]} for t in TIMES_S]
    source = source_of(write_lines(tmp_path / "in.jsonl", rows))
    size = FORMATS[name].hash_block_tokens or 16
    count, losses = write_trace(source, tmp_path / "out", name, hash_block_tokens=size, regroup=size != 16)
    write_trace(
        source_of(tmp_path / "out", format=name), tmp_path / "back.csv", "csv", hash_block_tokens=16, regroup=True
    )
    found, back = read(tmp_path / "out", format=name), read(tmp_path / "back.csv")
    assert (count, found["arrival_ps"], back["arrival_ps"]) == (3, SINCE, SINCE)
    for kind, column in (("priority", "priority"), ("tenant", "tenant"), ("request_id", "request_id")):
        lost = any(f"no {column}: left out" in line for line in losses)
        assert lost == (getattr(FORMATS[name].columns, kind) is None)
        assert lost or found[column] == [each.get(column) for each in rows]


def test_between_sort_and_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "BurstGPT_3.csv"
    times = [19_440_110, 19_440_192, 19_440_161, 28_943_983]
    rows = "".join(f"{t}.0,{10 + i},1\n" for i, t in enumerate(times))
    path.write_text("Timestamp,Request tokens,Response tokens\n" + rows)
    with pytest.raises(UserError, match=r"31 s earlier than the request before it; .*--sort \(sort: true"):
        read(path)
    found = read(path, sort=True, between=[19_440_110, 19_440_192.0])
    assert (found["arrival_ps"], found["num_prompt_tokens"]) == ([0, 51 * 10**12], [10, 12])
    with pytest.raises(UserError, match=r"csv:5 Timestamp: is 9503873 s after .*106 days.*between or limit"):
        read(path, sort=True)
    assert read(path, sort=True, rate_scale=10)["arrival_ps"][-1] == 950_387_300 * 10**9
    with pytest.raises(UserError, match="no requests between 5 and 9"):
        read(path, between=[5, 9])
    with pytest.raises(UserError, match="START must be before END"):
        read(path, between=[9, 5])


def test_between_takes_timestamps_where_the_clock_is_unix_time(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", rows_of("Unix ms"))
    start, end = ((datetime.fromtimestamp(START, UTC) + timedelta(seconds=t)).isoformat() for t in (0.1, 7.5))
    assert read(path, between=[start, end])["num_prompt_tokens"] == [900]


def test_a_web_server_s_log_has_times_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "access.csv"
    times = ("[31/Dec/2025:23:59:58 +0100]", "01/Jan/2026:00:00:00 +0100", "31/Dec/2025:23:00:01 +0000")
    path.write_text("time,prompt_tokens,completion_tokens\n" + "".join(f"{time},5,1\n" for time in times))
    assert read(path)["arrival_ps"] == [0, 2 * 10**12, 3 * 10**12]


def test_lengths_alone_are_enough_for_empirical(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n100,5\n200,7\n")
    length = {"distribution": "empirical", "path": str(path)}
    data = {"num_prompts": 50, "request_rate": 2, "prompt_len": length, "output_len": length}
    source = open_workload(Workload.model_validate(data), seed=0, folder=Path())
    assert {p for chunk in source.chunks() for p in chunk.num_prompt_tokens} == {100, 200}
    with pytest.raises(UserError, match=r"arrival_s: the column is missing; .*lengths alone: prompt_len"):
        read(path)


def test_images_and_turns_are_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,NumImages,ContextTokens,GeneratedTokens,session_id\n2025-01-01 00:00:00,3,5,1,a\n")
    source = source_of(path)
    list(source.chunks())
    said = " ".join(source.unread())
    assert "only text is simulated: NumImages would add to the prompts" in said
    assert (
        "conversations are not followed: session_id; rows go at their own times (--columns session=session_id" in said
    )


def test_rows_of_failed_requests_may_have_no_output_at_all(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,prompt_tokens,completion_tokens\n0,5,1\n1,6,\n2,7,0\n")
    source = source_of(path, on_empty="skip")
    assert [chunk.num_prompt_tokens for chunk in source.chunks()] == [[5]]
    assert "2 rows without output tokens were left out" in " ".join(source.unread())


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_columns_at_once_and_one_by_one_are_the_same(tmp_path: Path, unit: str) -> None:
    exponent = {"s": 12, "ms": 9, "us": 6, "ns": 3}[unit]
    times = [k * 1.7 ** (k / 3) for k in range(60)]
    columns = {"arrival": {"name": "t", "unit": unit}}
    head = "t,prompt_tokens,output_tokens\n"
    (tmp_path / "a.csv").write_text(head + "".join(f"{t},1,1\n" for t in times))
    (tmp_path / "b.csv").write_text(head + "".join(f"{t},1.0,1\n" for t in times))  # no whole number to pyarrow
    exact = [exact_ps(t, exponent) for t in times]
    for name in ("a.csv", "b.csv"):
        assert read(tmp_path / name, columns=columns)["arrival_ps"] == [t - exact[0] for t in exact]
