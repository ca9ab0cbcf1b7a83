"""How a result came to be: which command, when, with which versions and code; `run.json` in every folder of results."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from importlib import metadata
from typing import Any

PACKAGES = ("simbatch", "simpy", "numpy", "pyarrow", "matplotlib", "pydantic")

GIT_S = 5.0  # that a repository may take to answer

_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def issued_as(command: str) -> Iterator[None]:
    """Whatever is written meanwhile was asked for by this command line."""
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def origin() -> dict[str, Any]:
    """`command` (None: from Python), `date` (of the wall clock here, with its zone), `git_commit` and `versions`."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "command": _command.get(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
    }


def git_commit() -> str | None:
    """Of the repository around the working directory, `-dirty` where tracked files differ from it; None without one."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a repository on a slow disk
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
