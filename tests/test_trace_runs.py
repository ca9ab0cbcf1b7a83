"""What runs make of a trace: memory does not grow with it, and what was not simulated is said by every command.

Drawn anew in blocks: rows and gaps stay together, the rate stays, and the cache finds what it did.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Scenario, simulate
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
from simbatch.sim.workload import RequestChunk, Workload, open_workload
from simbatch.sim.workload.traces import TraceSource
from simbatch.sim.workload.traces.resample import draw_blocks
from simbatch.sim.workload.traces.statistics import describe
from tests import exit_code as run
from tests import run_command
from tests.bench_files import shared, source_of, write_lines

BLOCKS = 10
Row = dict[str, object]


def write(folder: Path, rows: Sequence[Row]) -> Workload:
    write_lines(folder / "t.jsonl", [*rows])
    return Workload.model_validate({"trace": {"path": "t.jsonl", "format": "jsonl", "resample_blocks": BLOCKS}})


def row(i: int, arrival_s: float, **more: object) -> Row:
    lengths = {"num_prompt_tokens": 100 + i, "num_output_tokens": 1 + i}
    return {"request_id": f"r{i}", "arrival_s": arrival_s, **lengths, **more}


def drawn(workload: Workload, folder: Path, seed: int) -> RequestChunk:
    [chunk] = open_workload(workload, seed=seed, folder=folder).chunks()
    return chunk


def test_rows_keep_all_their_columns_and_their_gaps(tmp_path: Path) -> None:
    times = np.cumsum(np.random.default_rng(1).gamma(0.3, 2.0, 300)).round(3)
    rows = [row(i, float(t), priority=i % 3, tenant=f"t{i % 4}") for i, t in enumerate(times)]
    workload = write(tmp_path, rows)
    found = drawn(workload, tmp_path, 5)
    numbers = [prompt - 100 for prompt in found.num_prompt_tokens]
    assert len(numbers) == 300
    assert found.num_output_tokens == [1 + i for i in numbers]
    assert found.priority == [i % 3 for i in numbers]
    assert found.tenant == [f"t{i % 4}" for i in numbers]
    assert [name.partition("~")[0] for name in found.request_id or ()] == [f"r{i}" for i in numbers]
    assert len({*(found.request_id or ())}) == 300
    assert found.arrival_ps == sorted(found.arrival_ps)
    span = times[-1] - times[0]
    assert (found.arrival_ps[-1] - found.arrival_ps[0]) / PS_PER_S == pytest.approx(span)  # the trace's own rate
    follow = [k for k, (a, b) in enumerate(pairwise(numbers)) if b == a + 1]
    assert len(follow) > 250  # all but the ends of blocks
    gaps = np.diff(found.arrival_ps)[follow] / PS_PER_S
    own = np.diff(times)[[numbers[k] for k in follow]]
    stretch = gaps[own > 0] / own[own > 0]
    assert stretch == pytest.approx(np.full(len(stretch), stretch[0]))  # one factor for all
    assert 0.5 < stretch[0] < 2


def test_a_seed_is_a_draw_and_the_same_seed_the_same_draw(tmp_path: Path) -> None:
    workload = write(tmp_path, [row(i, i / 3) for i in range(200)])
    first, again, other = (drawn(workload, tmp_path, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.num_prompt_tokens != other.num_prompt_tokens


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 30), st.integers(0, 9))
def test_as_many_requests_in_order_at_the_rate_of_the_trace(times: list[int], num_blocks: int, seed: int) -> None:
    ordered = np.sort(np.array(times, dtype=np.int64))
    found = draw_blocks(ordered, num_blocks, np.random.default_rng(seed))
    assert len(found.row) == len(found.block) == len(found.arrival_ps) == len(times)
    assert (np.diff(found.arrival_ps) >= 0).all()
    assert found.arrival_ps[0] == ordered[0]
    assert ordered[0] <= found.arrival_ps[-1] <= ordered[-1]


def test_every_row_comes_as_often_as_any_other() -> None:
    times = np.sort(np.random.default_rng(3).integers(0, 10**9, 40))
    counts = sum(np.bincount(draw_blocks(times, 4, np.random.default_rng(s)).row, minlength=40) for s in range(4000))
    assert counts == pytest.approx(np.full(40, 4000), rel=0.1)  # the circle has no ends


def test_a_block_that_comes_twice_does_not_find_itself_in_the_cache(tmp_path: Path) -> None:
    """Each prompt: a system prompt of 4 hashes that all share, then 20 of a conversation of 3 turns."""
    rows = []
    for i in range(240):
        talk = i // 3
        hashes = [0, 1, 2, 3, *(1000 + 20 * talk + k for k in range(8 + 4 * (i % 3)))]
        rows.append(
            {**row(i, i / 2), "num_prompt_tokens": 16 * len(hashes), "num_output_tokens": 4, "hash_ids": hashes}
        )
    workload = write(tmp_path, rows)
    data = {
        "profile": {"num_gpu_blocks": 50_000, "step_time": {"base_s": 0.01}},
        "workload": {"trace": {"path": "t.jsonl", "format": "jsonl"}},
    }
    scenario = Scenario.from_dict(data, folder=tmp_path)
    own = simulate(scenario).summary["simbatch"]["cached_tokens_share"]
    anew = scenario.override({"workload.trace.resample_blocks": BLOCKS})
    shares = [simulate(anew.override({"seed": s})).summary["simbatch"]["cached_tokens_share"] for s in range(4)]
    assert own > 0.4
    assert shares == pytest.approx([own] * 4, abs=0.03)  # 0.75 and more, if repeated blocks kept their names
    found = drawn(workload, tmp_path, 0)
    assert all(ids[:4] == (0, 1, 2, 3) for ids in found.hash_ids or ())


def test_where_no_time_passes_rows_are_drawn_one_by_one(tmp_path: Path) -> None:
    workload = write(tmp_path, [row(i, 2.0) for i in range(50)])
    found = drawn(workload, tmp_path, 1)
    assert {*found.arrival_ps} == {0}
    assert 20 < len({*found.num_prompt_tokens}) < 45


def test_a_result_says_that_its_trace_was_drawn_anew(tmp_path: Path) -> None:
    workload = write(tmp_path, [row(i, i / 3) for i in range(30)])
    data = {
        "profile": {"num_gpu_blocks": 600, "step_time": {"base_s": 0.01}},
        "workload": workload.model_dump(mode="json", exclude_none=True),
    }
    text = simulate(Scenario.from_dict(data, folder=tmp_path)).text()
    assert "Trace: drawn anew in 10 blocks of time by the seed, not as it is" in text


SCENARIO = """\
profile: h100-llama-3.1-8b-bf16
workload: {trace: {path: log.csv}}
slo: {ttft_ms: 1000}
"""
FLAGS = ("--columns", "arrival=when:ms", "--between", "0,4500", "--on-empty", "skip")
LEFT_OUT = "log.csv: 3 of its 21 rows were left out (between: [0, 4500])"
SAID = (
    "log.csv: columns by their usual names: prompt is prompt_tokens, output is completion_tokens (others: --columns, "
    "columns:)",
    "log.csv: only text is simulated: num_images would add to the prompts",
    LEFT_OUT,
    "log.csv: columns not used: num_images, total_tokens",
    "log.csv: 1 row without output tokens was left out (on_empty: skip)",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "s.yaml", *FLAGS),
    "compare": ("compare", "s.yaml", "--policy", "vllm", "--policy", "fixed", *FLAGS),
    "compare, seeds": ("compare", "s.yaml", "--policy", "vllm", "--policy", "fixed", "--replications", "2", *FLAGS),
    "compare, rates": ("compare", "s.yaml", "--rate", "1,2", *FLAGS),
    "sweep": ("sweep", "s.yaml", "--over", "engine.max_num_seqs=4,8", *FLAGS),
    "tune": ("tune", "s.yaml", "--trials", "2", "--confirm", "0", *FLAGS),
    "capacity": ("tune", "s.yaml", "--capacity", "--replications", "2", *FLAGS),
    "rank": ("rank", "s.yaml", "--policy", "vllm", "--policy", "fixed", *FLAGS),
    "plan": ("plan", "s.yaml", "--gpus", "h100", "--tp", "1", "--no-bands", *FLAGS),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{250 * i},{100 + i},{0 if i == 3 else 5},2,{105 + i}\n" for i in range(21))
    lines = f"when,prompt_tokens,completion_tokens,num_images,total_tokens\n{rows}"
    Path("log.csv").write_text(lines)
    Path("s.yaml").write_text(SCENARIO)


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_same_sentences_everywhere(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    jobs = () if command[0] == "run" else ("--jobs", "1")
    assert run(*command, *jobs, "-o", "out") == 0
    shown = one_line(capsys.readouterr().out)
    for sentence in SAID:
        assert shown.count(f"NOTE: {sentence}") == 1
    if command[0] == "run":
        ours: dict[str, Any] = json.loads(Path("out/summary.json").read_text())["simbatch"]
        assert ours["unread"] == [*SAID]
        assert set(SAID) <= set(ours["warnings"])


@pytest.mark.usefixtures("here")
def test_init_writes_how_the_trace_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vllm serve meta-llama/Llama-3.1-8B-Instruct"
    assert run("init", line, "--gpu", "h100", "--trace", "log.csv", *FLAGS, "-o", "made.yaml") == 0
    capsys.readouterr()
    assert run("run", "made.yaml", "-o", "out") == 0
    assert f"NOTE: {LEFT_OUT}" in one_line(capsys.readouterr().out)


@pytest.mark.usefixtures("here")
def test_recommend_takes_the_lengths_of_a_trace() -> None:
    profile = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    columns = {"arrival": {"name": "when", "unit": "ms"}}
    traced = {"path": str(Path("log.csv").absolute()), "columns": columns, "between": [0, 4500], "on_empty": "skip"}
    scenario = scenario_of(USE_CASES["interactive"], profile, profile.name, {"ttft_ms": 1000}, 0, traced=traced)
    assert scenario.engine.max_model_len == 117 + 5  # the longest of each, of the rows that are read
    result = simulate(scenario.override({"workload.num_prompts": 50}))
    assert {100, 110, 117} < set(result.requests["num_prompt_tokens"])
    assert result.summary["simbatch"]["unread"] == [*SAID]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", ["init", "recommend"])
def test_how_a_trace_is_read_needs_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("vllm serve meta-llama/Llama-3.1-8B-Instruct", "--gpu", "h100", "-o", "made.yaml")
    words = line if command == "init" else ("--use-case", "batch", "--profile", "h100-llama-3.1-8b-bf16")
    assert run(command, *words, "--between", "0,1") == 2
    assert "--between: there is no trace to read; add --trace FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "warning"),
    [("08", "num_decode_tokens"), ("16", "Host and front end are assumed, not measured on this server")],
)
def test_08_lengths_alone_run_and_16_an_assumed_host_is_said(
    number: str, warning: str, tmp_path: Path, capsys: Any
) -> None:
    done = run_command(capsys, "run", shared(f"cases/public/{number}-*") / "scenario.yaml", "-o", tmp_path, "--json")
    assert warning in " ".join(json.loads(done.out)["simbatch"]["warnings"])


ROWS = 160_000


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
    write(small, ROWS // 2)  # more than a chunk of rows
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
