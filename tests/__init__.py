"""The machines that run the tests are shared: a test has a time limit of its own (pyproject), no example has one."""

import os
from contextlib import suppress
from typing import NamedTuple

import pytest

os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers 80: pages are as wide as without a terminal

with suppress(ImportError):  # vLLM's environment has none
    from hypothesis import settings

    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")


def exit_code(*arguments: object) -> int:
    """What a command of `simbatch` ends with, run in this process."""
    from simbatch.cli import main

    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return int(ended.value.code or 0)


class Done(NamedTuple):
    """A command of `simbatch` that has ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """On both."""
        return self.out + self.err


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run a command of `simbatch` in this process."""
    code = exit_code(*arguments)
    return Done(code, *capsys.readouterr())
