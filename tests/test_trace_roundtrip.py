"""What is written is read back: all formats, hashes of any size, statistics; and damaged files are refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simbatch.sim.errors import UserError
from simbatch.sim.scheduler.names import PrefixKeys, one_by_one
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.chunk import RequestChunk
from simbatch.sim.workload.model import Workload
from simbatch.sim.workload.trace_model import TRACE_FORMATS, TraceFormat
from simbatch.sim.workload.traces.statistics import describe
from simbatch.sim.workload.traces.write import Losses, Rehash, write_trace
from tests.bench_files import COLUMNS, read, shared, source_of


class ListSource:
    """Chunks from memory."""

    num_requests = max_concurrency = None
    think_time_ps = skipped = 0

    def __init__(self, chunks: list[RequestChunk], hash_block_tokens: int = 0) -> None:
        self._chunks, self.hash_block_tokens = chunks, hash_block_tokens

    def chunks(self) -> Iterator[RequestChunk]:
        return iter(self._chunks)


TOKENS = st.integers(1, 5000)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8)


@st.composite
def requests(draw: Any, hash_block_tokens: int = 16) -> RequestChunk:
    n = draw(st.integers(1, 8))
    prompts = draw(st.lists(st.integers(1, 200), min_size=n, max_size=n))
    counts = [draw(st.sampled_from([p // hash_block_tokens, -(-p // hash_block_tokens)])) for p in prompts]
    return RequestChunk(
        arrival_ps=[0, *sorted(draw(st.lists(st.integers(0, 4 * 10**15), min_size=n - 1, max_size=n - 1)))],
        num_prompt_tokens=prompts,
        num_output_tokens=draw(st.lists(TOKENS, min_size=n, max_size=n)),
        priority=draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=n, max_size=n)),
        request_id=[f"{i}{name}".strip() for i, name in enumerate(draw(st.lists(NAMES, min_size=n, max_size=n)))],
        tenant=[name.strip() or None for name in draw(st.lists(NAMES, min_size=n, max_size=n))],
        hash_ids=[tuple(draw(st.lists(st.integers(0, 2**60), min_size=k, max_size=k))) for k in counts],
    )


def written(chunk: RequestChunk, to: str, **options: Any) -> tuple[dict[str, Any], Losses]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t")
        source = ListSource([chunk], 16 if chunk.hash_ids else 0)
        count, losses = write_trace(source, path, to, **{"hash_block_tokens": 16, "regroup": False, **options})
        assert count == len(chunk)
        assert [entry.name for entry in Path(folder).iterdir()] == ["t"]
        return read(
            path, format=to, **({} if to == "azure" else {"hash_block_tokens": options.get("hash_block_tokens", 16)})
        ), losses


@settings(max_examples=60, deadline=None)
@given(chunk=requests(), to=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_our_formats_hold_everything(chunk: RequestChunk, to: str) -> None:
    found, losses = written(chunk, to)
    assert found == {name: getattr(chunk, name) for name in COLUMNS} | {
        "priority": chunk.priority if any(chunk.priority or ()) or to != "jsonl" else None,
        "tenant": chunk.tenant if any(chunk.tenant or ()) or to != "jsonl" else None,
        "hash_ids": chunk.hash_ids if any(chunk.hash_ids or ()) or to != "jsonl" else None,
    }
    assert not losses


@settings(max_examples=40, deadline=None)
@given(chunk=requests(), to=st.sampled_from(["mooncake", "timed_trace"]))
def test_formats_without_labels_say_so(chunk: RequestChunk, to: str) -> None:
    found, losses = written(chunk, to)
    for name in ("arrival_ps", "num_prompt_tokens", "num_output_tokens"):
        assert found[name] == getattr(chunk, name)
    assert (found["hash_ids"] or [()] * len(chunk)) == chunk.hash_ids
    assert losses[f"{to} has no request_id: left out"] == len(chunk)
    assert losses[f"{to} has no priority: left out"] == sum(map(bool, chunk.priority or ()))
    assert losses[f"{to} has no tenant: left out"] == sum(map(bool, chunk.tenant or ()))


@settings(max_examples=40, deadline=None)
@given(chunk=requests())
def test_azure_counts_from_the_first_request_in_ticks_of_100_ns_and_says_so(chunk: RequestChunk) -> None:
    found, losses = written(chunk, "azure")
    ticks = [ps // 10**5 for ps in chunk.arrival_ps]
    assert found["arrival_ps"] == [10**5 * (tick - ticks[0]) for tick in ticks]
    assert found["num_output_tokens"] == chunk.num_output_tokens
    cut = sum(1 for ps in chunk.arrival_ps if ps % 10**5)
    assert losses["azure's times have 7 decimals: cut"] == cut
    assert losses["azure has no hash_ids: left out"] == sum(map(bool, chunk.hash_ids or ()))


@pytest.mark.parametrize("to", ["jsonl", "csv", "parquet", "mooncake", "timed_trace", "azure"])
def test_the_real_azure_trace_survives_every_format(tmp_path: Path, to: str) -> None:
    path = shared("traces/azure/AzureLLMInferenceTrace_conv.csv")
    size = 512 if to == "mooncake" else 16
    count, losses = write_trace(source_of(path), tmp_path / "t", to, hash_block_tokens=size, regroup=False)
    assert (count, losses) == (19_366, {})
    found, original = read(tmp_path / "t", format=to), read(path)
    for name in ("arrival_ps", "num_prompt_tokens", "num_output_tokens"):
        assert found[name] == original[name]
    if to in ("mooncake", "timed_trace"):  # where vLLM needs a hash for every token of a prompt
        assert [
            len(row) * size >= prompt for row, prompt in zip(found["hash_ids"], found["num_prompt_tokens"], strict=True)
        ]
        assert len({h for row in found["hash_ids"] for h in row}) == sum(map(len, found["hash_ids"]))


def shared_tokens(rows: list[tuple[int, ...]], prompts: list[int], hash_block_tokens: int, block_size: int) -> Any:
    """How many of their first blocks each two prompts share, as the engine sees it."""
    keys = PrefixKeys(hash_block_tokens, block_size)
    blocks = [one_by_one(keys.of(row, prompt)) for row, prompt in zip(rows, prompts, strict=True)]
    return [
        [next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) for b in blocks]
        for a in blocks
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), old=st.sampled_from([3, 8, 16, 48]), new=st.sampled_from([4, 8, 16, 48]), ceil=st.booleans())
def test_prompts_share_the_same_tokens_in_blocks_of_another_size(data: Any, old: int, new: int, ceil: bool) -> None:
    prompts = data.draw(st.lists(st.integers(1, 150), min_size=2, max_size=5))
    counts = [-(-p // old) if ceil else p // old for p in prompts]
    rows = [tuple(data.draw(st.lists(st.integers(0, 1), min_size=k, max_size=k))) for k in counts]
    rehash = Rehash(old, new)
    found = [rehash(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    assert [len(row) for row in found] == [-(-prompt // new) for prompt in prompts]
    before, after = shared_tokens(rows, prompts, old, new), shared_tokens(found, prompts, new, new)
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j:
                assert after[i][j] == before[i][j]


def test_generated_prefixes_are_shared_by_the_same_requests_when_read_back(tmp_path: Path) -> None:
    length = {"distribution": "fixed", "mean": 50}
    data = {"num_prompts": 60, "request_rate": 5, "prompt_len": length, "output_len": length}
    prefix = {"num_prefixes": 3, "prefix_len": 70, "share": 0.7}
    source = open_workload(Workload.model_validate({**data, "prefix": prefix}), seed=1, folder=Path())
    write_trace(source, tmp_path / "t.jsonl", "jsonl", hash_block_tokens=16, regroup=True)
    found, drawn = read(tmp_path / "t.jsonl"), next(iter(source.chunks()))
    assert shared_tokens(found["hash_ids"], found["num_prompt_tokens"], 16, 16) == [
        [prompt_a // 16 if i == j else 4 if a and a == b else 0 for j, b in enumerate(drawn.hash_ids)]
        for i, (a, prompt_a) in enumerate(zip(drawn.hash_ids, drawn.num_prompt_tokens, strict=True))
    ]


def test_statistics_are_numpys() -> None:
    path = shared("traces/azure/AzureLLMInferenceTrace_code.csv")
    found, columns = describe(source_of(path)).summary(), read(path)
    times = np.array(columns["arrival_ps"]) / 1e12
    gaps = np.diff(times)
    assert found["mean_request_rate"] == pytest.approx(1 / gaps.mean())
    assert found["gap_cv"] == pytest.approx(gaps.std() / gaps.mean())
    assert found["burstiness"] == pytest.approx((gaps.mean() / gaps.std()) ** 2)
    peak = np.histogram(times, bins=np.arange(0, times[-1] + 10, 10))[0].max() / 10
    assert found["peak_to_mean_rate"]["10s"] == pytest.approx(peak * gaps.mean())
    for name in ("num_prompt_tokens", "num_output_tokens"):
        values = np.array(columns[name])
        assert found[name]["mean"] == pytest.approx(values.mean())
        assert found[name]["cv"] == pytest.approx(values.std() / values.mean())
        for q in (1, 5, 25, 50, 75, 90, 95, 99):
            assert found[name][f"p{q}"] == pytest.approx(np.percentile(values, q))


def test_repeated_blocks_are_those_whose_whole_prefix_was_seen() -> None:
    chunk = RequestChunk([0] * 3, [48] * 3, [1] * 3, hash_ids=[(1, 2, 3), (1, 2, 4), (9, 2, 3)])
    blocks = describe(ListSource([chunk], 16)).summary()["prefix_blocks"]
    assert (blocks["total"], blocks["repeated"]) == (9, 2)


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
    b'"session_id":"a",',
    b'"parent":1,"delay":-3,',
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


GOOD_FILES: dict[TraceFormat, bytes] = {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,48,1\n2023-11-16 18:17:04.03,3,8\n",
    "burstgpt": b"Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,472,18\n45.5,GPT-4,1087,230\n",
    "mooncake": b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n',
    "timed_trace": b'{"timestamp":0.046,"input_length":40,"output_length":5,"hash_ids":[7,8]}\n',
    "bailian": b'{"chat_id":1,"parent_chat_id":-1,"timestamp":0.5,"input_length":40,"output_length":5}\n'
    b'{"chat_id":2,"parent_chat_id":1,"timestamp":2,"input_length":60,"output_length":5}\n',
    "vllm_bench": b'{"start_times": [3.5, 1], "input_lens": [4, 5], "output_lens": [1, 2]}',
    "guidellm": b'{"benchmarks": [{"requests": {"successful": [{"request_start_time": 1.5, "request_latency": 1, '
    b'"prompt_tokens": 5, "output_tokens": 2}]}, "config": {"strategy": {"type_": "x"}}}]}',
    "aiperf": b'{"metadata": {"request_start_ns": 5}, "metrics": {"input_sequence_length": {"value": 5}, '
    b'"output_sequence_length": {"value": 2}, "request_latency": {"value": 9, "unit": "ms"}}}\n',
    "inference_perf": b'[{"start_time": 1, "end_time": 2, "info": {"input_tokens": 5, "response_metrics": '
    b'{"output_tokens": 2, "output_token_times": [1.5, 2]}}}]',
    "jsonl": b'{"request_id": "a", "arrival_s": 1, "num_prompt_tokens": 5, "num_output_tokens": 2, "priority": 1}\n',
    "csv": b"request_id,arrival_s,num_prompt_tokens,num_output_tokens,tenant,hash_ids\na,0,20,1,x,3 4\n",
    "parquet": make_parquet(),
}


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
    assert set(GOOD_FILES) == set(TRACE_FORMATS)
    for trace_format, content in GOOD_FILES.items():
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
    content = GOOD_FILES[trace_format]
    place = int(at * len(content))
    damaged = content[:place] + piece + content[place + cut :]
    found = outcome(damaged, trace_format if given_format else None)
    assert found is None or found >= 1


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=200), trace_format=st.sampled_from((None, *TRACE_FORMATS)))
def test_any_bytes_are_a_user_error(content: bytes, trace_format: TraceFormat | None) -> None:
    assert outcome(content, trace_format) is None
