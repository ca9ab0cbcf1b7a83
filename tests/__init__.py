"""The machines that run the tests are shared: a test has a time limit of its own (pyproject), no example has one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from PIL import Image

os.environ.pop("COLUMNS", None)  # pytest-xdist tells its workers 80: pages are as wide as without a terminal

with suppress(ImportError):  # vLLM's environment has none
    from hypothesis import settings

    settings.register_profile("shared machine", deadline=None)
    settings.load_profile("shared machine")


def lengths(mean: float, cv: float = 0.0) -> dict[str, Any]:
    """A distribution: fixed without a cv."""
    return {"distribution": "lognormal", "mean": mean, "cv": cv} if cv else {"distribution": "fixed", "mean": mean}


def traffic(num_prompts: int, prompt: int, output: int, **sent: Any) -> dict[str, Any]:
    """A workload of so many requests of these fixed lengths, sent so: request_rate=3, say."""
    return {"num_prompts": num_prompts, **sent, "prompt_len": lengths(prompt), "output_len": lengths(output)}


def drawn(path: Path) -> Image.Image:
    """A picture that is whole."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


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
