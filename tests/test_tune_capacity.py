"""The capacity of queues whose capacity is known, and `simbatch tune` as a command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.sim.search.loads import at_rate, rates_of
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning.capacity import FRESH, Capacity, capacity_limits, find_capacity
from simbatch.sim.tuning.capacity_report import content, report
from simbatch.sim.tuning.goal import Limit
from simbatch.sim.tuning.space import SEQS
from tests import exit_code
from tests.made_scenarios import fixed

SERVICE_S = 0.01


def one_server(rate: float = 20.0, num_prompts: int = 2500, **workload: Any) -> Scenario:
    """M/D/1: Poisson arrivals, one seat, and each request is one step of 10 ms."""
    profile = {"num_gpu_blocks": 1000, "max_model_len": 64, "step_time": {"base_s": SERVICE_S}}
    drawn = {"arrival": {"process": "poisson", "request_rate": rate}, "prompt_len": fixed(10), "output_len": fixed(1)}
    data = {"num_prompts": num_prompts, **drawn, **workload}
    return Scenario.from_dict({"profile": profile, "engine": {"max_num_seqs": 1}, "workload": data})


def capacity(scenario: Scenario, *limits: str, replications: int = 8) -> Capacity:
    kept = capacity_limits(scenario, tuple(map(Limit.parse, limits)))
    return find_capacity(scenario, kept, Runner(scenario, jobs=1), replications)


@pytest.mark.parametrize(("busy", "start"), [(0.5, 3.0), (0.7, 300.0)])
def test_the_seeds_lie_about_the_capacity_of_m_d_1_and_the_bound_holds(busy: float, start: float) -> None:
    mean_ms = 1000 * SERVICE_S * (1 + busy / (2 * (1 - busy)))  # Pollaczek and Khinchine
    scenario = one_server(start)
    found = capacity(scenario, f"mean_e2el_ms={mean_ms}")
    assert found.median == pytest.approx(busy / SERVICE_S, rel=0.03)
    assert found.bound.rate <= min(rate for rate in found.by_seed.values() if rate is not None)
    assert not found.is_upper_bound
    assert max(found.binding(), key=found.binding().__getitem__) == f"mean_e2el_ms <= {mean_ms:g}"
    at_it = [scenario.override({**at_rate(scenario, found.bound.rate), "seed": seed}) for seed in found.bound.seeds]
    kept = sum(simulate(each).summary["mean_e2el_ms"] <= mean_ms for each in at_it)
    assert (kept, len(at_it)) == (found.bound.kept, 8 + FRESH)
    assert kept >= 17
    rate = f"{found.bound.rate:.4g} req/s"
    assert f"Capacity: {rate}, kept in {kept} of 18 seeds (8 that were searched, 10 that were not)" in report(found)


def test_where_latency_hardly_matters_the_queue_binds() -> None:
    found = capacity(one_server(num_prompts=2000), "p99_e2el_ms=100000", replications=6)
    assert 0.9 / SERVICE_S < found.median < 1.1 / SERVICE_S
    assert list(found.binding()) == ["overloaded"]
    assert found.is_upper_bound
    assert "a queue that keeps growing" in report(found)


def test_a_limit_below_the_service_time_is_an_answer() -> None:
    found = capacity(one_server(num_prompts=200), "p99_e2el_ms=9", replications=2)
    assert (found.is_feasible, found.bound) == (False, None)
    assert "No rate holds" in report(found)
    assert found.binding() == {"p99_e2el_ms <= 9": 2}
    answer = content(found, 1)
    assert (answer["feasible"], answer["rate"], answer["set"]) == (False, None, None)


def test_a_rate_that_never_fails_is_said() -> None:
    scenario = one_server(num_prompts=50, max_concurrency=1)
    found = capacity(scenario, "mean_e2el_ms=10.5", replications=2)
    assert (found.is_feasible, found.bound) == (True, None)
    assert "No rate fails" in report(found)


def test_the_slo_names_the_latency_that_binds() -> None:
    scenario = one_server(num_prompts=500).override({"slo": {"ttft_ms": 30, "e2el_ms": 10000}})
    found = capacity(scenario, replications=3)
    assert str(found.limits[0]) == "simbatch.slo_share.all >= 0.99"
    assert found.binding()["slo.ttft_ms"] == 3


def test_every_rate_is_raised_alike() -> None:
    bursts = {"process": "on_off", "request_rate": 8, "off_request_rate": 2, "on_s": 5, "off_s": 5}
    scenario = one_server(arrival=bursts)
    assert at_rate(scenario, 16) == {"workload.arrival.request_rate": 16, "workload.arrival.off_request_rate": 4}


def test_users_who_wait_have_no_rate() -> None:
    with pytest.raises(UserError, match="no request rate"):
        rates_of(one_server(arrival={"process": "closed_loop", "max_concurrency": 4}))


def test_without_slo_and_limit_there_is_nothing_to_meet() -> None:
    with pytest.raises(UserError, match="has no SLO"):
        capacity_limits(one_server(), ())


TIMES = sorted(i / 20 + (i * i % 11) / 15 for i in range(400))


def traced(folder: Path) -> Scenario:
    """20 requests a second, but at times of their own; each is one step of 10 ms."""
    rows = "".join(f"{time_s:.6f},10,1\n" for time_s in TIMES)
    (folder / "t.csv").write_text("arrival_s,num_prompt_tokens,num_output_tokens\n" + rows)
    data = {**one_server().dump(), "workload": {"trace": {"path": "t.csv", "format": "csv", "rate_scale": 0.5}}}
    return Scenario.from_dict(data, folder=folder)


def test_a_trace_is_resampled_and_its_capacity_is_in_requests_per_second(tmp_path: Path) -> None:
    scenario = traced(tmp_path)
    found = capacity(scenario, "p99_e2el_ms=40", replications=4)
    assert found.as_it_is is not None
    assert len({*found.by_seed.values()}) > 1  # eight times the same was a certainty that nobody has
    assert found.load.times == pytest.approx(399 / (TIMES[-1] - TIMES[0]))
    own = {"workload.trace.rate_scale": found.as_it_is}
    assert simulate(scenario.override(own)).summary["p99_e2el_ms"] <= 40
    per_s = found.bound.rate * found.load.times
    assert f"Capacity: {per_s:.4g} req/s (rate_scale {found.bound.rate:.4g}), kept in" in report(found)
    assert f"As it stands: {0.5 * found.load.times:.4g} req/s (rate_scale 0.5), " in report(found)
    assert f"{0.5 / found.bound.rate:.0%} of the capacity" in report(found)
    assert "14 resamplings of the trace in 20 blocks of time" in report(found)
    answer = content(found, 1)
    assert (answer["resample_blocks"], answer["rate"]["bound_per_s"]) == (20, per_s)


def test_where_no_seed_changes_anything_there_is_one_run_a_rate() -> None:
    found = capacity(one_server(num_prompts=300, arrival={"process": "constant", "request_rate": 20}), "p99_e2el_ms=20")
    assert found.seeds == [0]
    assert found.bound.rate == pytest.approx(1 / SERVICE_S, rel=0.1)
    assert "the seed changes nothing here, so one run says it all" in report(found)


FILE = """
profile: {num_gpu_blocks: 2000, step_time: {base_s: 0.01, per_decode_seq_s: 0.001}}
workload: {num_prompts: 60, arrival: {process: all_at_once}, prompt_len: {distribution: fixed, mean: 20},
           output_len: {distribution: fixed, mean: 10}}
