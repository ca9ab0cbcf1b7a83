"""What the benchmarks reckon with: the first look at host and front end (docs/accuracy.md), the picture of one step
(docs/one-step.md), and logs of `simbatch serve`, replayed.
"""

import copy
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import simpy

from benchmarks import on_gpu
from benchmarks.first_look import (
    ENGINE,
    HOST_FILE,
    MEASURED,
    PROFILE,
    RECORDED,
    SERVED,
    errors,
    main,
    recorded_run,
    without_host,
)
from benchmarks.one_step import FIRST_PREFILL, NUM_STEPS, SCENARIO
from benchmarks.one_step import main as draw_step
from benchmarks.serve_constants import constants
from benchmarks.serve_decisions import Lines, NoColumns, differences
from benchmarks.stream_steps import correlation, gaps_ms, launches, of_stream, slope
from parity.case import CaseTraffic
from simbatch import Scenario
from simbatch.policies.vllm import VLLM
from simbatch.profiler.records.recorded import Recorded
from simbatch.sim import is_compiled
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.scenario import resolve
from simbatch.sim.scheduler.config import EngineConfig
from tests import drawn, traffic

needs_recorded = pytest.mark.skipif(
    not (RECORDED / "serve").is_dir(), reason="../shared (the recorded runs of the H100) is not here"
)


@needs_recorded
@pytest.mark.parametrize("name", ["c1", "c16", "p8", "p16", "p22"])
def test_the_measured_profile_meets_the_real_server(name: str) -> None:
    """What was asked of it: 3 % of TPOT and E2EL, 8 % of TTFT; 5, 5 and 8 % of c16, which it was not fitted on."""
    run = next(run for run in SERVED if run.name == name)
    found = errors(run, recorded_run(run, RECORDED), MEASURED, seeds=3)
    assert abs(found["mean TTFT"]) < 0.08
    for figure in ("mean TPOT", "mean E2EL"):
        assert abs(found[figure]) < (0.05 if name == "c16" else 0.03)


@needs_recorded
def test_what_the_gpu_alone_leaves_out() -> None:
    run = next(run for run in SERVED if run.name == "p8")
    assert -0.6 < errors(run, recorded_run(run, RECORDED), without_host())["mean TTFT"] < -0.3


def test_the_file_of_host_times_serves_any_scenario() -> None:
    content = {"profile": PROFILE, "engine": ENGINE, "workload": traffic(1, 9, 9, request_rate=1)}
    resolved = resolve(Scenario.from_dict({**content, "host": {"from": str(HOST_FILE)}}))
    assert resolved.host_profile == "h100-host"
    assert resolved.engine.host.none.base_ps == 24_300_000_000
    assert resolved.engine.front_end.network_ps == 8_000_000_000
    assert resolved.host_noise() is not None


