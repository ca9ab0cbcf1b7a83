"""Limits on whole sessions: who keeps them, and who asks for what they count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, compare, simulate
from simbatch.sim.report.engine_text import session_lines
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import capacity_limits, find_capacity
from simbatch.sim.tuning.capacity_report import report, shown_metric
from tests import exit_code

STEP_MS, THINK_MS = 10, 40


def scenario(slo: dict[str, float], users: int = 1, **engine: Any) -> Scenario:
    """Of a lone user each session is 5 turns of a step of 10 ms, and 4 pauses of 40 ms: 210 ms, 50 of them served."""
    return Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 2000, "max_model_len": 1024, "step_time": {"base_s": STEP_MS / 1000}},
            "engine": {"max_num_seqs": 1, **engine},
            "workload": {
                "sessions": {
                    "num_sessions": 40,
                    "concurrency": users,
                    "turns": {"distribution": "fixed", "mean": 5},
                    "new_tokens": {"distribution": "fixed", "mean": 4},
                    "output_len": {"distribution": "fixed", "mean": 1},
                    "think_time_s": THINK_MS / 1000,
                }
            },
            "slo": slo,
        }
    )


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
    ours = simulate(scenario(slo)).summary["simbatch"]
    assert ours["sessions"]["slo_share"] == shares
    assert ours["slo_share"] == ({"all": 0, "ttft": 0} if "ttft_ms" in slo else {})
    goodput = ours["sessions"]["goodput"]
    assert goodput == (None if not shares else pytest.approx(shares["all"] * 40 / (40 * 0.21)))
    lines = "\n".join(session_lines(ours["sessions"]))
    assert ("Sessions within SLO" in lines) == bool(shares)


def test_a_session_that_ended_early_keeps_no_limit() -> None:
    """A prompt of turn k is 5 k + 4 tokens, so that 16 of them turn the third away."""
    ours = simulate(scenario({"session_duration_ms": 100000}, max_model_len=14)).summary["simbatch"]
    assert (ours["sessions"]["ended_early"], ours["sessions"]["slo_share"]["all"]) == (40, 0)


def test_the_answer_says_both_and_the_page_has_the_turns(tmp_path: Path) -> None:
    result = simulate(scenario({"session_duration_ms": 209}))
    text = result.text()
    assert "none on requests" in text
    assert "0.00 % of 40 sessions keep theirs" in " ".join(text.split())
    result.save(tmp_path, html=True)
    page = (tmp_path / "report.html").read_text()
    assert "Time to finish &lt;= 209 ms" in page
    assert "Sessions, turn by turn" in page


def test_a_limit_without_sessions_is_refused() -> None:
    strangers = scenario({"session_duration_ms": 209}).override(
        {"workload": {"num_prompts": 3, "request_rate": 1, **dict.fromkeys(("prompt_len", "output_len"), FIXED)}}
    )
    with pytest.raises(UserError, match=r"slo.session_duration_ms: is a limit on sessions, and the workload has none"):
        simulate(strangers)


FIXED = {"distribution": "fixed", "mean": 10}


def test_capacity_by_sessions() -> None:
    """N users wait (10 N - 40) ms a turn, and some more where they begin together."""
    of = scenario({"session_without_thinking_ms": 550}, users=4)
    limits = capacity_limits(of, ())
    assert [str(limit) for limit in limits] == ["simbatch.sessions.slo_share.all >= 0.99"]
    found = find_capacity(of, limits, Runner(of, jobs=1), 1)
    assert found.bound is not None
    users = round(found.bound.rate)
    assert 10 <= users <= 15
    held, more = (simulate(scenario({"session_without_thinking_ms": 550}, users=n)).summary for n in (users, users + 1))
    shares = [each["simbatch"]["sessions"]["slo_share"]["all"] for each in (held, more)]
    assert shares[0] >= 0.99 > shares[1]
    assert found.binding() == {"slo.session_without_thinking_ms": 1}
    metric, bound = shown_metric(found)
    assert (metric.key, bound) == ("simbatch.sessions.p99_without_thinking_ms", 550)
    assert f"Capacity: {users} users" in report(found)


def test_a_comparison_has_them() -> None:
    compared = compare(scenario({"session_without_thinking_ms": 550}, users=10), ["vllm", "sjf"], jobs=1)
    assert "Sessions within SLO" in compared.text()
    assert "Session goodput" in compared.text()


def test_what_counts_sessions_needs_a_limit_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(str(scenario({"ttft_ms": 100}).dump()))
    assert exit_code("tune", tmp_path / "mine.yaml", "--maximize", "simbatch.sessions.goodput", "--jobs", "1") == 2
    assert "counts sessions within the SLO" in capsys.readouterr().err


def test_a_turn_that_the_server_refuses_ends_its_session() -> None:
    """One request may wait beside the one that runs; of four users the others get 503, and send nothing more."""
    of = scenario({"session_duration_ms": 100000}, users=4, max_num_queued_reqs=1)
    summary = simulate(of).summary
    ours = summary["simbatch"]["sessions"]
    refused = summary["simbatch"]["requests"]["refused"]
    assert refused == ours["ended_early"] > 0
    assert summary["completed"] + refused + ours["num_turns_not_sent"] == 40 * 5
    assert ours["completed"] == 40 - refused
