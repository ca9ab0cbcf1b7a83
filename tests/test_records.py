"""Files of records: samples and a recorder's parts: what is read, is malformed, and survives; `fit` of samples."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from simbatch.cli.fit import fit
from simbatch.profiler.fit import fit_samples
from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.records.lines import RecordedRequest, RecordedStep, is_recorded, stream
from simbatch.profiler.records.samples import read_samples
from simbatch.serving.processes import RotatingFile, record_file
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.errors import UserError
from tests import exit_code
from tests.made_samples import TRUTH, made_samples, write_samples

STEP_OF = '{"record": "step", "episode": 1, "is_canary": false'
ENTRIES = '"entries": [[0, 4, 0]]'


@pytest.fixture
def file(tmp_path):
    return write_samples(made_samples(), tmp_path / "samples.jsonl")


def test_a_file_is_read_as_it_was_written(file):
    made, found = made_samples(), read_samples(file)
    assert found.engine == made.engine
    assert found.admissions == made.admissions
    assert [step._replace(duration_s=round(step.duration_s, 9)) for step in made.steps] == found.steps


def test_a_last_line_that_was_cut_off_is_left_out(file):
    whole = read_samples(file)
    with file.open("a") as handle:
        handle.write('{"record": "step", "episode": 3, "is_ca')
    assert read_samples(file).steps == whole.steps


@pytest.mark.parametrize(
    ("line", "place", "rule"),
    [
        ("{", ":5:", "not valid JSON"),
        ("[1]", ":5", "must be an object"),
        ('{"episode": 1}', ":5", "key record"),
        ('{"record": "stop"}', ":5", "stop"),
        (f"{STEP_OF}, {ENTRIES}}}", ":5", "duration_s"),
        (f'{STEP_OF}, "duration_s": 0, {ENTRIES}}}', ":5", "longer than 0"),
        (f'{STEP_OF}, "duration_s": NaN, {ENTRIES}}}', ":5", "not a JSON number"),
        (f'{STEP_OF}, "duration_s": 1, "entries": []}}', ":5", "computes"),
        (f'{STEP_OF}, "duration_s": 1, "entries": [[1]]}}', ":5", "unpack"),
        (f'{STEP_OF}, "duration_s": 1, "entries": [[-1, 2, 0]]}}', ":5", "0 or more"),
        ('{"record": "admission", "duration_s": 1}', ":5", "num_prompt_tokens"),
        ('{"record": "admission", "duration_s": "x", "num_prompt_tokens": 1}', ":5", "x"),
    ],
)
def test_a_malformed_line_of_samples_is_named(file, line, place, rule):
    lines = file.read_text().split("\n")
    file.write_text("\n".join([*lines[:4], line, *lines[4:]]))
    with pytest.raises(UserError) as caught:
        read_samples(file)
    assert str(caught.value).startswith(f"{file}{place}")
    assert rule in str(caught.value)


@pytest.mark.parametrize("content", ["", '{"record": "step"}\n', '{"record": "engine", "model": 3}\n'])
def test_what_is_no_samples_file_is_an_error(tmp_path, content):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"x\.jsonl:1"):
        read_samples(tmp_path / "x.jsonl")


def test_another_kind_of_file_is_not_to_be_edited_but_left_alone(tmp_path):
    (tmp_path / "x.yaml").write_text("profile: mine.json\nworkload: {}\n")
    with pytest.raises(UserError, match=r"x\.yaml:1:1: not valid JSON.*; name a samples file; `simbatch"):
        read_samples(tmp_path / "x.yaml")


def test_fit_writes_a_profile_and_a_picture_and_says_what_they_are_worth(file, tmp_path):
    output, picture = tmp_path / "mine.json", tmp_path / "mine.png"
    result = CliRunner().invoke(fit, [str(file), "-o", str(output), "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    profile = load_profile(str(output), folder=tmp_path)
    assert profile.name == "mine"
    for word in ("noise floor", "hinges", "roofline", "table (fine)", f"{profile.fit_error.decode.mape:.1%}"):
        assert word in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    first = output.read_bytes()
    assert CliRunner().invoke(fit, [str(file), "-o", str(output)]).exit_code == 0
    assert output.read_bytes() == first


def test_the_report_as_json(file):
    result = CliRunner().invoke(fit, [str(file), "--json"])
    report = json.loads(result.stdout)
    assert report["error"]["decode"]["mape"] < 0.05
    assert set(report["error"]["forms"]) == {"hinges", "roofline", "table (coarse)", "table", "table (fine)"}
    assert report["chosen"].keys() == {"decode", "mixed"}
    assert report["error"]["noise_floor"]["decode"] == pytest.approx(0.024, rel=0.2)


def test_mistakes_end_with_2_and_write_nothing(file, tmp_path, capsys):
    few = write_samples(made_samples(episodes=2), tmp_path / "few.jsonl")
    output = tmp_path / "out.json"
    for words in (
        [str(few), "-o", str(output)],
        [str(tmp_path / "none.jsonl"), "-o", str(output)],
        [str(file), "-o", str(tmp_path / "no folder" / "x.json")],
        [str(file), "-o", str(file)],
    ):
        assert exit_code("fit", *words) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not output.exists()
    assert read_samples(Path(file)).steps


def test_samples_of_two_steps_in_flight_are_no_steps(file, tmp_path):
    samples = read_samples(file)
    gaps = fit_samples(samples, sections={"step_time": TRUTH}, is_whole=False, steps_show=False)
    assert gaps.drift is None
    assert gaps.profile.noise is None
    assert not [note for note in gaps.profile.notes if note.startswith(("drift", "step_time"))]
    changed = file.read_text().replace('"async_scheduling": false', '"async_scheduling": true')
    (tmp_path / "async.jsonl").write_text(changed)
    said = CliRunner().invoke(fit, [str(tmp_path / "async.jsonl"), "--json"]).stderr
    assert "warning: two steps were in flight" in said  # behind the progress of a slow machine
    assert "fit NAME.steps.jsonl" in said


def test_a_full_file_becomes_an_older_part(tmp_path):
    path, line = tmp_path / "steps.jsonl", "x" * 99
    for server in (1, 2):
        file = RotatingFile(path, {"model": f"m{server}"}, part_bytes=1000, num_parts=3)
        for _ in range(25):
            file.write(line)
        file.close()
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["steps.jsonl", "steps.jsonl.1", "steps.jsonl.2"]
    for name in names:
        first, *rest = (tmp_path / name).read_text().splitlines()
        assert json.loads(first)["model"] == "m2"
        assert rest == [line] * len(rest)
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names)


STEP = {
    **{"s0": 1.0, "s1": 1.1, "x0": 1.2, "x1": 1.3, "m0": 1.4, "m1": 1.5, "u0": 1.6, "u1": 1.7, "d0": 1.2, "d1": 1.55},
    **{"nd": 1, "ctx": 9, "pre": [], "run": 1, "wait": 0, "pree": 0},
}
ADDED = {"add": "a", "t": 0.5, "t1": 0.6, "n": 4, "arrival": 100.0, "wall": 100.25}


def test_files_of_one_server_are_read_together(tmp_path):
    path = tmp_path / "steps.jsonl"
    for name, server, steps in (("steps.jsonl.2", 1, 5), ("steps.jsonl.1", 2, 2), ("steps.jsonl", 2, 3)):
        lines = [json.dumps({"recorder": 1, "pid": server}), *[json.dumps(STEP)] * steps]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert len(read_steps(path)) == 5
    assert read_steps(path).facts["pid"] == 2
    assert len(read_steps(tmp_path / "steps.jsonl.2")) == 5
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert len(read_steps(packed)) == 3
    assert is_recorded(packed)


def test_a_file_of_the_sketch_has_no_first_line(tmp_path):
    path = tmp_path / "watch.jsonl"
    later = {key: value + 0.55 if isinstance(value, float) else value for key, value in STEP.items()}
    path.write_text("\n".join(map(json.dumps, (ADDED, STEP, later))) + "\n")
    assert is_recorded(path)
    steps = read_steps(path)
    assert steps.facts == {}
    assert steps.is_async  # the second began before the first was taken in
    assert steps.requests == [RecordedRequest("a", 4, 0.5, 0.6, pytest.approx(0.35))]
    assert [type(item) for item in stream(path)] == [RecordedRequest, RecordedStep, RecordedStep]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is neither a step (a key s0) nor a request (a key add) (got [1])"),
        (json.dumps(STEP | {"u1": 1.55}), "its times must not fall, and u1 is before u0"),
        (json.dumps(STEP | {"s1": None}), "s1 must be a number of seconds (got null)"),
        (json.dumps(STEP | {"nd": -1}), "nd must be a whole number from 0 on (got -1)"),
        (json.dumps(STEP | {"pre": [[0, 0]]}), "pairs of [tokens computed before, tokens computed now] (got [0, 0])"),
        (json.dumps(STEP | {"pre": 3}), "pre must be a list of pairs (got 3)"),
        (json.dumps(STEP | {"nd": 0}), "has neither decodes (nd) nor prefills (pre)"),
        (json.dumps(ADDED | {"t": "x"}), "t must be a number of seconds (got 'x')"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, said):
    path = tmp_path / "steps.jsonl"
    path.write_text("\n".join([json.dumps(STEP), line, json.dumps(STEP)]) + "\n")
    with pytest.raises(UserError) as error:
        read_steps(path)
    (problem,) = error.value.problems
    assert problem.place.startswith(f"{path}:2")
    assert said in str(problem)
    assert problem.mend


def test_a_file_without_steps_or_that_is_not_there(tmp_path):
    path = tmp_path / "steps.jsonl"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_steps(path)
    path.write_text(json.dumps({"recorder": 1}) + "\n")
    with pytest.raises(UserError, match="holds no step"):
        read_steps(path)
    assert is_recorded(path)
    assert not is_recorded(tmp_path)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.test_recorder import *
made = StepRecorder(RotatingFile(Path(sys.argv[1]), {}), None, print)
for i in range(200):
    runs(made, output(new=[(str(i), 0)], tokens={str(i): 8}), float(i))
time.sleep(1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_recorded_survives_a_kill(tmp_path):
    path = tmp_path / "steps.jsonl"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(read_steps(path)) == 200
    path.write_bytes(path.read_bytes()[:-20])  # it may die in the middle of a line
    assert len(read_steps(path)) == 199


def test_where_the_steps_go(monkeypatch, tmp_path):
    monkeypatch.delenv("SIMBATCH_RECORD", raising=False)
    with pytest.raises(UserError, match="SIMBATCH_RECORD: must name the file that the steps are written to; set"):
        record_file({})
    monkeypatch.setenv("SIMBATCH_RECORD", str(tmp_path / "a.jsonl"))
    assert record_file({"simbatch": {"policy": {"name": "fair"}}}) == tmp_path / "a.jsonl"
    assert record_file({"simbatch": {"record": str(tmp_path / "b.jsonl")}}) == tmp_path / "b.jsonl"
    assert record_file({}, data_parallel_rank=3) == tmp_path / "a.dp3.jsonl"
    with pytest.raises(UserError, match=r"simbatch\.record: must name the file .* \(got 3\)"):
        record_file({"simbatch": {"record": 3}})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the steps cannot be written there"):
        RotatingFile(tmp_path / "file" / "steps.jsonl", {})
