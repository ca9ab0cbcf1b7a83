"""Errors in a user's code name the user's file, line and code, and never a line of ours.

docs/invent-a-policy.md: everything on it is run, and what is recorded is what is printed.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from simbatch import Scenario, UserError, simulate
from simbatch.cli import main
from tests.test_docs import blocks, checkout

HELPER = "def half(request):\n    return request.num_tokens / 2\n"
WHERE = {
    "a line of its own": (
        "def order(self, request):\n        return 1 / 0",
        "p.py:8",
        "return 1 / 0",
        "ZeroDivisionError",
    ),
    "a view of ours": (
        "def seats(self, engine):\n        return engine.blocks_freed_by(None)",
        "p.py:8",
        "return engine.blocks_freed_by(None)",
        "AttributeError",
    ),
    "an installed package": (
        "def order(self, request):\n        return np.linalg.inv(np.zeros((2, 2)))",
        "p.py:8",
        "return np.linalg.inv(np.zeros((2, 2)))",
        "LinAlgError",
    ),
    "a module beside it": (
        "def order(self, request):\n        return half(request)",
        "helper.py:2",
        "return request.num_tokens",
        "",
    ),
    "before the run": (
        "def start(self, engine):\n        raise KeyError('k')",
        "p.py:8",
        "raise KeyError",
        "start() failed",
    ),
    "when it is made": (
        "def __post_init__(self):\n        raise KeyError('k')",
        "p.py:8",
        "raise KeyError",
        "the policy cannot be made",
    ),
    "when it is read": ("x = 1 / 0", "p.py:7", "x = 1 / 0", "the policy's file cannot be run: ZeroDivisionError"),
    "no Python": ("def order(self, request:", "p.py:7", "def order(self, request:", "SyntaxError"),
    "an answer": ("def seats(self, engine):\n        return -1", "p.py:7", "", "seats() must be a whole number from 1"),
}


@pytest.mark.parametrize(("body", "place", "line", "words"), WHERE.values(), ids=WHERE)
def test_the_user_s_line_is_named(
    body: str, place: str, line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "helper", raising=False)
    Path("helper.py").write_text(HELPER)
    head = "import numpy as np\nfrom helper import half\nfrom simbatch import Policy\n\n\nclass Mine(Policy):\n    "
    Path("p.py").write_text(f"{head}{body}\n")
    scenario = Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "policy": {"name": "p.py:Mine"},
            "workload": {
                "num_prompts": 5,
                "request_rate": 1,
                "prompt_len": {"distribution": "fixed", "mean": 20},
                "output_len": {"distribution": "fixed", "mean": 20},
            },
        }
    )
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
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(command)[1:])
            printed = capsys.readouterr()
            assert ended.value.code == 0, printed.err
            done.append(command.split()[1])
        if recorded is not None:
            shown = printed.out.splitlines()
            assert [line for line in recorded.splitlines() if line not in shown] == [], command
    assert done == ["policies", "run", "compare", "tune"]
    assert (checkout / "results" / "long_prompts-loads" / "loads.pdf").read_bytes().startswith(b"%PDF")
