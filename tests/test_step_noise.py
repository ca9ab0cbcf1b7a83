"""Noise of step times: seeded, exact, on average nothing, and visible in the tails."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Scenario, simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.draws import BLOCK, RATIO_SHIFT
from simbatch.sim.cost.step_time import Ratios, StepNoise
from simbatch.sim.errors import UserError
from simbatch.sim.scenario.resolve import resolve
from simbatch.sim.search.simulate import explain_request

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
            "workload": {
                "num_prompts": 400,
                "request_rate": 4,
                "prompt_len": {"distribution": "fixed", "mean": 64},
                "output_len": {"distribution": "fixed", "mean": 40},
            },
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