tune: {engine.max_num_seqs: [2, 4, 8, 16]}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(FILE)
    return Path("mine.yaml")


def run(*words: object) -> int:
    return exit_code("tune", *words)


def test_the_command_answers_and_writes_its_evidence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--limit", "p99_tpot_ms=20", "--jobs", "1") == 0
    shown = capsys.readouterr().out
    assert "--set engine.max_num_seqs=8" in shown
    assert "vllm serve MODEL --max-num-seqs 8" in shown
    folder = Path("results/mine-tune")
    answer = json.loads((folder / "tune.json").read_text())
    assert (answer["feasible"], answer["best"]["settings"]) == (True, {SEQS: 8})
    assert answer["binds"] == [{"metric": "p99_tpot_ms", "at_most": 20.0}]
    with (folder / "trials.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == answer["num_trials"] == 5
    assert [row[SEQS] for row in rows if row["best"] == "true"] == ["8"]
    assert (folder / "tune.png").stat().st_size > 5000


def test_the_command_says_what_cannot_be_had(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--limit", "p99_tpot_ms=3", "--jobs", "1", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["feasible"], answer["best"]["settings"]) == (False, {SEQS: 2})
    assert answer["binds"] == [{"metric": "p99_tpot_ms", "at_most": 3.0}]
    assert run(file, "--limit", "p99_tpot_ms=3", "--jobs", "1") == 0
    assert "Nothing that was tried keeps p99_tpot_ms <= 3" in capsys.readouterr().out


def test_resume_takes_finished_simulations(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (file, "--over", "engine.max_num_seqs=2,4", "--jobs", "1", "--quiet")
    assert run(*words) == 0
    first = Path("results/mine-tune/tune.json").read_bytes()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a simulation ran again")

    monkeypatch.setattr("simbatch.sim.search.run.run_cells", refuse)
    assert run(*words, "--resume") == 0
    assert Path("results/mine-tune/tune.json").read_bytes() == first


def test_pareto_knee_and_capacity_by_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "--knee", "--pareto", "throughput,p99_tpot_ms", "--jobs", "1") == 0
    assert "Knee (*)" in capsys.readouterr().out
    assert run(file, "--knee", "--over", "engine.max_num_seqs=128", "--jobs", "1") == 0
    assert "No knee: the set has fewer than three" in capsys.readouterr().out
    open_loop = "workload.arrival={process: poisson, request_rate: 5}"
    words = ("--set", open_loop, "--capacity", "--limit", "p99_ttft_ms=200", "--replications", "2", "--jobs", "1")
    assert run(file, *words, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["feasible"]
    assert answer["rate"]["of_seeds"] == answer["rate"]["kept_in"] == 12
    assert 0 < answer["rate"]["bound"] <= answer["rate"]["median"]
    assert answer["load"] == 5 / answer["rate"]["bound"]
    assert not Path("results/mine-tune/tune.png").exists()  # an earlier answer does not stay beside this one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--maximize", "goodput"), "the scenario has none"),
        (("--maximize", "p99_ttft_ms"), "better when it is small"),
        (("--maximize", "goodput", "--knee"), "for a trade-off"),
        (("--capacity", "--knee"), "searches none"),
        (("--capacity", "--trials", "5"), "searches none"),
        (("--capacity", "--limit", "p99_ttft_ms=9", "--replications", "1"), "at least two seeds"),
        (("--capacity",), "has no SLO"),
        (("--pareto", "throughput"), "at least two metrics"),
        (("--knee", "--pareto", "throughput,goodput"), "a knee lies between"),
        (("--limit", "p99_tpto_ms=9"), "did you mean p99_tpot_ms"),
        (("--jobs", "0"), "must not be 0"),
        (("--over", "engine.max_num_seqs"), "must be a dotted key"),
    ],
)
def test_flags_that_make_no_sense(
    file: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    assert run(file, *words) == 2
    assert message in capsys.readouterr().err
