"""One rule for all commands: what a seed changes, and what several runs are where it changes nothing.

Noise of step times: seeded, exact, on average nothing, and visible in the tails.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Scenario, simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.host import BLOCK, RATIO_SHIFT
from simbatch.sim.cost.step_time import Ratios, StepNoise
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import RESAMPLE, has_chance, resampling, resolve, runs_words, seeds_of
from simbatch.sim.search import explain_request
from simbatch.sim.search.run import Runner
from simbatch.sim.search.sweep import sweep
from simbatch.sim.tuning import Tuned, tune
from simbatch.sim.tuning.goal import Goal, Limit, metric_of
from simbatch.sim.tuning.space import SEQS, Axis, Space
from simbatch.sim.tuning.tune_files import content
from simbatch.sim.tuning.tune_report import report
from tests import traffic

STILL: dict[str, Any] = {
    "profile": {"num_gpu_blocks": 2000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 0.002}},
    "workload": traffic(60, 20, 20, arrival={"process": "constant", "request_rate": 4}),
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
    assert found.confirmation.difference.low < found.confirmation.difference.high
    checked = "Under 4 resamplings of the trace in 20 blocks of time (seeds 4 to 7) the recommended settings"
    assert checked in report(found)
    answer = content(found, 0)
    assert (answer["resample_blocks"], answer["confirmation"]["resample_blocks"]) == (None, 20)
    several = tuned(traced.override({"workload.trace.rate_scale": 5.0}), replications=3, confirm=0)
    assert len({run.means["output_throughput"] for run in several.best.runs.each}) == 3
    assert "each seed draws the trace anew: 3 resamplings of the trace in 20 blocks of time" in report(several)


def test_tune_does_not_check_what_no_seed_changes() -> None:
    found = tuned(still(workload__arrival={"process": "all_at_once"}), replications=5, confirm=5)
    assert (found.seeds, found.confirmation) == ([3], None)
    assert "Under" not in report(found)


SKEWED = {"share": [0, 0.9, 0.99, 1], "ratio": [0.8, 1.0, 1.6, 5.0]}
EVEN = {"share": [0, 1], "ratio": [0.9, 1.1]}


def normalised(ratios):
    shares, values = np.array(ratios["share"]), np.array(ratios["ratio"], dtype=float)
    mean = ((values[1:] + values[:-1]) / 2 * np.diff(shares)).sum()
    return {"share": ratios["share"], "ratio": (values / mean).tolist()}


NOISE = {"decode": normalised(SKEWED), "mixed": EVEN}


def scenario(seed=0, *, noise=NOISE, step_noise=True, **engine):
    profile = {"num_gpu_blocks": 4000, "step_time": {"base_s": 0.01, "per_decode_seq_s": 1e-4}}
    return Scenario.from_dict(
        {
            "profile": profile | ({"noise": noise} if noise else {}),
            "engine": {"max_num_seqs": 16, "step_noise": step_noise} | engine,
            "workload": traffic(400, 64, 40, request_rate=4),
            "seed": seed,
        }
    )


def summary(*args, **kwargs):
    return simulate(scenario(*args, **kwargs)).summary


def test_draws_are_those_that_were_recorded():
    """Whatever numpy and machine: the first draws of seed 7, of either regime, and what follows a whole block."""
    draws = StepNoise.model_validate(NOISE).draws(7)
    first = [draws.step_ps(10**9, has_prefill) for has_prefill in (False, True, False, True)]
    for _ in range(BLOCK):
        draws.step_ps(1, has_prefill=False)
    assert [*first, draws.step_ps(10**9, has_prefill=False)] == RECORDED


RECORDED = [960906744, 921966553, 1541349649, 996368408, 900479078]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=40))
def test_a_table_has_the_mean_1_to_the_last_bit(values):
    shares = np.linspace(0, 1, len(values)).round(6).tolist()
    table = Ratios.model_validate(normalised({"share": shares, "ratio": sorted(values)})).table()
    assert sum(table) == len(table) << RATIO_SHIFT
    assert all(ratio > 0 for ratio in table)


@pytest.mark.parametrize(
    ("ratios", "rule"),
    [
        ({"share": [0, 1], "ratio": [0.8, 1.0]}, "mean ratio must be 1"),
        ({"share": [0, 0.5, 1], "ratio": [1.2, 1.0, 0.8]}, "must not fall"),
        ({"share": [0.1, 1], "ratio": [0.9, 1.1]}, "rise from 0 to 1"),
        ({"share": [0, 0.5, 0.5, 1], "ratio": [1, 1, 1, 1]}, "rise from 0 to 1"),
        ({"share": [0, 0.5, 1], "ratio": [1, 1]}, "one length"),
        ({"share": [0, 1], "ratio": [0, 2]}, "above 0"),
        ({"share": [0, 1], "ratio": [float("nan"), 2]}, ""),
    ],
)
def test_what_is_no_distribution_is_an_error_with_its_place(ratios, rule):
    content = {"num_gpu_blocks": 10, "step_time": {"base_s": 0.01}, "noise": {"decode": EVEN, "mixed": ratios}}
    with pytest.raises(UserError, match=r"noise\.mixed") as caught:
        load_profile(content, folder=Path())
    assert rule in str(caught.value)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(scenario(seed)).save(tmp_path / name)
    contents = [(tmp_path / name / "summary.json").read_bytes() for name in "abc"]
    assert contents[0] == contents[1]
    assert json.loads(contents[2])["mean_e2el_ms"] != json.loads(contents[0])["mean_e2el_ms"]


def test_noise_is_drawn_only_when_asked_for():
    assert summary(step_noise=False) == summary(noise=None, step_noise=False)
    with pytest.raises(UserError, match="no distribution of noise"):
        summary(noise=None)


@pytest.mark.parametrize("engine", [{}, {"async_scheduling": True}], ids=["synchronous", "asynchronous"])
def test_tails_widen_and_means_stay(engine):
    """Light load, so that queues do not turn noise into delay: means within 1 %, p99 of TPOT and ITL clearly wider."""
    still = [summary(seed, step_noise=False, **engine) for seed in range(5)]
    noisy = [summary(seed, **engine) for seed in range(5)]

    def over(key):
        return np.mean([run[key] for run in noisy]) / np.mean([run[key] for run in still])

    assert over("mean_tpot_ms") == pytest.approx(1, abs=0.01)
    assert over("mean_itl_ms") == pytest.approx(1, abs=0.01)
    assert over("mean_e2el_ms") == pytest.approx(1, abs=0.01)
    assert over("p99_itl_ms") > 1.3
    assert over("p99_tpot_ms") > 1.03
    assert over("std_tpot_ms") > 1.5


def test_explain_sees_the_run_that_was_simulated():
    resolved = resolve(scenario(3))
    finish_s = simulate(scenario(3)).record.requests.finish_ps[17] / 1e12
    assert explain_request(resolved, "17")[-1].time_s == finish_s
