"""A recorder's file while it grows: nothing is lost when it rotates, and a run's lines can be cut out of it."""

import asyncio
import json

import pytest

from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.records.lines import RecordedStep
from simbatch.profiler.server import tail as tail_module
from simbatch.profiler.server.tail import Tail
from simbatch.serving.record_file import RotatingFile
from simbatch.sim.errors import UserError


def line(number):
    times = {key: number + share for key, share in (("s0", 0.0), ("s1", 0.1), ("u0", 0.8), ("u1", 0.9))}
    return json.dumps({**times, "nd": 1, "ctx": number, "pre": [], "run": 1, "wait": 0, "pree": 0})


def test_lines_come_once_across_rotations(tmp_path):
    path = tmp_path / "steps.jsonl"
    file = RotatingFile(path, {"model": "m"}, part_bytes=700)
    file.write(line(0))
    tail = Tail(path, from_end=True)
    assert tail.facts["model"] == "m"
    found = []
    for number in range(1, 30):
        file.write(line(number))
        if number % 2:
            found += tail.new()
    file.write(json.dumps({"memory": {"weights_bytes": 7}}))
    found += asyncio.run(tail.settled())
    assert [step.context_tokens for step in found if isinstance(step, RecordedStep)] == list(range(1, 30))
    assert tail.facts["weights_bytes"] == 7
    cut = tmp_path / "run.jsonl"
    cut.write_bytes(tail.cut())
    assert read_steps(cut).context_tokens.tolist() == list(range(1, 30))
    assert tail.cut().count(b"\n") == 1  # the server's first line alone
    tail.close()
    file.close()


def test_what_is_no_recorder_s_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tail_module, "WAIT_S", 0.0)
    with pytest.raises(UserError, match="no steps are written there"):
        Tail(tmp_path / "absent.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("not JSON\n")
    with pytest.raises(UserError, match="not JSON"):
        Tail(other, from_end=True)
