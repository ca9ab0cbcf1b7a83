"""Errors in a user's code or scenario: the user's file, line and value, the rule, and what to do; never a line of ours.

Everything on docs/invent-a-policy.md is run, and what is recorded there is what is printed.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from simbatch import simulate
from simbatch.sim.cost.by_name import shipped_text
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.scenario.document import MAX_VALUES, parse_document, parse_plain
from tests import exit_code, run_command
from tests.test_docs import blocks, checkout

GOOD = """\
profile: {num_gpu_blocks: 1000, step_time: {base_s: 0.01}}
workload:
  num_prompts: 10
  request_rate: 3
  prompt_len: {distribution: fixed, mean: 10}
  output_len: {distribution: lognormal, mean: 10, cv: 1}
"""
WRONG: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "wrong_scenarios.yaml").read_text(encoding="utf-8")
)
HELPER = "def half(request):\n    return request.num_tokens / 2\n"
WHERE = {
    "a line of its own": ("def order(self, request):\n        return 1 / 0", "ZeroDivisionError"),
    "a view of ours": ("def seats(self, engine):\n        return engine.blocks_freed_by(None)", "AttributeError"),
    "an installed package": ("def order(self, r):\n        return np.linalg.inv(np.zeros((2, 2)))", "LinAlgError"),
    "a module beside it": ("def order(self, request):\n        return half(request)", ""),
    "before the run": ("def start(self, engine):\n        raise KeyError('k')", "start() failed"),
    "when it is made": ("def __post_init__(self):\n        raise KeyError('k')", "the policy cannot be made"),
    "when it is read": ("x = 1 / 0", "the policy's file cannot be run: ZeroDivisionError"),
    "no Python": ("def order(self, request:", "SyntaxError"),
    "an answer": ("def seats(self, engine):\n        return -1", "seats() must be a whole number from 1"),
}
ELSEWHERE = {"a module beside it": ("helper.py:2", "return request.num_tokens"), "an answer": ("p.py:7", "")}


@pytest.mark.parametrize("case", WHERE)
def test_the_user_s_line_is_named(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the last one of the body but where another is at fault, or the answer of a whole method."""
    body, words = WHERE[case]
    *_, last = lines = body.split("\n")
    place, line = ELSEWHERE.get(case, (f"p.py:{6 + len(lines)}", last.strip()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "helper", raising=False)
    Path("helper.py").write_text(HELPER)
    head = "import numpy as np\nfrom helper import half\nfrom simbatch import Policy\n\n\nclass Mine(Policy):\n    "
    Path("p.py").write_text(f"{head}{body}\n")
    scenario = Scenario.from_dict(yaml.safe_load(GOOD) | {"policy": {"name": "p.py:Mine"}})
    with pytest.raises(UserError) as raised:
        simulate(scenario)
    [problem] = raised.value.problems
    assert problem.place.split(" policy ")[0] == place
    assert line in problem.mend
    assert words in problem.rule


__all__ = ["checkout"]
PAGE = "docs/invent-a-policy.md"
MAX_LINES = 30


def policy_of_the_page() -> tuple[str, str]:
    """The name of the policy's file, and its text."""
    (text,) = (text for language, text, _ in blocks(PAGE) if language == "python")
    first, _, _ = text.partition("\n")
    return first.removeprefix("# "), text


def test_the_policy_fits_in_thirty_lines() -> None:
    _, text = policy_of_the_page()
    assert len(text.splitlines()) <= MAX_LINES


def test_the_page_from_idea_to_figure(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, text = policy_of_the_page()
    (checkout / name).write_text(text)
    done = []
    for language, script, recorded in blocks(PAGE):
        if language != "sh":
            continue
        for command in script.splitlines():
            printed = run_command(capsys, *shlex.split(command)[1:])
            assert printed.code == 0, printed.err
            done.append(command.split()[1])
        if recorded is not None:
            shown = printed.out.splitlines()
            assert [line for line in recorded.splitlines() if line not in shown] == [], command
    assert done == ["policies", "run", "compare", "tune"]
    assert (checkout / "results" / "long_prompts-loads" / "loads.pdf").read_bytes().startswith(b"%PDF")


def text_of(wrong: dict[str, Any]) -> str:
    """The scenario's file."""
    if "text" in wrong:
        return str(wrong["text"])
    return GOOD.replace(*wrong.get("replace", ("", ""))) + (f"{wrong['add']}\n" if "add" in wrong else "")


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong["name"])
def test_answer_says_where_what_which_and_how(
    wrong: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(text_of(wrong), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        resolve(Scenario.load("wrong.yaml"))
    lines = [str(problem) for problem in caught.value.problems]
    start = "wrong.yaml" + wrong["place"]
    answer = next((line for line in lines if line.startswith(start) and wrong["rule"] in line), "")
    assert answer, f"no problem at {start} with {wrong['rule']!r} in {lines}"
    assert wrong.get("mend", "") in answer
    if "value" in wrong:
        assert "(got " in answer
        assert wrong["value"] in answer
    for jargon in ("pydantic", "Input should", "NoneType", "str_type", "Error", "http"):
        assert jargon not in answer

    assert exit_code("run", "wrong.yaml") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {answer}" in printed.err
    assert "Traceback" not in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


def test_there_are_at_least_forty() -> None:
    assert len({*map(text_of, WRONG)}) >= 40


def test_several_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(GOOD.replace("0.01", "-1") + "sede: 1\nslo: {ttft_ms: x}\nengine: {max_num_seqs: 0}\n")
    with pytest.raises(UserError) as caught:
        Scenario.load(path)
    places = [problem.place.rpartition("wrong.yaml:")[2] for problem in caught.value.problems]
    assert places == ["1:53 profile.step_time.base_s", "7:1 sede", "8:16 slo.ttft_ms", "9:24 engine.max_num_seqs"]


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
    assert exit_code("run", str(tmp_path / "bursty.yaml")) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'bursty.yaml'}")
    assert rule in message
    assert mend in message


def test_a_host_is_taken_from_a_profile_that_has_one(tmp_path: Path) -> None:
    content = json.loads(shipped_text("h100-llama-3.1-8b-bf16"))
    lacking = {key: value for key, value in content.items() if key not in ("host", "front_end")}
    (tmp_path / "device.json").write_text(json.dumps(lacking), encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(GOOD + "host: {from: device.json}\n", encoding="utf-8")
    with pytest.raises(UserError, match="has neither a host nor a front_end section") as caught:
        resolve(Scenario.load(tmp_path / "wrong.yaml"))
    assert "wrong.yaml:7:14 host.from" in str(caught.value)
    assert "name one that has" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("TrUe", "TrUe"),
        ("1e", "1e"),
        ("-", "-"),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    found = parse_plain(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", [".nan", "-.inf", "-.INF", "1e400", "-1e999"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        parse_plain(text)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_an_error_that_says_why(text: str) -> None:
    with contextlib.suppress(ValueError):
        value = parse_plain(text)
        assert value is None or isinstance(value, (str, int, float, bool))


@given(st.text(alphabet="ab01 :-[]{},'\"&*!|>%@`#\n\t.~<?\\", max_size=60))
def test_any_text_is_a_mapping_or_a_user_error(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        document = parse_document(text, name="x.yaml")
        assert isinstance(document.data, dict)
        assert all(place.value.line >= 1 for place in document.places.values())
    except UserError as error:
        problems = error.problems
    assert all(problem.place.startswith("x.yaml:") for problem in problems)


def test_places_of_keys_and_values() -> None:
    document = parse_document("a: 1\nb:\n  c: [x, {d: 2}]\n", name="x.yaml")
    assert document.data == {"a": 1, "b": {"c": ["x", {"d": 2}]}}
    assert document.places[("b", "c")] == ((3, 3), (3, 6))
    assert document.places[("b", "c", 1, "d")] == ((3, 11), (3, 14))


def test_quotes_make_text() -> None:
    assert parse_document("a: '1'\nb: \"true\"\nc: ''\n", name="x").data == {"a": "1", "b": "true", "c": ""}


def test_anchors_are_allowed_up_to_a_size() -> None:
    document = parse_document("a: &x {n: 1}\nb: *x\nc: [*x, *x]\n", name="x")
    assert document.data == {"a": {"n": 1}, "b": {"n": 1}, "c": [{"n": 1}, {"n": 1}]}
    long: dict[str, Any] = parse_document("a: [" + "1," * (MAX_VALUES - 10) + "]", name="x").data  # type: ignore[assignment]
    assert len(long["a"]) == MAX_VALUES - 10
