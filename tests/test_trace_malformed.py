"""Wrong trace files: each is refused with its place, the rule, the value and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from simbatch.sim.errors import UserError
from tests.bench_files import read, write_lines

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-16 18:17:03.9799600,4808,10\n"
OURS = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,priority,hash_ids\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"

# id: (rows after Azure's header, line and column, rule, value shown)
AT = "2023-11-16 18:17:04.0"
ROWS: dict[str, tuple[str, str, str, str]] = {
    "negative length": (f"{GOOD}{AT},-5,10", "3 ContextTokens", "must not be negative", "'-5'"),
    "fractional length": (f"{AT},5,10.5", "2 GeneratedTokens", "whole number of tokens", "'10.5'"),
    "NaN length": (f"{AT},nan,10", "2 ContextTokens", "needs prompt tokens, and here are none", ""),
    "infinite length": (f"{AT},inf,10", "2 ContextTokens", "not NaN or infinite", "'inf'"),
    "length as words": (f"{AT},many,10", "2 ContextTokens", "whole number of tokens", "'many'"),
    "length with separator": (f"{AT},1_000,10", "2 ContextTokens", "whole number of tokens", "'1_000'"),
    "length of other digits": (f"{AT},\u0663,10", "2 ContextTokens", "whole number of tokens", "'\u0663'"),
    "empty length": (f"{AT},,10", "2 ContextTokens", "needs prompt tokens, and here are none", ""),
    "odd groups": (f'{AT},"1,10",5', "2 ContextTokens", "whole number of tokens", "'1,10'"),
    "huge length": (f"{AT},5,99999999999", "2 GeneratedTokens", "at most 2147483647", "'99999999999'"),
    "endless length": (f"{AT},{'9' * 5000},1", "2 ContextTokens", "must be", "'9999"),
    "no output": (f"{GOOD}{AT},5,0", "3 GeneratedTokens", "needs output tokens", ""),
    "a dash for output": (f"{GOOD}{AT},5,-", "3 GeneratedTokens", "needs output tokens", ""),
    "no prompt": (f"{AT},0,5", "2 ContextTokens", "needs prompt tokens", ""),
    "no timestamp": ("yesterday,5,5", "2 TIMESTAMP", "must be a timestamp", "'yesterday'"),
    "month 13": ("2023-13-16 18:17:04.0,5,5", "2 TIMESTAMP", "no date or time", "'2023-13-16 18:17:04.0'"),
    "second 61": (f"{GOOD}2023-11-16 18:17:61.0,5,5", "3 TIMESTAMP", "no date or time", "'2023-11-16 18:17:61.0'"),
    "sloppy second": (f"{GOOD}2023-11-16 18:17:4.0,5,5", "3 TIMESTAMP", "a timestamp", "'2023-11-16 18:17:4.0'"),
    "zone of 99 h": (f"{AT}+99:00,5,5", "2 TIMESTAMP", "no date or time", f"'{AT}+99:00'"),
    "backwards": (f"{GOOD}{GOOD}2023-11-16 18:17:03.0,5,5", "4 TIMESTAMP", "0.97996 s earlier than the request", ""),
    "too few fields": (f"{GOOD}{AT},5", "3 row", "has 2 fields, and the header has 3", f"'{AT},5'"),
    "too many fields": (f"{AT},5,5,5", "2 row", "has 4 fields, and the header has 3", f"'{AT},5,5,5'"),
    "after blank lines": (f"\n\n{GOOD}\n{AT},x,5", "6 ContextTokens", "whole number of tokens", "'x'"),
    "open quote": (f'{GOOD}"{AT},5,5', "3", "not valid CSV", ""),
}


def check(folder: Path, name: str, settings: dict[str, Any], place: str, rule: str, value: str) -> None:
    with pytest.raises(UserError) as caught:
        read(folder / name, **settings)
    problem = caught.value.problems[0]
    assert problem.place == f"{folder}/{place}"
    assert rule in problem.rule
    assert f"(got {value}" in str(problem) or not value
    assert problem.mend


@pytest.mark.parametrize("case", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("on_empty", ["error", "skip"])
def test_a_wrong_row(tmp_path: Path, case: tuple[str, str, str, str], on_empty: str) -> None:
    rows, place, rule, value = case
    (tmp_path / "t.csv").write_text(f"{AZURE}{rows}\n")
    if rule == "needs output tokens" and on_empty == "skip":
        assert len(read(tmp_path / "t.csv", on_empty="skip")["arrival_ps"]) == 1
    else:
        check(tmp_path, "t.csv", {"on_empty": on_empty}, f"t.csv:{place}", rule, value)


# id: (file name, content, settings, place, rule, value shown)
Case = tuple[str, str | bytes, dict[str, Any], str, str, str]
JSONL: dict[str, Any] = {"format": "jsonl"}
GOOD_LINE = '{"arrival_s": 0, "num_prompt_tokens": 1, "num_output_tokens": 1}\n'
FILES: dict[str, Case] = {
    "header only": ("t.csv", AZURE, {}, "t.csv", "the trace has no requests", ""),
    "empty file": ("t.csv", "", {}, "t.csv", "the file is empty", ""),
    "blank file": ("t.csv", "\n\n", {"format": "azure"}, "t.csv", "the file is empty", ""),
    "blank lines": ("t.jsonl", "\n\n", JSONL, "t.jsonl", "the trace has no requests", ""),
    "all skipped": ("t.csv", BURST + "5,m,3,0,3,c\n" * 2, {"on_empty": "skip"}, "t.csv", "all its 2 rows", ""),
    "missing column": (
        *("t.csv", "TIMESTAMP,ContxtTokens,GeneratedTokens\n", {}, "t.csv:1 ContextTokens"),
        *("the column is missing; the file has TIMESTAMP, ContxtTokens, GeneratedTokens", ""),
    ),
    "column twice": (
        *("t.csv", "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n", {}, "t.csv:1 ContextTokens"),
        *("stands twice", ""),
    ),
    "another format": (
        *("t.csv", AZURE + GOOD, {"format": "burstgpt"}),
        *("t.csv:1 Timestamp, Request tokens, Response tokens", "the columns are missing", ""),
    ),
    "unknown header": ("t.csv", "when,what\n1,2\n", {}, "t.csv:1", "no known format begins with 'when,what'", ""),
    "unknown keys": ("t.jsonl", '{"when": 1, "what": 2}\n', {}, "t.jsonl:1", "has the keys when, what", ""),
    "just text": ("notes.txt", "hello\n", {}, "notes.txt:1", "the format cannot be told", ""),
    "gzip": ("t.csv.gz", gzip.compress(AZURE.encode())[:-9], {}, "t.csv.gz", "cannot be unpacked", ""),
    "gzip, no rows": ("t.csv.gz", gzip.compress(AZURE.encode()), {}, "t.csv.gz", "the trace has no requests", ""),
    "latin-1": ("t.csv", BURST.encode() + b"5,m,3,1,4,caf\xe9\n", {}, "t.csv:2", "must be UTF-8 text", r"b'\xe9'"),
    "UTF-16": ("t.csv", AZURE.encode("utf-16"), {}, "t.csv:1", "is UTF-16", r"b'\xff\xfe"),
    "negative time": ("t.csv", BURST + "-5,m,3,1,4,c\n", {}, "t.csv:2 Timestamp", "must not be negative", "'-5'"),
    "infinite time": ("t.csv", BURST + "inf,m,3,1,4,c\n", {}, "t.csv:2 Timestamp", "not NaN or infinite", "'inf'"),
    "too long": ("t.csv", BURST + "0,m,3,1,4,c\n1700000000,m,3,1,4,c\n", {}, "t.csv:3 Timestamp", "106 days", ""),
    "time as words": ("t.csv", OURS + "a,soon,1,1,,\n", {}, "t.csv:2 arrival_s", "a time in plain numbers", "'soon'"),
    "no request_id": ("t.csv", OURS + ",0,1,1,,\n", {}, "t.csv:2 request_id", "must not be empty", "''"),
    "class": ("t.csv", OURS + "a,0,1,1,vip,\n", {}, "t.csv:2 priority", "an integer, or high, normal or low", "'vip'"),
    "few hashes": (
        "t.csv",
        OURS + "a,0,100,1,,1 2\n",
        {},
        "t.csv:2 hash_ids",
        "100 tokens has 6 or 7 hashes of 16",
        "2",
    ),
    "many hashes": ("t.csv", OURS + "a,0,32,1,,1 2 3\n", {}, "t.csv:2 hash_ids", "32 tokens has 2 hashes of 16", "3"),
    "hashes of 32": (
        *("t.csv", OURS + "a,0,100,1,,1\n", {"hash_block_tokens": 32}, "t.csv:2 hash_ids"),
        *("3 or 4 hashes of 32", "1"),
    ),
    "hash as word": ("t.csv", OURS + "a,0,32,1,,1 x\n", {}, "t.csv:2 hash_ids", "integers, and 'x' is none", "'1 x'"),
    "cut off": ("t.jsonl", GOOD_LINE + '{"arrival_s": 0, "num_pro', {}, "t.jsonl:2:18", "not valid JSON", "'{"),
    "a JSON list": ("t.jsonl", "[1, 2]\n", JSONL, "t.jsonl:1", "must be one JSON object a line", "[1, 2]"),
    "JSON NaN": ("t.jsonl", GOOD_LINE.replace("0", "NaN"), JSONL, "t.jsonl:1 arrival_s", "not NaN", "nan"),
    "a key twice": ("t.jsonl", '{"a": 1, "a": 2}\n', JSONL, "t.jsonl:1", "the key 'a' stands twice", ""),
    "deep JSON": ("t.jsonl", '{"a":' * 100_000 + "\n", JSONL, "t.jsonl:1", "nested too deeply", ""),
    "bench: totals": ("run.json", '{"completed": 3, "request_throughput": 1}', {}, "run.json", "totals only", ""),
    "bench: lengths": (
        *("run.json", '{"start_times": [1, 2], "input_lens": [1], "output_lens": [1, 1]}', {}),
        *("run.json start_times, input_lens, output_lens", "must have the same length", "[2, 1, 2]"),
    ),
    "bench: text": (
        *("run.json", '{"start_times": [1, 2], "input_lens": [1, "x"], "output_lens": [1, 1]}', {}),
        *("run.json input_lens[1]", "whole number of tokens", "'x'"),
    ),
    "bench: no list": (
        *("run.json", '{"start_times": [1], "input_lens": 3, "output_lens": [1]}', {}),
        *("run.json input_lens", "must be a list", "3"),
    ),
    "bench: failed request": (
        *("run.json", '{"start_times": [1, 2], "input_lens": [1, 1], "output_lens": [1, 0]}', {}),
        *("run.json output_lens[1]", "needs output tokens", ""),
    ),
    "no parquet": ("t.parquet", "PAR1 and no more", {}, "t.parquet", "not valid parquet", ""),
}


@pytest.mark.parametrize("case", FILES.values(), ids=FILES.keys())
def test_a_wrong_file(tmp_path: Path, case: Case) -> None:
    name, content, settings, place, rule, value = case
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    check(tmp_path, name, settings, place, rule, value)


ROW = {"arrival_s": 0.5, "num_prompt_tokens": 40, "num_output_tokens": 5}
JSON: dict[str, tuple[dict[str, Any], str, str]] = {
    "text as number": ({"num_prompt_tokens": "many"}, "num_prompt_tokens", "whole number of tokens"),
    "number is true": ({"num_output_tokens": True}, "num_output_tokens", "whole number of tokens"),
    "number is null": ({"num_output_tokens": None}, "num_output_tokens", "needs output tokens"),
    "fraction": ({"num_output_tokens": 1.5}, "num_output_tokens", "whole number of tokens"),
    "negative": ({"num_output_tokens": -1}, "num_output_tokens", "must not be negative"),
    "huge": ({"num_output_tokens": 10**400}, "num_output_tokens", "at most 2147483647"),
    "time as text": ({"arrival_s": "one"}, "arrival_s", "a time in plain numbers"),
    "time is a list": ({"arrival_s": [1]}, "arrival_s", "a time in plain numbers"),
    "negative time": ({"arrival_s": -0.5}, "arrival_s", "must not be negative"),
    "huge time": ({"arrival_s": 1e300}, "arrival_s", "too large for a time"),
    "hashes as a number": ({"hash_ids": 3}, "hash_ids", "a list of integers"),
    "fractional hash": ({"hash_ids": [1, 2.5]}, "hash_ids", "2.5 is none"),
    "hash is true": ({"hash_ids": [1, True]}, "hash_ids", "True is none"),
    "hashes and none": ({"hash_ids": []}, "hash_ids", "2 or 3 hashes"),
    "priority is 1.5": ({"priority": 1.5}, "priority", "an integer, or high"),
    "tenant is a list": ({"tenant": ["a"]}, "tenant", "text or a whole number"),
}


@pytest.mark.parametrize("case", JSON.values(), ids=JSON.keys())
@pytest.mark.parametrize("row", [1, 20_000])
def test_a_wrong_value_in_json_lines(tmp_path: Path, case: tuple[dict[str, Any], str, str], row: int) -> None:
    change, column, rule = case
    rows = [ROW] * (row + 3)
    rows[row - 1] = ROW | change
    path = write_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(UserError) as caught:
        read(path, format="jsonl")
    problem = caught.value.problems[0]
    assert problem.place == f"{path}:{row} {column}"
    assert rule in problem.rule


def test_a_request_id_in_some_rows_only(tmp_path: Path) -> None:
    rows = [ROW] * 20_000 + [ROW | {"request_id": "x"}] * 20_000
    with pytest.raises(UserError, match=r"request_id: .*(must not be empty|some rows only)"):
        read(write_lines(tmp_path / "t.jsonl", rows))


def test_wrong_values_in_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    good = {"arrival_s": [0.0, 1.0], "num_prompt_tokens": [1, 2], "num_output_tokens": [1, 2]}
    for change, place, rule in [
        ({"arrival_s": [0.0, None]}, f"{path}:2 arrival_s", "is empty"),
        ({"arrival_s": [0.0, float("nan")]}, f"{path}:2 arrival_s", "not NaN"),
        ({"arrival_s": ["0", "one"]}, f"{path}:2 arrival_s", "a time in plain numbers"),
        ({"num_prompt_tokens": [1, -2]}, f"{path}:2 num_prompt_tokens", "negative"),
    ]:
        pq.write_table(pa.table({**good, **change}), path)
        with pytest.raises(UserError) as caught:
            read(path)
        assert caught.value.problems[0].place == place
        assert rule in caught.value.problems[0].rule
    pq.write_table(pa.table({"arrival_s": [0.0]}), path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert [problem.place for problem in caught.value.problems] == [f"{path} num_prompt_tokens, num_output_tokens"]


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    rows = {name: list(range(1, 5000)) for name in ("arrival_s", "num_prompt_tokens", "num_output_tokens")}
    pq.write_table(pa.table(rows), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[200:2000] = bytes(1800)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.parquet.*(not valid parquet|must)"):
        read(path)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(AZURE + GOOD)
    with pytest.raises(
        UserError, match=r"^workload\.trace\.path: there is no such file .*; did you mean trace\.csv\?$"
    ):
        read(tmp_path / "trac.csv")
    with pytest.raises(UserError, match=r"^workload\.trace\.path: is a folder, not a trace"):
        read(tmp_path)
    with pytest.raises(UserError, match=r"^workload\.trace\.path: there is no such file"):
        read(tmp_path / "no" / "trace.csv")


def test_settings_that_the_detected_format_has_no_use_for(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(AZURE + GOOD)
    with pytest.raises(UserError) as caught:
        read(path, time_unit="ms", hash_block_tokens=16)
    assert [problem.place for problem in caught.value.problems] == [
        "workload.trace.time_unit",
        "workload.trace.hash_block_tokens",
    ]


def test_every_mistake_of_a_header_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"arrivl_s": 1, "prompt": 2, "total_tokens": 3}))
    with pytest.raises(UserError) as caught:
        read(path, format="jsonl")
    (problem,) = caught.value.problems
    assert problem.place == f"{path}:1 arrival_s, num_prompt_tokens, num_output_tokens"
    assert problem.mend.startswith("is it 'arrivl_s'? --columns arrival=arrivl_s,prompt=NAME,output=NAME")
    assert len(str(problem)) < 500
