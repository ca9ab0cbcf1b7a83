"""What reads a log of `simbatch serve`: decisions are replayed from it, host and front end are found in it."""

import copy
import random

import pytest
import simpy

from benchmarks.serve_constants import constants
from benchmarks.serve_decisions import Lines, NoColumns, differences
from parity.case_traffic import CaseTraffic
from simbatch.policies.vllm import VLLM
from simbatch.sim.compiled import is_compiled
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.scheduler.config import EngineConfig

pytestmark = pytest.mark.skipif(is_compiled(), reason="what replays a log inherits from the engine's classes")

US, MS = 10**6, 10**9  # ps
ENGINE = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "max_model_len": 512, "num_gpu_blocks_override": 60}
LAUNCH, UPDATE = LaunchTimes(400 * US, 20 * US), {"update_base_ps": 200 * US, "update_per_seq_ps": 10 * US}
TIMES = HostTimes(graph=LAUNCH, piecewise=LAUNCH, none=LAUNCH, lag_ps=300 * US, **UPDATE)


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


@pytest.mark.parametrize("seed", range(3))
def test_decisions_follow_from_admissions_and_moments(seed):
    log = logged(seed)
    found = differences(log, ENGINE)
    assert found.first == ""
    assert found.num_equal == found.num_steps > 1000
    assert sum(len(line.get("preempted", ())) for line in log) > 0


def test_another_decision_is_found():
    log = copy.deepcopy(logged(1))
    line = [line for line in log if "s0" in line and len(line["batch"]) > 1][100]
    line["batch"][0][1] += 1
    found = differences(log, ENGINE)
    assert found.num_equal == found.num_steps - 1
    assert f"{line['batch'][0][0]!r}" in found.first


WAY_IN_S, WORK_S, TOKEN_S, WAY_OUT_S, CHUNK_S = 0.002, 0.001, 2e-6, 0.001, 1e-4


def seen(log, num_at_once):
    """The same log with what clients saw: every way in and out is a constant, and work in two turns."""
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
