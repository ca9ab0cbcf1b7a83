"""vLLM's own decisions: every recording of its real scheduler, line by line, and logs of `simbatch serve`, replayed."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import simpy

from benchmarks.serve_constants import constants
from benchmarks.serve_decisions import Lines, NoColumns, differences
from parity import check
from parity.case_traffic import CaseTraffic
from parity.check import first_difference, load, main, recordings
from parity.recording import CaseLines
from simbatch.policies.vllm import VLLM
from simbatch.sim import is_compiled
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.resources import Host
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.names import FIRST_OWN
from simbatch.sim.scheduler.prefix_cache import PrefixKVCache
from simbatch.sim.scheduler.request import Request

FOLDERS = check.RECORDINGS, check.TIMING, check.SESSIONS, check.OTHERS
RECORDINGS = [pair for folder in FOLDERS for pair in recordings(folder)]


@pytest.mark.parametrize(("case", "recording"), RECORDINGS, ids=[case.stem for case, _ in RECORDINGS])
def test_the_recording_is_reproduced(case: Path, recording: Path) -> None:
    assert first_difference(json.loads(case.read_text()), load(recording)) is None


@pytest.mark.skipif(is_compiled(), reason="nobody can look into a compiled class")
def test_a_recording_has_a_block_of_its_own_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rarest branch of the prefix cache: a preempted request may not hit its own last block, and computes it again.

    One random case in 2,000 reaches it, and no other recording.
    """
    found = []

    def enter(cache: PrefixKVCache, request: Request, name: int, end: int) -> None:
        if name >= FIRST_OWN and name in cache._runs:
            found.append(request.request_id)
        original(cache, request, name, end)

    original = PrefixKVCache._enter
    monkeypatch.setattr(PrefixKVCache, "_enter", enter)
    case = check.RECORDINGS / "e11_prio_duplicate.json"
    CaseLines(json.loads(case.read_text())).play()
    assert found == ["b7_0"]


def test_a_difference_is_found_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, recording = RECORDINGS[0]
    changed = json.loads(case.read_text())
    changed["requests"][0]["max_tokens"] += 1
    (tmp_path / case.name).write_text(json.dumps(changed))
    (tmp_path / recording.name).write_bytes(recording.read_bytes())
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "0 of 1 identical" in shown
    assert "vLLM     {" in shown


def test_recordings_in_a_folder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, recording = RECORDINGS[0]
    for folder, path in (("cases", case), ("expected", recording)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    assert main([str(tmp_path / "cases")]) == 0
    assert "1 of 1 identical" in capsys.readouterr().out


def test_nothing_to_compare_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no case" in capsys.readouterr().out


def test_a_refused_configuration_must_be_refused_here_too() -> None:
    case = json.loads(RECORDINGS[0][0].read_text())
    recorded = [{"case": case["name"], "vllm": "0.32.0", "config_error": "ValidationError"}]
    assert "starts" in str(first_difference(case, recorded))
    case["config"] |= {"max_num_batched_tokens": 8, "max_num_seqs": 16}
    assert first_difference(case, recorded) is None


def test_names_of_physical_blocks_are_not_compared(tmp_path: Path) -> None:
    case, recording = RECORDINGS[0]
    lines = [line | ({"blk": {"r0": [1, 2]}} if "i" in line else {}) for line in load(recording)]
    assert first_difference(json.loads(case.read_text()), lines) is None
    (tmp_path / "broken.json").write_text('{"name": "broken"}')
    (tmp_path / "broken.jsonl.gz").write_bytes(recording.read_bytes())
    assert main([str(tmp_path)]) == 1


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
