"""The load of a scenario: a rate, or how many users there are at once; and limits on the whole sessions of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, compare, simulate
from simbatch.sim.report.sessions import session_lines
from simbatch.sim.search.loads import OfferedLoad, asked_users, load_of
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import Capacity, capacity_limits, find_capacity
from simbatch.sim.tuning.capacity_report import content, report, shown_metric
from simbatch.sim.tuning.goal import Limit
from tests import exit_code
from tests.made_scenarios import fixed

STEP_MS, THINK_MS = 10, 40
LENGTHS = {"prompt_len": fixed(10), "output_len": fixed(1)}
LOOP = {"process": "closed_loop", "max_concurrency": 4, "think_time_s": 0.09}
TRACE = {"max_concurrency": 4, "trace": {"path": "sessions.jsonl", "format": "mooncake"}}


def scenario(
    workload: dict[str, Any], folder: Path = Path(), slo: dict[str, float] | None = None, **engine: Any
) -> Any:
    """One seat, and steps of 10 ms."""
    profile = {"num_gpu_blocks": 2000, "max_model_len": 1024, "step_time": {"base_s": STEP_MS / 1000}}
    sections = {"engine": {"max_num_seqs": 1, **engine}, "workload": workload, "slo": slo or {}}
    return Scenario.from_dict({"profile": profile, **sections}, folder=folder)


def sessions(users: int, turns: int, think_s: float, num_sessions: int = 40) -> dict[str, Any]:
    """Each turn is a step, and a user thinks before the next."""
    section = {"num_sessions": num_sessions, "concurrency": users, "turns": fixed(turns), "think_time_s": think_s}
    return {"sessions": {**section, "new_tokens": fixed(4), "output_len": fixed(1)}}


def write_sessions(folder: Path) -> None:
    """40 sessions of 20 turns, each a step of 10 ms and 90 ms after the one before."""
    lengths = [{"input_length": 10 + 4 * turn, "output_length": 1, "delay": 90} for turn in range(20)]
    del lengths[0]["delay"]
    rows = [{"session_id": f"s{name}", **turn} for name in range(40) for turn in lengths]
    (folder / "sessions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def capacity(of: Scenario, limit: str) -> Capacity:
    return find_capacity(of, (Limit.parse(limit),), Runner(of, jobs=1), 1)


@pytest.mark.parametrize(
    ("workload", "metric", "key"),
    [
        ({"num_prompts": 400, "arrival": LOOP, **LENGTHS}, "median_e2el_ms", "workload.arrival.max_concurrency"),
        (sessions(4, 30, 0.09, 60), "simbatch.sessions.median_later_ttft_ms", "workload.sessions.concurrency"),
        (TRACE, "median_e2el_ms", "workload.max_concurrency"),
    ],
    ids=["requests", "sessions", "trace"],
)
def test_how_many_users_at_once(workload: dict[str, Any], metric: str, key: str, tmp_path: Path) -> None:
    """N users wait (10 N - 90) ms each, so that 14 of them have a mean of 50 ms."""
    write_sessions(tmp_path)
    found = capacity(scenario(workload, tmp_path), f"{metric}=55")
    assert (found.bound.rate, found.load.words) == (14, "users")
    assert found.settings(14) == {key: 14}
    assert content(found, 1)["set"] == f"--set {key}=14"
    assert "Capacity: 14 users; with more the limits are broken." in report(found)
    if workload is TRACE:  # and no factor beside them
        assert (found.as_it_is, found.load.most) == (14, 40)


def test_more_users_than_sessions_are_not_tried_and_it_is_said(tmp_path: Path) -> None:
    write_sessions(tmp_path)
    found = capacity(scenario(TRACE, tmp_path), "median_e2el_ms=99000")
    assert (found.highest, found.bound) == (40, None)
    assert "too few sessions" in report(found)
    assert "Take a longer trace" in report(found)


@pytest.mark.parametrize(
    ("workload", "key", "own"),
    [
        ({"arrival": {"process": "all_at_once"}, "max_concurrency": 3}, "workload.max_concurrency", 3),
        ({"request_rate": 5, "max_concurrency": 3}, "workload.request_rate", 5),
        ({"request_rate": 5}, "workload.request_rate", 5),
    ],
)
def test_a_rate_stays_a_rate_under_a_limit(workload: dict[str, Any], key: str, own: float) -> None:
    load = load_of(scenario({"num_prompts": 9, **workload, **LENGTHS}))
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
    compared: Any = compare(of, ["vllm", "sjf"], users=[5, 20], jobs=1)
    assert (compared.rates, compared.key) == ([5, 20], "workload.arrival.max_concurrency")
    first, second = (at.summaries["vllm"][0] for at in compared.at)
    assert (first["median_e2el_ms"], second["median_e2el_ms"]) == (10, 110)  # 10 N - 90
    assert compared.save(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare --users 2,4.5", "must be whole numbers above 0"),
        ("compare --users 2,4 --rate 1,2", "is a load, and so is --rate"),
        ("compare --users 2", "needs at least two numbers"),
        ("compare --rate 1,2", "has no request rate"),
        ("tune --maximize simbatch.sessions.goodput --jobs 1", "counts sessions within the SLO"),
    ],
)
def test_loads_and_goals_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    workload = {"num_prompts": 9, "arrival": LOOP, **LENGTHS} if "compare" in words else sessions(1, 5, 0.04)
    (tmp_path / "mine.yaml").write_text(json.dumps(scenario(workload, slo={"ttft_ms": 100}).dump()))
    command, *flags = words.split()
    assert exit_code(command, tmp_path / "mine.yaml", *flags) == 2
    assert message in capsys.readouterr().err


def test_a_value_of_a_load_is_a_change_of_the_scenario() -> None:
    users = OfferedLoad("workload.max_concurrency", "users", 4.0, is_users=True)
    assert users.at(scenario({"num_prompts": 9, "request_rate": 5, **LENGTHS}), 7.0) == {"workload.max_concurrency": 7}


def limited(slo: dict[str, float], users: int = 1, **engine: Any) -> Scenario:
    """Of a lone user each session is 5 turns of a step of 10 ms, and 4 pauses of 40 ms: 210 ms, 50 of them served."""
    made: Scenario = scenario(sessions(users, 5, THINK_MS / 1000), slo=slo, **engine)
    return made


@pytest.mark.parametrize(
    ("slo", "shares"),
    [
        ({"session_duration_ms": 210}, {"all": 1, "duration": 1}),  # the limit itself is within
        ({"session_duration_ms": 209}, {"all": 0, "duration": 0}),
        (
            {"session_without_thinking_ms": 50, "session_duration_ms": 209},
            {"all": 0, "duration": 0, "without_thinking": 1},
        ),
        ({"session_without_thinking_ms": 50, "ttft_ms": 9}, {"all": 1, "without_thinking": 1}),
        ({"ttft_ms": 9}, {}),
    ],
)
def test_limits_on_sessions_count_sessions_and_those_on_requests_requests(
    slo: dict[str, float], shares: dict[str, float]
) -> None:
    ours = simulate(limited(slo)).summary["simbatch"]
    assert ours["sessions"]["slo_share"] == shares
    assert ours["slo_share"] == ({"all": 0, "ttft": 0} if "ttft_ms" in slo else {})
    goodput = ours["sessions"]["goodput"]
    assert goodput == (None if not shares else pytest.approx(shares["all"] * 40 / (40 * 0.21)))
    lines = "\n".join(session_lines(ours["sessions"]))
    assert ("Sessions within SLO" in lines) == bool(shares)


def test_a_session_that_ended_early_keeps_no_limit() -> None:
    """A prompt of turn k is 5 k + 4 tokens, so that 16 of them turn the third away."""
    ours = simulate(limited({"session_duration_ms": 100000}, max_model_len=14)).summary["simbatch"]
    assert (ours["sessions"]["ended_early"], ours["sessions"]["slo_share"]["all"]) == (40, 0)


def test_the_answer_says_both_and_the_page_has_the_turns(tmp_path: Path) -> None:
    result = simulate(limited({"session_duration_ms": 209}))
    text = result.text()
    assert "none on requests" in text
    assert "0.00 % of 40 sessions keep theirs" in " ".join(text.split())
    result.save(tmp_path, html=True)
    page = (tmp_path / "report.html").read_text()
    assert "Time to finish &lt;= 209 ms" in page
    assert "Sessions, turn by turn" in page


def test_a_limit_without_sessions_is_refused() -> None:
    with pytest.raises(UserError, match=r"slo.session_duration_ms: is a limit on sessions, and the workload has none"):
        simulate(scenario({"num_prompts": 3, "request_rate": 1, **LENGTHS}, slo={"session_duration_ms": 209}))


def test_capacity_by_sessions() -> None:
    """N users wait (10 N - 40) ms a turn, and some more where they begin together."""
    of = limited({"session_without_thinking_ms": 550}, users=4)
    limits = capacity_limits(of, ())
    assert [str(limit) for limit in limits] == ["simbatch.sessions.slo_share.all >= 0.99"]
    found = find_capacity(of, limits, Runner(of, jobs=1), 1)
    users = round(found.bound.rate)
    assert 10 <= users <= 15
    held, more = (simulate(limited({"session_without_thinking_ms": 550}, users=n)).summary for n in (users, users + 1))
    shares = [each["simbatch"]["sessions"]["slo_share"]["all"] for each in (held, more)]
    assert shares[0] >= 0.99 > shares[1]
    assert found.binding() == {"slo.session_without_thinking_ms": 1}
    metric, bound = shown_metric(found)
    assert (metric.key, bound) == ("simbatch.sessions.p99_without_thinking_ms", 550)
    assert f"Capacity: {users} users" in report(found)


def test_a_comparison_has_them() -> None:
    compared = compare(limited({"session_without_thinking_ms": 550}, users=10), ["vllm", "sjf"], jobs=1)
    assert "Sessions within SLO" in compared.text()
    assert "Session goodput" in compared.text()


def test_a_turn_that_the_server_refuses_ends_its_session() -> None:
    """One request may wait beside the one that runs; of four users the others get 503, and send nothing more."""
    summary = simulate(limited({"session_duration_ms": 100000}, users=4, max_num_queued_reqs=1)).summary
    ours = summary["simbatch"]["sessions"]
    refused = summary["simbatch"]["requests"]["refused"]
    assert refused == ours["ended_early"] > 0
    assert summary["completed"] + refused + ours["num_turns_not_sent"] == 40 * 5
    assert ours["completed"] == 40 - refused
