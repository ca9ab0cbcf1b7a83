"""The load of a scenario: a rate, or how many users there are at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, compare
from simbatch.sim.search.loads import OfferedLoad, asked_users, load_of
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import Capacity, find_capacity
from simbatch.sim.tuning.capacity_report import content, report
from simbatch.sim.tuning.goal import Limit
from tests import exit_code

ENGINE = {
    "profile": {"num_gpu_blocks": 2000, "max_model_len": 1024, "step_time": {"base_s": 0.01}},
    "engine": {"max_num_seqs": 1},
}
LENGTHS = {"prompt_len": {"distribution": "fixed", "mean": 10}, "output_len": {"distribution": "fixed", "mean": 1}}
LOOP = {"process": "closed_loop", "max_concurrency": 4, "think_time_s": 0.09}


def scenario(workload: dict[str, Any], folder: Path = Path()) -> Scenario:
    return Scenario.from_dict({**ENGINE, "workload": workload}, folder=folder)


def sessions_file(folder: Path, *, times: bool) -> str:
    """40 sessions of 20 turns, each a step of 10 ms and 90 ms after the one before."""
    rows = []
    for name in range(40):
        first = {"timestamp": name * 1000} if times else {}
        rows += [{"session_id": f"s{name}", "input_length": 10, "output_length": 1, **first}]
        rows += [
            {"session_id": f"s{name}", "input_length": 10 + 4 * turn, "output_length": 1, "delay": 90}
            for turn in range(1, 20)
        ]
    (folder / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "sessions.jsonl"


def capacity(of: Scenario, limit: str) -> Capacity:
    return find_capacity(of, (Limit.parse(limit),), Runner(of, jobs=1), 1)


def test_users_of_a_closed_loop_of_requests() -> None:
    """N users wait (10 N - 90) ms each, so that 14 of them have a mean of 50 ms."""
    of = scenario({"num_prompts": 400, "arrival": LOOP, **LENGTHS})
    found = capacity(of, "median_e2el_ms=55")
    assert found.bound is not None
    assert (found.bound.rate, found.load.words) == (14, "users")
    assert content(found, 1)["set"] == "--set workload.arrival.max_concurrency=14"


def test_users_of_a_trace_of_sessions_and_no_factor_beside_them(tmp_path: Path) -> None:
    trace = {"path": sessions_file(tmp_path, times=False), "format": "mooncake"}
    found = capacity(scenario({"max_concurrency": 4, "trace": trace}, tmp_path), "median_e2el_ms=55")
    assert found.bound is not None
    assert (found.bound.rate, found.as_it_is, found.load.most) == (14, 14, 40)
    assert "Capacity: 14 users; with more the limits are broken." in report(found)
    assert content(found, 1)["set"] == "--set workload.max_concurrency=14"


def test_more_users_than_sessions_are_not_tried_and_it_is_said(tmp_path: Path) -> None:
    trace = {"path": sessions_file(tmp_path, times=False), "format": "mooncake"}
    found = capacity(scenario({"max_concurrency": 4, "trace": trace}, tmp_path), "median_e2el_ms=99000")
    assert (found.highest, found.bound) == (40, None)
    assert "too few sessions" in report(found)
    assert "Take a longer trace" in report(found)


@pytest.mark.parametrize(
    ("workload", "key", "own"),
    [
        (
            {"num_prompts": 9, "arrival": {"process": "all_at_once"}, "max_concurrency": 3},
            "workload.max_concurrency",
            3,
        ),
        ({"num_prompts": 9, "request_rate": 5, "max_concurrency": 3}, "workload.request_rate", 5),
        ({"num_prompts": 9, "request_rate": 5}, "workload.request_rate", 5),
    ],
)
def test_a_rate_stays_a_rate_under_a_limit(workload: dict[str, Any], key: str, own: float) -> None:
    load = load_of(scenario({**workload, **LENGTHS}))
    assert (load.key, load.own) == (key, own)
    assert load.is_users == (key == "workload.max_concurrency")


def test_a_trace_without_times_and_users_says_how_to_give_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n0,10,1\n0,10,1\n")
    trace = {"path": "t.csv", "format": "csv"}
    assert load_of(scenario({"max_concurrency": 1, "trace": trace}, tmp_path)).is_users
    with pytest.raises(UserError, match="max_concurrency: so many users at once"):
        load_of(scenario({"trace": trace}, tmp_path))


def test_who_asks_for_users_has_some() -> None:
    at_a_rate = {"num_prompts": 9, "request_rate": 5, **LENGTHS}
    assert asked_users(scenario({**at_a_rate, "max_concurrency": 3})).own == 3
    with pytest.raises(UserError, match="needs a limit on how many"):
        asked_users(scenario(at_a_rate))


def test_candidates_over_users(tmp_path: Path) -> None:
    of = scenario({"num_prompts": 200, "arrival": LOOP, **LENGTHS})
    compared = compare(of, ["vllm", "sjf"], users=[5, 20], jobs=1)
    assert (compared.rates, compared.key) == ([5, 20], "workload.arrival.max_concurrency")  # type: ignore[union-attr]
    first, second = (at.summaries["vllm"][0] for at in compared.at)  # type: ignore[union-attr]
    assert (first["median_e2el_ms"], second["median_e2el_ms"]) == (10, 110)  # 10 N - 90
    assert compared.save(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--users", "2,4.5"), "must be whole numbers above 0"),
        (("--users", "2,4", "--rate", "1,2"), "is a load, and so is --rate"),
        (("--users", "2"), "needs at least two numbers"),
        (("--rate", "1,2"), "has no request rate"),
    ],
)
def test_loads_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(scenario({"num_prompts": 9, "arrival": LOOP, **LENGTHS}).dump()))
    assert exit_code("compare", tmp_path / "mine.yaml", *words) == 2
    assert message in capsys.readouterr().err


def test_a_value_of_a_load_is_a_change_of_the_scenario() -> None:
    users = OfferedLoad("workload.max_concurrency", "users", 4.0, is_users=True)
    assert users.at(scenario({"num_prompts": 9, "request_rate": 5, **LENGTHS}), 7.0) == {"workload.max_concurrency": 7}
