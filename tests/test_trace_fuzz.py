"""Damaged files of every kind end in a UserError, or are read; nothing else ever comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from simbatch.sim.errors import UserError
from simbatch.sim.workload.trace_model import TRACE_FORMATS, TraceFormat
from tests.trace_files import read

GOOD: dict[TraceFormat, bytes] = {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,1\n2023-11-16 18:17:04.03,3,8\n",
    "burstgpt": b"Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45.5,GPT-4,1087,230\n",
    "mooncake": b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n',
    "timed_trace": b'{"timestamp":0.046,"input_length":40,"output_length":5,"hash_ids":[7,8]}\n',
    "vllm_bench": b'{"start_times": [3.5, 1], "input_lens": [4, 5], "output_lens": [1, 2]}',
    "guidellm": b'{"benchmarks": [{"requests": {"successful": [{"request_start_time": 1.5, "request_latency": 1, '
    b'"prompt_tokens": 5, "output_tokens": 2}]}, "config": {"strategy": {"type_": "x"}}}]}',
    "aiperf": b'{"metadata": {"request_start_ns": 5}, "metrics": {"input_sequence_length": {"value": 5}, '
    b'"output_sequence_length": {"value": 2}, "request_latency": {"value": 9, "unit": "ms"}}}\n',
    "inference_perf": b'[{"start_time": 1, "end_time": 2, "info": {"input_tokens": 5, "response_metrics": '
    b'{"output_tokens": 2, "output_token_times": [1.5, 2]}}}]',
    "jsonl": b'{"request_id": "a", "arrival_s": 1, "num_prompt_tokens": 5, "num_output_tokens": 2, "priority": 1}\n',
    "csv": b"request_id,arrival_s,num_prompt_tokens,num_output_tokens,tenant,hash_ids\na,0,20,1,x,3 4\n",
}
PIECES = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"-",
    b"nan",
    b"1e999",
    b"9" * 30,
    b"{",
    b"[",
    b"null",
    b"true",
    b" ",
]


def make_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [1, 2, 3] for name in ("arrival_s", "num_prompt_tokens", "num_output_tokens")}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


GOOD["parquet"] = make_parquet()


def outcome(content: bytes, trace_format: TraceFormat | None) -> int | None:
    """The number of requests; None for a UserError that says where and what, -1 for one that does not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t")
        path.write_bytes(content)
        try:
            return len(read(path, format=trace_format)["arrival_ps"])
        except UserError as error:
            return None if all(problem.place and problem.rule for problem in error.problems) else -1


def test_the_files_are_good_before_they_are_damaged() -> None:
    assert set(GOOD) == set(TRACE_FORMATS)
    for trace_format, content in GOOD.items():
        assert outcome(content, trace_format)
        assert outcome(content, None)


@settings(max_examples=300, deadline=None)
@given(
    trace_format=st.sampled_from(TRACE_FORMATS),
    given_format=st.booleans(),
    at=st.floats(0, 1),
    cut=st.integers(0, 12),
    piece=st.sampled_from(PIECES) | st.binary(max_size=6),
)
@example(trace_format="parquet", given_format=True, at=0.5, cut=0, piece=b"")
def test_damage_is_a_user_error(
    trace_format: TraceFormat, given_format: bool, at: float, cut: int, piece: bytes
) -> None:
    content = GOOD[trace_format]
    place = int(at * len(content))
    damaged = content[:place] + piece + content[place + cut :]
    found = outcome(damaged, trace_format if given_format else None)
    assert found is None or found >= 1


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), trace_format=st.sampled_from((None, *TRACE_FORMATS)))
def test_any_bytes_are_a_user_error(content: bytes, trace_format: TraceFormat | None) -> None:
    assert outcome(content, trace_format) is None
