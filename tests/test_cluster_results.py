"""A cluster's files, summary and table.

What sessions felt: times to finish, with and without thinking, turn by turn, and what was computed again.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simbatch import UserError
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run as simulate_engine
from simbatch.sim.engine.record import FINISHED, REJECTED, RunRecord
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS, metrics_of
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.plugins.testing import MS, ListSource, in_sessions
from simbatch.sim.report.result import Result
from simbatch.sim.results.files import requests_table
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.search import run_resolved, simulate
from simbatch.sim.workload.turns import turns_of, whole_prompts
from tests.engine_cases import random_case
from tests.results_records import S, Toy, back_to_back, build, facts
from tests.test_cli import run

BASE: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 400, "step_time": {"base_s": 0.01, "per_prefill_token_s": 2e-5}},
    "engine": {"max_num_seqs": 8, "max_model_len": 4096},
    "workload": {
        "num_prompts": 400,
        "request_rate": 30,
        "prompt_len": {"distribution": "lognormal", "mean": 100, "cv": 1, "max": 2000},
        "output_len": {"distribution": "lognormal", "mean": 20, "cv": 1, "max": 200},
    },
    "slo": {"ttft_ms": 500},
    "seed": 3,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of two replicas."""
    path = tmp_path / "x.yaml"
    path.write_text(json.dumps(BASE | {"cluster": {"replicas": 2}}))
    return path


def scenario(**cluster: Any) -> Scenario:
    return Scenario.from_dict(BASE | ({"cluster": cluster} if cluster else {}))


def result(**cluster: Any) -> Result:
    return run_resolved(resolve(scenario(**cluster)), steps=True)


def test_one_replica_gives_the_same_files(tmp_path: Path) -> None:
    """All keys and columns that there are without a cluster."""
    lone, one = result(), result(replicas=1, router={"name": "power_of_two"})
    ours = dict(one.summary["simbatch"])
    own = ours.pop("cluster")
    assert own["num_replicas"] == 1
    assert own["imbalance"]["share_of_load"] == 1
    assert {**one.summary, "simbatch": ours} == lone.summary
    lone.save(tmp_path / "lone")
    one.save(tmp_path / "one")
    for name in ("requests.parquet", "steps.parquet"):
        assert pq.read_table(tmp_path / "one" / name).equals(pq.read_table(tmp_path / "lone" / name))


def test_the_columns_say_where(tmp_path: Path) -> None:
    found = result(replicas=3)
    found.save(tmp_path)
    requests, steps = pq.read_table(tmp_path / "requests.parquet"), pq.read_table(tmp_path / "steps.parquet")
    assert requests["replica"].to_pylist() == [i % 3 for i in range(400)]
    where = dict(zip(requests["request_id"].to_pylist(), requests["replica"].to_pylist(), strict=True))
    for replica, entries in zip(steps["replica"].to_pylist(), steps["scheduled"].to_pylist(), strict=True):
        assert {where[entry["request_id"]] for entry in entries} <= {replica}
    assert sorted(set(steps["replica"].to_pylist())) == [0, 1, 2]


def test_totals_are_sums_over_replicas() -> None:
    found = result(replicas=4, router={"name": "least_requests"})
    ours = found.summary["simbatch"]
    rows = ours["cluster"]["replicas"]
    assert sum(row["num_requests"] for row in rows) == 400 == ours["requests"]["total"]
    assert sum(row["completed"] for row in rows) == found.summary["completed"]
    assert sum(row["num_steps"] for row in rows) == ours["num_steps"]
    assert sum(row["num_preemptions"] for row in rows) == ours["num_preemptions"]
    assert sum(row["share_of_load"] for row in rows) == pytest.approx(1)
    assert np.mean([row["device_busy_share"] for row in rows]) == pytest.approx(ours["device_busy_share"])
    assert ours["kv_cache"]["usable_blocks"] == 4 * 399
    assert np.mean([row["mean_kv_use"] for row in rows]) == pytest.approx(ours["kv_cache"]["mean_use"])
    assert sum(row["mean_waiting"] for row in rows) == pytest.approx(ours["queue"]["mean_waiting"])
    assert 0 < ours["kv_cache"]["peak_use"] <= np.mean([row["peak_kv_use"] for row in rows])
    text = found.text()
    assert "Cluster: 4 replicas behind least_requests" in text
    assert "Most over mean: load " in text


