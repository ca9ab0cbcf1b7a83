"""Errors in a user's code name the user's file, line and code, and never a line of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from simbatch import Scenario, UserError, simulate

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