def test_without_the_recorded_runs_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["first_look", "--recorded", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (f"{tmp_path}: the recorded runs are not here; --recorded names their folder\n")


def test_a_stream_tells_the_steps() -> None:
    gaps = np.empty(2, dtype=np.object_)
    gaps[:] = [np.array([0.010, 0.030, 0.010]), np.array([0.0101])]  # the second joins in the first one's third step
    recorded = Recorded(
        "by hand",
        None,
        np.array([0.0, 0.035]),
        np.array([0.020, 0.0603]),
        np.array([0.070, 0.0704]),
        np.array([100, 600]),
        np.array([4, 2]),
        np.full(2, "", dtype=np.object_),
        gaps_s=gaps,
    )
    steps = of_stream(recorded)
    assert steps.update_ms == pytest.approx([20, 30, 60, 70])
    assert steps.num_requests.tolist() == [1, 1, 2, 2]
    assert steps.new.tolist() == [1, 0, 1, 0]
    assert steps.waits_ms == pytest.approx([20 - 35])  # taken by the schedule() right after the first step's tokens
    assert steps.firsts_ms == pytest.approx([60 - 20])
    assert gaps_ms(steps, ".dp.") == pytest.approx([30])
    assert gaps_ms(steps, "dd..").tolist() == []
    launch_ms, running = launches(steps)
    assert (launch_ms.tolist(), running.tolist()) == (pytest.approx([10]), [2])


def test_slope_and_correlation_of_launches() -> None:
    running = np.arange(10.0)
    assert slope(20 + 0.2 * running, running) == pytest.approx((0.2, 0))
    assert correlation(np.tile([20.0, 40.0], 20), 1) == pytest.approx(-1)
    assert correlation(np.tile([20.0, 40.0], 20), 2) == pytest.approx(1)


def test_the_loop_on_a_gpu_sends_seven_workloads_at_shares_of_what_the_profile_says(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(shipped_text(MEASURED), encoding="utf-8")
    facts = {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 16384, "num_gpu_blocks": 28588}
    facts |= {"async_scheduling": True, "enforce_eager": False}
    (tmp_path / "profile.steps.jsonl").write_text(json.dumps(facts), encoding="utf-8")
    made = {path.stem: Scenario.load(path) for path in on_gpu.scenarios(tmp_path)}
    assert list(made) == ["c1", "c16", "p25", "p50", "p75", "bursty", "long"]
    assert len({scenario.seed for scenario in made.values()}) == 7  # no prompt is sent twice
    rates = [made[name].dump()["workload"]["request_rate"] for name in ("p25", "p50", "p75")]
    assert rates[1:] == pytest.approx([2 * rates[0], 3 * rates[0]], rel=1e-3)
    assert 15 < rates[2] < 22  # the real server was near its end at 22
    assert all(resolve(scenario).engine.num_gpu_blocks == 28588 for scenario in made.values())
    first = (tmp_path / "p25.yaml").read_bytes()
    (tmp_path / "profile.json").write_text(shipped_text(PROFILE), encoding="utf-8")
    on_gpu.scenarios(tmp_path)
    assert (tmp_path / "p25.yaml").read_bytes() == first  # going on sends the same requests


def test_the_steps_of_the_picture_obey_the_rule_of_the_page(tmp_path: Path) -> None:
    window = draw_step(tmp_path / "one-step.png")
    assert len(window) == NUM_STEPS
    assert window[FIRST_PREFILL].num_prompts > 0
    host = SCENARIO["profile"]["host"]
    for life in window:
        assert life.launched - life.schedule >= 1000 * host["launch"]["graph"]["base_s"]
        assert life.start >= life.schedule + 1000 * host["lag_s"] - 1e-9
        assert life.end >= life.launched + 1000 * host["tail_s"] - 1e-9
        assert life.updating >= life.end - 1e-9
        assert life.sent > life.sending >= life.updated
    for life, following in pairwise(window):
        assert life.updating >= following.launched - 1e-9  # tokens wait for the next launch
        assert following.start >= life.end - 1e-9
        assert following.sending >= life.sent
    for life, _, after_next in zip(window, window[1:], window[2:], strict=False):
        assert after_next.schedule == pytest.approx(life.updated)  # a queue of two
    assert len(drawn(tmp_path / "one-step.png").convert("RGB").getcolors(1 << 24)) > 20


US, MS = 10**6, 10**9  # ps
SERVER = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_model_len": 512, "num_gpu_blocks_override": 60}
LAUNCH, UPDATE = LaunchTimes(400 * US, 20 * US), {"update_base_ps": 200 * US, "update_per_seq_ps": 10 * US}
TIMES = HostTimes(graph=LAUNCH, piecewise=LAUNCH, none=LAUNCH, lag_ps=300 * US, **UPDATE)


REPLAYED = pytest.mark.skipif(is_compiled(), reason="what replays a log inherits from the engine's classes")


class Logger(Lines):
    """Writes what a server's log of steps has."""

    def __init__(self):
        super().__init__()
        self.adds, self._steps = [], {}

    def arrived(self, request, now_ps):
        name, length, outputs = request.request_id, request.num_prompt_tokens, request.max_tokens
        now_s = now_ps / 1e12
        self.adds.append({"add": name, "q": now_s, "t": now_s, "t1": now_s, "n": length, "max_tokens": outputs})

    def planned(self, step):
        super().planned(step)
        if step.batch.entries:
            line = self.lines[-1]
            s, m, d0, d1 = (t / 1e12 for t in (step.schedule_ps, step.launched_ps, step.start_ps, step.end_ps))
            line |= {"s0": s, "s1": s, "x0": s, "x1": m, "m0": m, "m1": m, "d0": d0, "d1": d1}
            prefills = [entry for entry in step.batch.entries if not entry.is_decode]
            line |= {"nd": len(step.batch.entries) - len(prefills)}
            line["pre"] = [[entry.num_computed_tokens, entry.num_tokens] for entry in prefills]
            self._steps[id(step)] = line

    def updating(self, step):
        if id(step) in self._steps:
            self._steps[id(step)]["u0"] = max(self.replica.now_ps, step.end_ps) / 1e12

    def updated(self, step, finished):
        if id(step) in self._steps:
            self._steps.pop(id(step))["u1"] = self.replica.now_ps / 1e12


def logged(seed):
    """A log of a server that is short of memory, as a simulation would have written it."""
    rng = random.Random(seed)
    requests = [
        {"id": f"r{i}", "arrival_ns": 10**6 * rng.randrange(3000), "prompt_len": rng.randint(1, 300), "max_tokens": 100}
        for i in range(60)
    ]
    requests += [{**requests[i], "id": f"late{i}", "arrival_ns": 10**10 * (i + 2)} for i in range(6)]  # each alone
    config = EngineConfig(
        max_num_seqs=8, max_num_batched_tokens=256, max_model_len=512, num_gpu_blocks=60, async_scheduling=True
    )
    case = {"requests": requests, "config": {}}
    logger, env = Logger(), simpy.Environment(0)
    logger.replica = Replica(
        env, config, LinearCost(6 * MS, 10 * US, 30 * US, 0), VLLM(), CaseTraffic(case, config, int),
        NoColumns(is_timed=True), lambda *_: None, listener=logger, host=Host(TIMES, 512),
    )  # fmt: skip
    env.process(Stepwise(logger.replica).run())
    env.run()
    return [*logger.adds, *logger.lines]


@REPLAYED
@pytest.mark.parametrize("seed", range(3))
def test_decisions_follow_from_admissions_and_moments(seed):
    log = logged(seed)
    found = differences(log, SERVER)
    assert found.first == ""
    assert found.num_equal == found.num_steps > 1000
    assert sum(len(line.get("preempted", ())) for line in log) > 0


@REPLAYED
def test_another_decision_is_found():
    log = copy.deepcopy(logged(1))
    line = [line for line in log if "s0" in line and len(line["batch"]) > 1][100]
    line["batch"][0][1] += 1
    found = differences(log, SERVER)
    assert found.num_equal == found.num_steps - 1
    assert f"{line['batch'][0][0]!r}" in found.first


WAY_IN_S, WORK_S, TOKEN_S, WAY_OUT_S, CHUNK_S = 0.002, 0.001, 2e-6, 0.001, 1e-4


def seen(log, num_at_once):
    """A log with what clients saw: every way in and out is a constant, and work in two turns."""
    adds, steps = ([line for line in log if key in line] for key in ("add", "s0"))
    renamed = {add["add"]: f"cmpl-s1r{i}-0-12345678" for i, add in enumerate(adds)}
    rows = []
    for i, add in enumerate(adds):
        giving = [s for s in steps if any(e[0] == add["add"] and e[1] + e[2] >= add["n"] for e in s["batch"])]
        begin, sent_s = i - i % num_at_once, 10.0 * (i // num_at_once)
        turns = (
            adds[begin : begin + num_at_once] + adds[begin : i + 1]
        )  # all first ones, and the last ones until its own
        add["q"] = sent_s + WAY_IN_S - WORK_S + sum((WORK_S + TOKEN_S * other["n"]) / 2 for other in turns)
        chunk_s = [step["u1"] + WAY_OUT_S + CHUNK_S * len(step["batch"]) for step in giving]
        rows.append({"name": f"s1r{i}", "sent_s": sent_s, "num_prompt_tokens": add["n"], "chunk_s": chunk_s})
    for step in steps:
        step["batch"] = [[renamed[name], n, done] for name, n, done in step["batch"]]
    return {"rows": rows, "steps": [*({**add, "add": renamed[add["add"]]} for add in adds), *steps]}


@REPLAYED
def test_constants_are_those_of_the_log():
    found = constants(seen(logged(4), 1), seen(logged(5), 6))
    host, front_end = found["host"], found["front_end"]
    assert host["launch"]["graph"] == pytest.approx({"base_s": 4e-4, "per_seq_s": 2e-5}, rel=1e-3)
    assert host["update"] == pytest.approx({"base_s": 2e-4, "per_seq_s": 1e-5}, rel=1e-3)
    assert host["lag_s"] == pytest.approx(3e-4, abs=2e-6)
    assert front_end["per_prompt_token_s"] == pytest.approx(TOKEN_S, rel=1e-3)
    assert front_end["per_request_s"] == pytest.approx(WORK_S, rel=0.1)
    assert front_end["per_chunk_s"] == pytest.approx(CHUNK_S, rel=1e-3)
    delay_s = WAY_IN_S - front_end["per_request_s"] + WAY_OUT_S  # what is no work
    assert front_end["network_s"] == pytest.approx(delay_s, rel=1e-3)
