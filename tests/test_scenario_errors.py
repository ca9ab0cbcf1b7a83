"""Wrong scenario files: each answer says where, what was found, which rule it breaks and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simbatch.cli import main
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario, resolve
from tests.wrong_scenarios import ALL, GOOD, Wrong, in_profile

PROFILES = Path(__file__).parents[1] / "profiles"


@pytest.mark.parametrize("wrong", ALL, ids=lambda wrong: wrong.name)
def test_answer_says_where_what_which_and_how(
    wrong: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(wrong.text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        resolve(Scenario.load("wrong.yaml"))
    lines = [str(problem) for problem in caught.value.problems]
    start = "wrong.yaml" + wrong.place
    answer = next((line for line in lines if line.startswith(start) and wrong.rule in line), "")
    assert answer, f"no problem at {start} with {wrong.rule!r} in {lines}"
    assert wrong.mend in answer
    if wrong.value:
        assert "(got " in answer
        assert wrong.value in answer
    for jargon in ("pydantic", "Input should", "NoneType", "str_type", "Error", "http"):
        assert jargon not in answer

    with pytest.raises(SystemExit) as ended:
        main(["run", "wrong.yaml"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {answer}" in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_there_are_at_least_forty() -> None:
    assert len({wrong.text for wrong in ALL}) >= 40


def test_several_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(in_profile("0.01", "-1") + "sede: 1\nslo: {ttft_ms: x}\nengine: {max_num_seqs: 0}\n")
    with pytest.raises(UserError) as caught:
        Scenario.load(path)
    places = [problem.place.rpartition("wrong.yaml:")[2] for problem in caught.value.problems]
    assert places == [
        "1:53 profile.step_time.base_s",
        "7:1 sede",
        "8:16 slo.ttft_ms",
        "9:24 engine.max_num_seqs",
    ]


@pytest.mark.parametrize(
    ("make", "rule", "mend"),
    [
        (lambda _: None, "cannot be read: No such file", "did you mean"),
        (lambda path: path.mkdir(), "is a folder", "name the YAML file in it"),
        (lambda path: path.write_bytes(b"seed: \xff\n"), "must be UTF-8 text", "save it as UTF-8"),
        (lambda path: path.write_text("seed: 1", encoding="utf-16"), "is UTF-16", "save it as UTF-8"),
        (lambda path: path.write_bytes(b"#" * 300_000), "is larger than", "workload: {trace: {path: ...}}"),
    ],
    ids=["missing", "folder", "latin-1", "utf-16", "huge"],
)
def test_unreadable_file(
    make: object, rule: str, mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    (tmp_path / "burst.yaml").write_text(GOOD)
    make(tmp_path / "bursty.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "bursty.yaml")])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'bursty.yaml'}")
    assert rule in message
    assert mend in message


def test_a_host_is_taken_from_a_profile_that_has_one(tmp_path: Path) -> None:
    content = json.loads((PROFILES / "h100-llama-3.1-8b-bf16.json").read_text("utf-8"))
    lacking = {key: value for key, value in content.items() if key not in ("host", "front_end")}
    (tmp_path / "device.json").write_text(json.dumps(lacking), encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(GOOD + "host: {from: device.json}\n", encoding="utf-8")
    with pytest.raises(UserError, match="has neither a host nor a front_end section") as caught:
        resolve(Scenario.load(tmp_path / "wrong.yaml"))
    assert "wrong.yaml:7:14 host.from" in str(caught.value)
    assert "name one that has" in str(caught.value)
