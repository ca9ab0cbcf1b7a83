"""Bands round a run's figures: draws of what its profile is in doubt about, and what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bands_coverage import random_scenario
from simbatch import simulate
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile
from simbatch.sim.cost.sections import LaunchGrowth
from simbatch.sim.cost.uncertainty import PARTS, deviations, factors, scaled, uncertainty_of
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.bands import NUM_DRAWS, Bands, all_settings, bands_from, drawn_settings, turns
from simbatch.sim.search.loads import load_lines, load_share
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.finalists import DrawnGain, finalists_of
from simbatch.sim.tuning.goal import Goal, Limit
from tests import run_command, traffic

TPOT, TTFT = REGISTRY["mean_tpot_ms"], REGISTRY["p99_ttft_ms"]
WORKLOAD = traffic(60, 200, 30, request_rate=4)


def scenario(profile: Any = "h100-llama-3.1-8b-bf16", **more: Any) -> Scenario:
    return Scenario.from_dict({"profile": profile, "workload": WORKLOAD, **more})


def drawn(asked: Scenario) -> tuple[Summary, Bands]:
    resolved = resolve(asked)
    first, *others = Runner(asked, jobs=1)([(each, asked.seed) for each in [{}, *all_settings(resolved)]])
    return first, bands_from(resolved, others)


def test_a_draw_multiplies_the_times_of_its_part_alone() -> None:
    profile = load_profile("h100-llama-3.1-8b-bf16", folder=Path())
    slower = load_profile(scaled(profile, {"decode": 2.0, "host": 3.0}), folder=Path())
    before, after = profile.cost_model(), slower.cost_model()
    assert after.decode_ps(8) == pytest.approx(2 * before.decode_ps(8), rel=1e-9)
    assert after.mixed_ps(3, 300, 500, 500, 250_000) == before.mixed_ps(3, 300, 500, 500, 250_000)
    own, their = profile.host_times(), slower.host_times()
    assert their.graph.base_ps == pytest.approx(3 * own.graph.base_ps, abs=2)
    assert slower.front_end_times() == profile.front_end_times()


def test_what_is_in_doubt_follows_from_where_a_profile_comes_from() -> None:
    known = {name: uncertainty_of(load_profile(name, folder=Path())) for name in NAMES}
    composed, measured, computed, link = (known[name] for name in NAMES)
    fitted_alone = {"growth"}  # how launches grow with the requests is doubted where streams told it
    assert measured.keys() == {*PARTS}
    assert all(each.keys() == {*PARTS} - fitted_alone for each in (composed, computed, link))
    assert measured["host"].spread < composed["host"].spread
    assert measured["num_gpu_blocks"].spread < composed["num_gpu_blocks"].spread
    assert composed["decode"].spread < computed["decode"].spread
    assert composed["decode"].spread < link["decode"].spread
    assert uncertainty_of(resolve(scenario({"num_gpu_blocks": 999, "step_time": {"base_s": 0.01}})).profile) == {}


NAMES = (
    "h100-llama-3.1-8b-bf16",
    "h100-llama-3.1-8b-bf16-measured",
    "rtx4090-llama-3.1-8b-awq",
    "l40s-llama-3.1-70b-bf16-tp4",
)


def test_draws_are_those_of_the_seed_and_normal() -> None:
    assert deviations(3, 5) == deviations(3, 5) != deviations(4, 5)
    values = [value for seed in range(40) for draw in range(19) for value in deviations(seed, draw).values()]
    assert sum(abs(value) < 1.645 for value in values) / len(values) == pytest.approx(0.9, abs=0.015)


def test_bands_hold_the_run_and_name_what_widens_them() -> None:
    summary, bands = drawn(scenario())
    assert len(bands.draws) == NUM_DRAWS
    for metric in (TPOT, TTFT):
        band, value = bands.of(metric), metric.of(summary)
        assert band.low <= value <= band.high
        assert sum(bands.shares(metric).values()) == pytest.approx(1)
    assert next(iter(bands.shares(TPOT))) == "host"  # steps of 6 ms behind launches of 1 to 9
    assert "docs/hosts.md" in str(bands.narrow(["mean_tpot_ms"]))
    slow, slow_bands = drawn(scenario("l40s-llama-3.1-8b-bf16"))
    assert next(iter(slow_bands.shares(TPOT))) == "decode"  # a device of 22 ms hides its host
    assert turns(TPOT, bands, slow_bands) == 0.0
    assert turns(TPOT, slow_bands, bands) == 1.0
    assert TPOT.of(slow) != TPOT.of(summary)


def test_step_times_as_written_have_no_width() -> None:
    summary, bands = drawn(scenario({"num_gpu_blocks": 9999, "step_time": {"base_s": 0.01}}))
    band = bands.of(TPOT)
    assert band.low == band.high == TPOT.of(summary)
    assert bands.narrow() is None


def test_every_group_of_a_cluster_is_drawn_and_blocks_that_are_known_stay() -> None:
    groups = [{"replicas": 1, "engine": {"num_gpu_blocks_override": 9000}}, {"profile": "l40s-llama-3.1-8b-bf16"}]
    asked = scenario(cluster={"groups": groups})
    changed = resolve(asked.override(drawn_settings(resolve(asked), 0)))
    one, other = (group.resolved for group in changed.fleet.groups)
    assert one.engine.num_gpu_blocks == 9000
    own = resolve(asked).fleet
    by = factors(own.groups[1].resolved.profile, deviations(0, 0))
    expected = round(own.groups[1].resolved.engine.num_gpu_blocks * by["num_gpu_blocks"])
    assert other.engine.num_gpu_blocks == expected
    assert other.profile.cost_model().decode_ps(1) != own.groups[1].resolved.profile.cost_model().decode_ps(1)


def test_run_and_compare_write_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object, code: int = 0) -> str:
        done = run_command(capsys, *words)
        assert done.code == code, done.said
        return done.said

    file, plain, banded = tmp_path / "s.yaml", tmp_path / "plain", tmp_path / "banded"
    file.write_text(json.dumps({"profile": NAMES[0], "workload": WORKLOAD}), encoding="utf-8")
    run("run", file, "-o", plain, "--quiet")
    text = run("run", file, "-o", banded, "--bands", "--jobs", 1)
    assert "What to measure to narrow this most: " in text
    before, after = (json.loads((folder / "summary.json").read_text()) for folder in (plain, banded))
    bands = after["simbatch"].pop("bands")
    assert after == before  # the draws change nothing else
    assert bands["p99_ttft_ms"]["low"] <= after["p99_ttft_ms"] <= bands["p99_ttft_ms"]["high"]
    arguments = ("compare", file, "--profile", NAMES[0], "--profile", NAMES[1], "--jobs", 1, "-o", tmp_path, "--bands")
    text = run(*arguments)
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["bands"][NAMES[0]]["p99_ttft_ms"] == bands["p99_ttft_ms"]
    share = content["better_in"][NAMES[1]]["p99_tpot_ms"]
    assert 0 < share < 1
    assert "of the draws it is not" in " ".join(text.split())
    assert "--bands: are drawn for one load" in run(*arguments, "--rate", "1,2", code=2)


def test_finalists_are_compared_draw_by_draw() -> None:
    """Two seats more are worth it in every draw of an overloaded server, and a limit amid the band holds in some."""
    asked = scenario(engine={"max_num_seqs": 2}, workload={**WORKLOAD, "request_rate": 30})
    runner, limit = Runner(asked, jobs=1), Limit.parse("mean_tpot_ms=9")
    goal = Goal((REGISTRY["output_throughput"],), (limit,))
    found = finalists_of(asked, {"engine.max_num_seqs": 4}, goal, asked.seed, runner)
    assert found.gain.is_shown
    assert 1.5 < found.gain.low <= found.gain.high < 2.5
    assert 0 < found.within_limits < NUM_DRAWS
    band = found.bands.of(TPOT)
    assert band.low < 9 < band.high
    assert finalists_of(asked, {}, goal, asked.seed, runner).gain is None
    assert not DrawnGain.of([1.0, 2.0], [1.0, 1.0]).is_shown
    assert DrawnGain.of([1.0, 0.0], [0.0, 0.0]).text() == "over 20 times as much"


def test_a_high_load_is_said_without_them() -> None:
    workload = traffic(1500, 800, 100, request_rate=60)
    asked = Scenario.from_dict({"profile": "l40s-llama-3.1-8b-bf16", "workload": workload})
    result = simulate(asked)
    share = load_share(resolve(asked), result.record)
    assert share == pytest.approx(60 / result.summary["request_throughput"], rel=0.1)  # it gets through what it can
    assert "--bands says how many" in next(load_lines(resolve(asked), result.record))
    light = asked.override({"workload.request_rate": 2, "workload.num_prompts": 100})
    assert list(load_lines(resolve(light), simulate(light).record)) == []


def test_what_a_fit_was_not_told_is_in_more_doubt() -> None:
    """Attention of another profile; launches that turn round the load that was seen, where their growth is in doubt."""
    measured = load_profile(NAMES[1], folder=Path())
    assert isinstance(measured, MeasuredProfile)
    untold = {**measured.streams.taken, "decode context": "another profile's, scaled"}
    growth = LaunchGrowth(around=10, launch_s=0.016, error_s=1e-4)
    changed = {
        "streams": measured.streams.model_copy(update={"taken": untold}),
        "host": measured.host.model_copy(update={"growth": growth}),
    }
    other = measured.model_copy(update=changed)
    told, less = uncertainty_of(measured), uncertainty_of(other)
    composed = uncertainty_of(load_profile(NAMES[0], folder=Path()))
    assert told["mixed"].spread < less["mixed"].spread == composed["mixed"].spread
    assert less["growth"].spread == pytest.approx(64 * 1e-4 / 0.016)
    launch, turned = (scaled(other, {"growth": factor})["host"]["launch"]["none"] for factor in (1.0, 1.4))
    beside = [[each["base_s"] + n * each["per_seq_s"] for n in (10, 74)] for each in (launch, turned)]
    assert beside[1] == pytest.approx([beside[0][0], beside[0][1] + 0.4 * 0.016])


def test_a_fit_without_a_nearest_profile_is_in_doubt_too() -> None:
    """It is an inline profile, whose step times are nobody's to be sure of; its blocks have no end, and stay."""
    measured = load_profile(NAMES[1], folder=Path())
    written = {"num_gpu_blocks": 2**20, "step_time": {"base_s": 0.01}}
    fitted = InlineProfile.model_validate({**written, "streams": measured.streams, "host": measured.host})
    assert {*uncertainty_of(fitted)} == {"decode", "mixed", "host", "growth"}


def test_bands_hold_about_nine_in_ten_further_draws() -> None:
    """A small version of benchmarks/bands_coverage.py, whose 200 scenarios hold 91.3 %."""
    held = []
    for number in range(4):
        asked = random_scenario(number).override({"workload.num_prompts": 25, "cluster": None})
        resolved = resolve(asked)
        drawn = [(drawn_settings(resolved, draw), asked.seed) for draw in range(NUM_DRAWS + 1)]
        *others, truth = Runner(asked, jobs=1)(drawn)
        for metric in (TPOT, TTFT, REGISTRY["mean_e2el_ms"]):
            band, value = Bands(others, {}).of(metric), metric.of(truth)
            held.append(band.low <= value <= band.high)
    assert sum(held) >= 9  # of 12: with 0.9 each that fails in 3 of 100 sets of seeds, and these are fixed
