"""Files of samples: what is read of one, what is refused, and `simbatch fit` of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from simbatch.cli.fit import fit
from simbatch.profiler.fit import fit_samples
from simbatch.profiler.records.samples import read_samples
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.errors import UserError
from tests import exit_code
from tests.made_samples import TRUTH, made_samples, write_samples

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
        (f'{{"record": "step", "episode": 1, "is_canary": false, {ENTRIES}}}', ":5", "duration_s"),
        (f'{{"record": "step", "episode": 1, "is_canary": false, "duration_s": 0, {ENTRIES}}}', ":5", "longer than 0"),
        (
            f'{{"record": "step", "episode": 1, "is_canary": false, "duration_s": NaN, {ENTRIES}}}',
            ":5",
            "not a JSON number",
        ),
        ('{"record": "step", "episode": 1, "is_canary": false, "duration_s": 1, "entries": []}', ":5", "computes"),
        ('{"record": "step", "episode": 1, "is_canary": false, "duration_s": 1, "entries": [[1]]}', ":5", "unpack"),
        (
            '{"record": "step", "episode": 1, "is_canary": false, "duration_s": 1, "entries": [[-1, 2, 0]]}',
            ":5",
            "0 or more",
        ),
        ('{"record": "admission", "duration_s": 1}', ":5", "num_prompt_tokens"),
        ('{"record": "admission", "duration_s": "x", "num_prompt_tokens": 1}', ":5", "x"),
    ],
)
def test_a_malformed_line_is_named(file, line, place, rule):
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
