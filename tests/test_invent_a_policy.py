"""docs/invent-a-policy.md: everything on it is run, and what is recorded is what is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from simbatch.cli import main
from tests.test_docs import blocks, checkout

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
