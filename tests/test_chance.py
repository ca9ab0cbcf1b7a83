"""One rule for all commands: what a seed changes, and what several runs are where it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario
from simbatch.sim.scenario.chance import RESAMPLE, has_chance, resampling, runs_words, seeds_of
from simbatch.sim.search.run import Runner
from simbatch.sim.search.sweep import sweep
from simbatch.sim.tuning.goal import Goal, Limit, metric_of
from simbatch.sim.tuning.space import SEQS, Axis, Space
from simbatch.sim.tuning.tune import Tuned, tune
from simbatch.sim.tuning.tune_files import content
from simbatch.sim.tuning.tune_report import report

FIXED = {"distribution": "fixed", "mean": 20}
STILL: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.002}},
    "workload": {
        "num_prompts": 60,
        "arrival": {"process": "constant", "request_rate": 4},
        "prompt_len": FIXED,
        "output_len": FIXED,
    },
    "seed": 3,
}


def still(**changes: Any) -> Scenario:
    return Scenario.from_dict(STILL).override({key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def traced(tmp_path: Path) -> Scenario:
    rows = "".join(f"{i / 5 + (i * i % 7) / 60:.4f},{20 + i % 9},{10 + i * i % 23}\n" for i in range(150))
    (tmp_path / "t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    return Scenario.from_dict({**STILL, "workload": {"trace": {"path": "t.csv", "format": "csv"}}}, folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"workload__arrival": {"process": "all_at_once"}}, False),
        ({"workload__arrival": {"process": "closed_loop", "max_concurrency": 4}}, False),
        ({"workload__arrival": {"process": "poisson", "request_rate": 4}}, True),
        ({"workload__output_len": {"distribution": "uniform", "min": 2, "max": 9}}, True),
        ({"workload__priorities": {"high": 0.5, "low": 0.5}}, True),
        ({"workload__priorities": {"high": 1.0}}, False),
        ({"workload__prefix": {"prefix_len": 32, "share": 0.5}}, True),
        ({"policy": {"name": "sjf", "predictor_error": 0.5}}, True),
        ({"policy": {"name": "sjf", "predictor_error": 0}}, False),
    ],
)
def test_what_a_seed_draws(changes: dict[str, Any], expected: bool) -> None:
    scenario = still(**changes)
    assert has_chance(scenario) == expected
    assert seeds_of([scenario], 4) == ([3, 4, 5, 6] if expected else [3])


def test_a_trace_leaves_its_traffic_to_no_seed_and_is_resampled(traced: Scenario) -> None:
    assert not has_chance(traced)
    assert resampling(traced) == {RESAMPLE: 20}
    assert seeds_of([traced], 4) == [3, 4, 5, 6]
    assert runs_words(traced, 4) == "4 resamplings of the trace in 20 blocks of time"
    other = traced.override({RESAMPLE: 7})
    assert (has_chance(other), resampling(other)) == (True, {})


def test_a_sweep_resamples_a_trace_and_runs_once_what_no_seed_changes(traced: Scenario) -> None:
    swept = sweep(traced, {SEQS: [1, 64]}, replications=3, jobs=1)
    [point, _] = swept.points
    runs = [r["p99_ttft_ms"] for r in swept.rows if r[SEQS] == 1]
    assert (point["replications"], len({*runs})) == (3, 3)
    assert point["p99_ttft_ms.low"] < min(runs) < max(runs) < point["p99_ttft_ms.high"]  # t(2) s: beyond all three
    assert "means of 3 resamplings of the trace in 20 blocks of time, with 95 % intervals" in swept.text()
    once = sweep(still(), {SEQS: [1, 64]}, replications=3, jobs=1)
    assert len(once.rows) == 2
    assert "where there is no interval the seed changes nothing here, so one run says it all" in once.text()
    assert "±" not in once.text()


def tuned(scenario: Scenario, **options: Any) -> Tuned:
    space = Space(scenario, [Axis(SEQS, (1, 2, 4, 8))])
    goal = Goal((metric_of("throughput", "x"),), (Limit.parse("p99_tpot_ms=19"),))
    return tune(space, goal, Runner(scenario, jobs=1), **options)


def test_tune_checks_its_answer_on_the_trace_resampled(traced: Scenario) -> None:
    found = tuned(traced.override({"workload.trace.rate_scale": 5.0}), confirm=4)
    assert "one run each: the seed changes nothing here, so one run says it all" in report(found)
    assert found.confirmation is not None
    assert found.confirmation.difference is not None
    assert found.confirmation.difference.low < found.confirmation.difference.high
    assert "Under 4 resamplings of the trace in 20 blocks of time (seeds 4 to 7) the recommended settings" in report(
        found
    )
    answer = content(found, 0)
    assert (answer["resample_blocks"], answer["confirmation"]["resample_blocks"]) == (None, 20)
    several = tuned(traced.override({"workload.trace.rate_scale": 5.0}), replications=3, confirm=0)
    assert len({run.means["output_throughput"] for run in several.best.runs.each}) == 3
    assert "each seed draws the trace anew: 3 resamplings of the trace in 20 blocks of time" in report(several)


def test_tune_does_not_check_what_no_seed_changes() -> None:
    found = tuned(still(workload__arrival={"process": "all_at_once"}), replications=5, confirm=5)
    assert (found.seeds, found.confirmation) == ([3], None)
    assert "Under" not in report(found)
