"""Every trace format on real and small files: values, times, tolerance, detection, options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.errors import UserError
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.chunk import CHUNK_SIZE
from simbatch.sim.workload.model import Workload
from tests.bench_files import read, shared, source_of, write_lines

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
OURS = "request_id,arrival_s,num_prompt_tokens,num_output_tokens"


@pytest.mark.parametrize(
    ("name", "count", "prompts", "outputs", "last_ps"),
    [
        ("azure/AzureLLMInferenceTrace_conv.csv", 19_366, 22_361_870, 4_088_665, 3_501_721_937_000_000),
        ("azure/AzureLLMInferenceTrace_code.csv", 8_819, 18_059_974, 245_896, 3_435_948_056_000_000),
    ],
)
def test_the_real_azure_traces_are_read_whole(name: str, count: int, prompts: int, outputs: int, last_ps: int) -> None:
    found = read(shared(f"traces/{name}"))
    assert len(found["arrival_ps"]) == count
    assert (sum(found["num_prompt_tokens"]), sum(found["num_output_tokens"])) == (prompts, outputs)
    assert (found["arrival_ps"][0], found["arrival_ps"][-1]) == (0, last_ps)
    assert found["hash_ids"] is None


@pytest.mark.parametrize(
    ("name", "trace_format", "count", "first", "num_hashes"),
    [
        ("mooncake/conversation_trace.jsonl", "mooncake", 12_031, (0, 6758, 500), 288_500),
        ("mooncake/synthetic_trace.jsonl", "mooncake", 3_993, (0, 40160, 6), 121_877),
        ("sharegpt-llama-3.1-8b-300-sps10.timed_trace.jsonl", "timed_trace", 300, (0, 2358, 531), 15_942),
    ],
)
def test_real_traces_with_hashes(
    name: str, trace_format: str, count: int, first: tuple[int, int, int], num_hashes: int
) -> None:
    source = source_of(shared(f"traces/{name}"))
    assert (source.format, source.hash_block_tokens) == (trace_format, 512 if trace_format == "mooncake" else 16)
    found = read(shared(f"traces/{name}"))
    assert len(found["arrival_ps"]) == count
    assert tuple(found[key][0] for key in ("arrival_ps", "num_prompt_tokens", "num_output_tokens")) == first
    assert sum(map(len, found["hash_ids"])) == num_hashes


def test_mooncakes_milliseconds() -> None:
    assert read(shared("traces/mooncake/conversation_trace.jsonl"))["arrival_ps"][-1] == 3_536_999 * 10**9


@pytest.mark.parametrize(
    ("times", "expected_ps"),
    [
        (  # as the files of 2024 have them
            ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01+00:00", "2024-05-12 00:00:00.000001Z"),
            [0, PS_PER_S - 9_930_000_000, 2 * 86_400 * PS_PER_S - 9_929_000_000],
        ),
        (  # other zones and digits
            ("2023-12-31 23:59:59.5", "2024-01-01T01:00:00.123456789+01:00", "2024-01-01 00:00:00.123456790Z"),
            [0, 623_456_789_000, 623_456_790_000],
        ),
    ],
)
def test_times_of_azure(tmp_path: Path, times: tuple[str, ...], expected_ps: list[int]) -> None:
    (tmp_path / "week.csv").write_text(AZURE + "\n".join(f"{time},{2162 + i},5" for i, time in enumerate(times)))
    found = read(tmp_path / "week.csv")
    assert (found["arrival_ps"], found["num_prompt_tokens"]) == (expected_ps, [2162, 2163, 2164])


def test_burstgpt(tmp_path: Path) -> None:
    path = tmp_path / "BurstGPT_1.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45.5,GPT-4,1087,230,1317,API log\n"
    )
    source = source_of(path)
    assert source.format == "burstgpt"
    assert source.ignored == {"Model", "Total tokens", "Log Type"}
    found = read(path)
    assert found["arrival_ps"] == [0, 40_500_000_000_000]
    assert found["num_output_tokens"] == [18, 230]


def bench(**lists: list[Any]) -> str:
    return json.dumps({"date": "20260101", "completed": 3, "request_throughput": 1.0, **lists}, indent=1)


def test_vllm_bench_is_ordered_by_start_and_counts_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "openai-infqps.json"
    path.write_text(bench(start_times=[1003.5, 1001.0, 1002.0], input_lens=[3, 1, 2], output_lens=[30, 10, 20]))
    found = read(path)
    assert source_of(path).format == "vllm_bench"
    assert found["arrival_ps"] == [0, PS_PER_S, 2_500_000_000_000]
    assert (found["num_prompt_tokens"], found["num_output_tokens"]) == ([1, 2, 3], [10, 20, 30])


def test_a_failed_request_of_vllm_bench_does_not_move_the_others(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(bench(start_times=[0.0, 1001.0, 1002.0], input_lens=[3, 1, 2], output_lens=[0, 10, 20]))
    assert read(path, on_empty="skip")["arrival_ps"] == [0, PS_PER_S]


def test_our_formats_say_everything(tmp_path: Path) -> None:
    row = {"request_id": "a", "arrival_s": 0.25, "num_prompt_tokens": 20, "num_output_tokens": 3}
    full = row | {"request_id": "b", "arrival_s": 0.5, "priority": -2, "tenant": "acme", "hash_ids": [5, 6]}
    lines = write_lines(tmp_path / "t.jsonl", [row, full])
    table = tmp_path / "t.csv"
    table.write_text(f"{OURS},priority,tenant,hash_ids\na,0.25,20,3,,,\nb,0.5,20,3,-2,acme,5 6\n")
    for found in (read(lines), read(table)):
        assert found == {
            "request_id": ["a", "b"],
            "arrival_ps": [0, 250_000_000_000],
            "num_prompt_tokens": [20, 20],
            "num_output_tokens": [3, 3],
            "priority": [0, -2],
            "tenant": [None, "acme"],
            "hash_ids": [(), (5, 6)],
        }


def test_priorities_may_be_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"{OURS},priority\na,0,1,1,high\nb,0,1,1,low\nc,0,1,1,7\n")
    assert read(table)["priority"] == [0, 2, 7]


def test_parquet_with_other_integer_types(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "arrival_s": pa.array([0, 1], pa.int32()),
        "num_prompt_tokens": pa.array([20, 33], pa.uint16()),
        "num_output_tokens": pa.array([1.0, 2.0], pa.float32()),
        "hash_ids": pa.array([[1], None], pa.list_(pa.int32())),
        "extra": pa.array(["x", "y"]),
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert found["arrival_ps"] == [0, PS_PER_S]
    assert found["num_output_tokens"] == [1, 2]
    assert found["hash_ids"] == [(1,), ()]
    assert source_of(tmp_path / "t.parquet").ignored == {"extra"}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n\r\n\r\n",
        b'"TIMESTAMP","ContextTokens","GeneratedTokens"\n"2023-11-16 18:15:46.6805900","374","44"\n',
        b"TIMESTAMP, ContextTokens, GeneratedTokens\n2023-11-16 18:15:46.6805900, 374, 44",
        b"\nGeneratedTokens,Region,TIMESTAMP,ContextTokens\n\n44,west,2023-11-16 18:15:46.6805900,374.0\n",
    ],
    ids=["BOM, CRLF and blank last lines", "quotes", "spaces", "another order, blank lines, whole floats"],
)
def test_csv_as_other_programs_write_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    found = read(path)
    assert (found["arrival_ps"], found["num_prompt_tokens"], found["num_output_tokens"]) == ([0], [374], [44])


def test_json_lines_as_other_programs_write_them(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"arrival_s": 1, "num_prompt_tokens": 5.0, "num_output_tokens": 2}\r\n\r\n')
    assert read(path)["num_prompt_tokens"] == [5]


TIMED = {"timestamp": 3, "input_length": 1000, "output_length": 1}
TIMED_ROWS = [TIMED, TIMED | {"timestamp": 7}]


def test_mooncake_and_timed_trace_are_told_apart_by_their_hashes(tmp_path: Path) -> None:
    by_512 = write_lines(tmp_path / "a.jsonl", [each | {"hash_ids": [1, 2]} for each in TIMED_ROWS])
    by_16 = write_lines(tmp_path / "b.jsonl", [each | {"hash_ids": list(range(62))} for each in TIMED_ROWS])
    assert (source_of(by_512).format, read(by_512)["arrival_ps"]) == ("mooncake", [0, 4 * 10**9])
    assert (source_of(by_16).format, read(by_16)["arrival_ps"]) == ("timed_trace", [0, 4 * PS_PER_S])


def test_or_by_the_files_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.timed_trace.jsonl", [TIMED])
    assert source_of(path).format == "timed_trace"


def test_or_by_nothing_and_then_the_format_must_be_given(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", TIMED_ROWS)
    with pytest.raises(UserError, match=r"t\.jsonl:1: mooncake .* the same keys.* fit both; say which"):
        source_of(path)
    assert read(path, format="mooncake")["arrival_ps"] == [0, 4 * 10**9]


def test_settings(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [{**TIMED, "timestamp": t, "hash_ids": [1] * 4} for t in (8, 16, 32)])
    found = read(path, format="timed_trace", time_unit="us", hash_block_tokens=256, rate_scale=4, limit=2)
    assert found["arrival_ps"] == [0, 2 * 10**6]


def test_rows_without_output_are_skipped_when_asked_for_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,num_prompt_tokens,num_output_tokens\n0,0,0\n1,5,2\n2,5,0\n3,6,1\n4,0,0\n")
    source = source_of(path, on_empty="skip")
    for _ in range(2):  # a second reading counts anew
        chunks = list(source.chunks())
        assert source.skipped == 3
        assert chunks[0].num_prompt_tokens == [5, 6]
    limited = source_of(path, on_empty="skip", limit=2)
    assert [chunk.arrival_ps for chunk in limited.chunks()] == [[0, 2 * PS_PER_S]]
    assert limited.skipped == 2  # what stands after the last request is not read


def test_a_limit_beyond_a_mistake_does_not_meet_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,num_prompt_tokens,num_output_tokens\n0,5,1\n1,5,0\n")
    assert read(path, limit=1)["arrival_ps"] == [0]
    with pytest.raises(UserError, match=r"t\.csv:3 num_output_tokens"):
        read(path, limit=2)


def test_relative_paths_start_at_the_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "t.jsonl", TIMED_ROWS)
    workload = Workload.model_validate({"trace": {"path": "t.jsonl", "format": "mooncake"}, "max_concurrency": 5})
    source = open_workload(workload, seed=0, folder=tmp_path)
    assert [chunk.arrival_ps for chunk in source.chunks()] == [[0, 4 * 10**9]]
    assert source.max_concurrency == 5


def test_classes_are_drawn_for_a_trace_without_any(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + "0,1,1\n" * 20_000)
    workload = Workload.model_validate({"trace": {"path": str(path)}, "priorities": {"high": 0.25, "low": 0.75}})
    found = [p for chunk in open_workload(workload, seed=1, folder=Path()).chunks() for p in chunk.priority or ()]
    assert len(found) == 20_000
    assert found.count(0) / 20_000 == pytest.approx(0.25, abs=0.01)
    again = [p for chunk in open_workload(workload, seed=1, folder=Path()).chunks() for p in chunk.priority or ()]
    assert again == found


def test_classes_on_top_of_a_traces_own_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{OURS},priority\na,0,1,1,3\n")
    workload = Workload.model_validate({"trace": {"path": str(path)}, "priorities": {"high": 1}})
    with pytest.raises(UserError, match=r"^workload\.priorities: .*t\.csv has priorities of its own; leave"):
        list(open_workload(workload, seed=0, folder=Path()).chunks())


def test_a_class_or_tenant_may_appear_late(tmp_path: Path) -> None:
    row = {"arrival_s": 0, "num_prompt_tokens": 1, "num_output_tokens": 1}
    path = write_lines(tmp_path / "t.jsonl", [row] * CHUNK_SIZE + [row | {"tenant": "late"}] + [row] * CHUNK_SIZE)
    chunks = list(source_of(path).chunks())
    assert all(chunk.tenant is None or len(chunk.tenant) == len(chunk) for chunk in chunks)
    seen = [chunk.tenant is not None for chunk in chunks]
    assert seen == sorted(seen)  # once it was there it stays
    assert sum(len(chunk) for chunk in chunks) == 2 * CHUNK_SIZE + 1
