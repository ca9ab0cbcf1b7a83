"""What sessions felt: times to finish, with and without thinking, turn by turn, and what was computed again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS, metrics_of
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.plugins.testing.cases import MS, ListSource, in_sessions
from simbatch.sim.report.result import Result
from simbatch.sim.results.files import requests_table
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import turns_of, whole_prompts
from tests.engine_cases import random_case
from tests.results_records import S, Toy, back_to_back, build, facts

AGENT = "agent"


@pytest.fixture(scope="module")
def record() -> RunRecord:
    """A user who thinks for 3 s, an agent with two branches that join, and a session that is turned away.

    Rows are the user's two turns, the agent's four, and two of which the second is never sent.
    """
    toys = [
        Toy(0, [0, 1]),
        Toy(0, [0]),
        Toy(0, [], status=REJECTED),
        Toy(1 * S, [1, 2, 3], num_prompt_tokens=60, num_cached_tokens=32),
        Toy(2 * S, [2], num_prompt_tokens=40, num_cached_tokens=16),
        Toy(4 * S, [4, 5], num_prompt_tokens=100, num_cached_tokens=48),
        Toy(5 * S, [5, 6], num_prompt_tokens=50),
    ]
    plain = build(toys, back_to_back([S] * 7))
    names = ["user"] * 2 + [AGENT] * 4 + ["refused"] * 2
    turns = turns_of([[], [0], [], [2], [2], [3, 4], [], [6]], [0] * 8, names=names)
    row, known = np.array([0, 2, 6, 3, 4, 5, 1]), np.array([0, 0, 0, 32, 32, 64, 0])
    requests = replace(plain.requests, row=row, num_known_tokens=known)
    return replace(plain, requests=requests, turns=turns, num_not_sent=1)


def test_the_figures_of_three_sessions(record: RunRecord) -> None:
    """User: 0 to 2 s and 5 to 7 s; agent: 0 to 1, 1 to 4 and 2 to 3, 4 to 6 s."""
    result = Result(record, facts())
    ours = result.summary["simbatch"]["sessions"]
    assert (ours["num_sessions"], ours["completed"], ours["ended_early"], ours["num_turns_not_sent"]) == (3, 2, 1, 1)
    assert ours["max_concurrent"] == 2
    assert ours["throughput"] == pytest.approx(2 / 7)
    assert (ours["mean_duration_ms"], ours["p99_duration_ms"]) == (6500.0, 6990.0)
    assert (ours["mean_without_thinking_ms"], ours["median_without_thinking_ms"]) == (5000.0, 5000.0)
    assert (ours["mean_first_ttft_ms"], ours["mean_later_ttft_ms"]) == (1000.0, 1000.0)
    assert ours["later_cached_tokens_share"] == 96 / 250
    assert ours["num_recomputed_tokens"] == 16 + 16
    assert ours["recomputed_tokens_share"] == 32 / 270
    assert [(row["turn"], row["num_requests"], row["completed"]) for row in ours["turns"]] == [
        (0, 3, 2),
        (1, 3, 3),
        (2, 1, 1),
    ]
    assert [row["cached_tokens_share"] for row in ours["turns"]] == [0, 48 / 150, 48 / 100]


def test_files_and_console_have_them_where_there_are_sessions(record: RunRecord, tmp_path: Path) -> None:
    result = Result(record, facts())
    result.save(tmp_path)
    table = pq.read_table(tmp_path / "requests.parquet").to_pydict()
    assert table["session_id"] == ["user", AGENT, "refused", AGENT, AGENT, AGENT, "user"]
    assert table["turn"] == [0, 0, 0, 1, 1, 2, 1] == result.requests["turn"].tolist()
    assert (tmp_path / "sessions.png").is_file()
    assert "Completed / ended early:                 2 / 1" in result.text()
    without = Result(replace(record, turns=None), facts())
    assert "session_id" not in requests_table(without.record).column_names
    assert "sessions" not in without.summary["simbatch"]
    assert "Sessions" not in without.text()


def test_they_are_compared_only_where_there_are_sessions(record: RunRecord) -> None:
    summary = Result(record, facts()).summary
    without = Result(replace(record, turns=None), facts()).summary
    assert any(metric.key.startswith(SESSIONS) for metric in metrics_of([summary, without]))
    assert not any(metric.key.startswith(SESSIONS) for metric in metrics_of([without, without]))
    assert REGISTRY[f"{SESSIONS}p99_duration_ms"].of(summary) == 6990.0
    assert REGISTRY[f"{SESSIONS}p99_duration_ms"].of(without) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_time_in_flight_is_the_union_of_the_turns(seed: int) -> None:
    case = random_case(seed)
    case.source = in_sessions(case.source, seed)
    record = case.run()
    figures = SessionFigures.of(record)
    assert figures is not None
    assert record.turns is not None
    requests, row = record.requests, record.requests.row
    assert row is not None
    expected = np.zeros(record.turns.num_sessions, dtype=np.int64)
    latest = np.zeros(record.turns.num_sessions, dtype=np.int64)
    for i in np.argsort(requests.arrival_ps, kind="stable"):
        if requests.status[i] == FINISHED:
            session, end = record.turns.session[row[i]], record.client_finish_ps[i]
            expected[session] += max(end - max(requests.arrival_ps[i], latest[session]), 0)
            latest[session] = max(latest[session], end)
    assert np.array_equal(figures._in_flight_ps(), expected)


@pytest.mark.parametrize(("num_gpu_blocks", "recomputed"), [(2000, 0), (9, 4 * (48 + 96))])
def test_what_memory_does_not_hold_is_computed_again(num_gpu_blocks: int, recomputed: int) -> None:
    """Four sessions of 40 + 10 tokens a turn: 48, then 96 known; nine blocks hold a prompt and no conversation."""
    config = EngineConfig(
        max_num_seqs=1,
        max_num_batched_tokens=512,
        max_model_len=144,
        num_gpu_blocks=num_gpu_blocks + 1,
        enable_prefix_caching=True,
    )
    turns = turns_of([[i - 4] if i >= 4 else [] for i in range(12)], [0] * 12)
    lengths = whole_prompts(turns, [40] * 12, [10] * 12)
    source = ListSource([(i * MS, length, 10, 0, ()) for i, length in enumerate(lengths)], turns=turns)
    record = run(config, LinearCost(10 * MS, 0, 0, 0), VLLM(), source)
    figures = SessionFigures.of(record)
    assert figures is not None
    assert record.requests.num_known_tokens is not None
    assert record.requests.num_known_tokens.tolist() == [0] * 4 + [48] * 4 + [96] * 4
    assert figures.num_recomputed_tokens() == recomputed
