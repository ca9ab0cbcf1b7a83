"""What is equal, what decides between equals, and when nothing is recommended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario
from simbatch.cli import main
from simbatch.sim.metrics.registry import SLO_SHARE
from simbatch.sim.results.runs import Runs
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.goal import Goal, Limit, metric_of
from simbatch.sim.tuning.space import SEQS, Axis, Space
from simbatch.sim.tuning.trial import TriedSettings, equals, order
from simbatch.sim.tuning.tune import Tuned, tune
from simbatch.sim.tuning.tune_files import content
from simbatch.sim.tuning.tune_report import report

SCENARIO: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.001}},
    "workload": {
        "num_prompts": 300,
        "request_rate": 5,
        "prompt_len": {"distribution": "uniform", "min": 20, "max": 60},
        "output_len": {"distribution": "uniform", "min": 10, "max": 40},
    },
    "slo": {"ttft_ms": 60, "tpot_ms": 14},
    "seed": 3,
}
GOAL = Goal((metric_of("throughput", "x"),))


def trial(number: int, *figures: float, settings: dict[str, Any] | None = None, **means: float) -> TriedSettings:
    """Throughputs, one a run; other figures are means."""
    shares = {key.rpartition(".")[2]: value for key, value in means.items() if key.startswith(SLO_SHARE)}
    ours = {"simbatch": {"slo_share": shares}}
    runs: list[dict[str, Any]] = [{"output_throughput": figure, **means, **ours} for figure in figures]
    return TriedSettings(number, settings or {SEQS: number}, Runs(runs))


def numbers(trials: list[TriedSettings]) -> list[int]:
    return [each.number for each in trials]


def test_within_a_hundredth_is_equal() -> None:
    trials = [trial(1, 100.0), trial(2, 99.1), trial(3, 98.9)]
    assert numbers(equals(GOAL, trials)) == [1, 2]


def test_three_runs_and_more_tell_apart_or_do_not() -> None:
    noisy, far = trial(2, 97.0, 104.0, 90.0), trial(3, 90.0, 90.1, 89.9)
    assert numbers(equals(GOAL, [trial(1, 99.0, 101.0, 100.0), noisy, far])) == [1, 2]
    two = [trial(1, 99.0, 101.0), trial(2, 97.0, 94.0)]
    assert numbers(equals(GOAL, two)) == [1]  # two runs tell nothing apart, so they do not count


def test_what_breaks_a_limit_is_equal_to_nothing() -> None:
    goal = Goal(GOAL.metrics, (Limit.parse("p99_tpot_ms=20"),))
    trials = [trial(1, 100.0, p99_tpot_ms=21), trial(2, 90.0, p99_tpot_ms=19), trial(3, 89.9, p99_tpot_ms=19)]
    assert numbers(equals(goal, trials)) == [2, 3]


def test_goodput_then_share_then_p99_ttft_then_fewest_seats() -> None:
    share = f"{SLO_SHARE}all"
    rows = [
        trial(5, 1.0, request_goodput=2.0, p99_ttft_ms=9, **{share: 0.9}),
        trial(4, 1.0, request_goodput=2.1, p99_ttft_ms=9, **{share: 0.8}),
        trial(3, 1.0, request_goodput=2.0, p99_ttft_ms=8, **{share: 0.9}),
        trial(1, 1.0, request_goodput=2.0, p99_ttft_ms=9, **{share: 0.9}),
        trial(2, 1.0, request_goodput=2.0, p99_ttft_ms=9, **{share: 0.95}),
    ]
    scenario = Scenario.from_dict(SCENARIO)
    assert numbers(sorted(rows, key=lambda each: order(scenario, each))) == [4, 2, 3, 1, 5]


def search(scenario: Scenario, maximize: str, *limits: str) -> Tuned:
    space = Space(scenario, [Axis(SEQS, (1, 2, 3, 4, 8, 16))])
    goal = Goal((metric_of(maximize, "x"),), tuple(map(Limit.parse, limits)))
    return tune(space, goal, Runner(scenario, jobs=1), confirm=2)


def test_where_the_arrivals_bind_nothing_is_recommended() -> None:
    found = search(Scenario.from_dict(SCENARIO), "throughput")
    assert found.do_arrivals_bind
    assert len(found.equals) > 2
    assert found.equals[0].means["request_goodput"] == max(each.means["request_goodput"] or 0 for each in found.equals)
    text = report(found)
    assert f"Nothing is recommended: {len(found.equals)} of the 7 that were tried serve all that arrives," in text
    assert "so the arrivals bind output_throughput, and it says nothing of the settings." in text
    assert "Recommended" not in text
    assert "vllm serve" not in text
    assert content(found, 1)["best"] is None
    assert found.confirmation is None


def test_goodput_tells_them_apart() -> None:
    found = search(Scenario.from_dict(SCENARIO), "goodput")
    assert not found.do_arrivals_bind
    assert found.recommended is found.best
    assert found.best.means["request_goodput"] == max(each.means["request_goodput"] or 0 for each in found.trials)
    assert "Recommended:" in report(found)


@pytest.mark.parametrize(
    "workload",
    [
        {**SCENARIO["workload"], "request_rate": None, "arrival": {"process": "all_at_once"}},
        {**SCENARIO["workload"], "max_concurrency": 4},
        {**SCENARIO["workload"], "request_rate": 500},
    ],
)
def test_where_the_system_binds_throughput_is_a_goal(workload: dict[str, Any]) -> None:
    given = {key: value for key, value in workload.items() if value is not None}
    assert not search(Scenario.from_dict({**SCENARIO, "workload": given}), "throughput").do_arrivals_bind


FILE = """
profile: {num_gpu_blocks: 2000, step_time: {base_s: 0.01, per_decode_seq_s: 0.001}}
workload: {num_prompts: 60, request_rate: 5, prompt_len: {distribution: fixed, mean: 20},
           output_len: {distribution: fixed, mean: 10}}
tune: {engine.max_num_seqs: [2, 4, 8, 16]}
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "mine.yaml", "--jobs", "1", *words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_with_an_slo_goodput_is_the_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(FILE)
    assert said(capsys).startswith("mine: maximize output_throughput\n")
    assert said(capsys, "--set", "slo={tpot_ms: 20}").startswith("mine: maximize request_goodput\n")
    words = ("--set", "slo={tpot_ms: 20}", "--maximize", "throughput")
    assert said(capsys, *words).startswith("mine: maximize output_throughput\n")


def test_a_pareto_set_recommends_nothing_and_its_knee_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(FILE.replace("request_rate: 5", "arrival: {process: all_at_once}"))
    out = said(capsys, "--pareto", "throughput,p99_tpot_ms")
    assert "Nothing is recommended: a set has no best." in out
    assert "Recommended" not in out
    assert "\n*" not in out
    assert '"best": null' in said(capsys, "--pareto", "throughput,p99_tpot_ms", "--json")
    out = said(capsys, "--knee")
    assert "Knee (*): of the points that no other beats in both figures the one farthest above the straight line" in out
    assert "on linear axes" in out
    assert "Recommended:" in out