def test_a_mixed_fleet_has_an_engine_for_each_group() -> None:
    fast = {"num_gpu_blocks": 800, "step_time": {"base_s": 0.005}}
    groups = [{"replicas": 2}, {"profile": fast, "engine": {"max_num_seqs": 16}}]
    resolved = resolve(scenario(groups=groups, router={"name": "random"}))
    assert [group.resolved.engine.max_num_seqs for group in resolved.fleet.groups] == [8, 16]  # type: ignore[union-attr]
    found = run_resolved(resolved)
    cluster = found.summary["simbatch"]["cluster"]
    assert [row["group"] for row in cluster["replicas"]] == [0, 0, 1]
    assert cluster["groups"][1]["engine"]["num_gpu_blocks"] == 800
    busy = [row["device_busy_share"] for row in cluster["replicas"]]
    assert busy[2] < min(busy[:2])
    again = simulate(Scenario.from_dict(resolved.dump()))
    assert again.summary["simbatch"]["cluster"]["replicas"] == cluster["replicas"]
    assert "Group 1: 1 x inline, 16 seqs" in found.text()


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(BASE))
    assert run("run", file, "-o", tmp_path / "out", "--json", "--set", "cluster.replicas=3", "--router", "session") == 0
    cluster = json.loads(capsys.readouterr().out)["simbatch"]["cluster"]
    assert (cluster["router"]["name"], cluster["num_replicas"]) == ("session", 3)
    assert run("run", file, "--router", "random") == 2
    assert "--router: the scenario has one engine" in capsys.readouterr().err


def test_a_router_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from simbatch.routers import Router\n\n\nclass Last(Router):\n"
        "    def route(self, request, replicas):\n        return replicas[-1 if request.num_prompt_tokens > 9 else 7]\n"
    )
    own = Scenario.from_dict(BASE | {"cluster": {"replicas": 2, "router": {"name": "mine.py:Last"}}}, folder=tmp_path)
    with pytest.raises(UserError, match=r"mine\.py:6: router Last failed in route at .*IndexError.*; mend the line"):
        simulate(own)


def test_validate_knows_one_engine(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", file, "--recorded", file) == 2
    assert "simbatch validate knows one engine, and no cluster" in capsys.readouterr().err


def test_routers_and_replicas_are_compared_and_swept(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    routers = ["--router", "random", "--router", "least_requests"]
    assert run("compare", str(file), *routers, "-o", str(tmp_path / "compared"), "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert list(compared["candidates"]) == ["random", "least_requests"]
    assert "simbatch.cluster.imbalance.share_of_load" in {metric["key"] for metric in compared["metrics"]}
    over = ["--over", "cluster.replicas=1,2", "--over", "cluster.router.name=random,prefix_aware", "--jobs", "1"]
    assert run("sweep", str(file), *over, "-o", str(tmp_path / "swept"), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["cluster.replicas"], row["cluster.router.name"]) for row in rows] == [
        (1, "random"), (1, "prefix_aware"), (2, "random"), (2, "prefix_aware"),
    ]  # fmt: skip
    assert rows[0]["p99_ttft_ms"] > rows[3]["p99_ttft_ms"]


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
    turns = [(row["turn"], row["num_requests"], row["completed"]) for row in ours["turns"]]
    assert turns == [(0, 3, 2), (1, 3, 3), (2, 1, 1)]
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
    requests, row = record.requests, record.requests.row
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
    record = simulate_engine(config, LinearCost(10 * MS, 0, 0, 0), VLLM(), source)
    figures = SessionFigures.of(record)
    assert record.requests.num_known_tokens.tolist() == [0] * 4 + [48] * 4 + [96] * 4
    assert figures.num_recomputed_tokens() == recomputed
