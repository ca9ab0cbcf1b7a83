"""How a result came to be: which command, when, with which versions; `run.json` in every folder of results."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from importlib import metadata
from typing import Any

PACKAGES = ("simbatch", "simpy", "numpy", "pyarrow", "matplotlib", "pydantic")

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
    """`command` (None: from Python), `date` (of the wall clock here, with its zone) and `versions`."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "command": _command.get(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
