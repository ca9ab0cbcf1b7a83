"""Paths that users write: where they lead, and whether a file may be written there."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from simbatch.sim.errors import Problem, UserError


def user_path(folder: Path, text: str) -> Path:
    """`text` from `folder` on, with `~`; a `~name` of nobody's is taken as it stands, and leads to no file."""
    try:
        return folder / Path(text).expanduser()
    except RuntimeError:
        return folder / text


def stat_of(path: Path) -> os.stat_result | None:
    """What the system says of a path; None when nothing can be there."""
    try:
        return path.stat()
    except (OSError, ValueError):  # absent, a loop of links, too long, a NUL in it
        return None


def shorten_path(text: str, limit: int = 200) -> str:
    """A path as it is shown: its end, when it is very long."""
    return text if len(text) <= limit else f"...{text[-limit:]}"


def is_dangling(path: Path) -> bool:
    """Whether the path is a link that leads nowhere."""
    try:
        return stat_of(path) is None and path.is_symlink()
    except (OSError, ValueError):
        return False


def read_at_most(path: Path, limit: int) -> bytes:
    """The file's first `limit` bytes and one more if there is one; a pipe that nobody writes to is empty.

    Raises OSError, and ValueError for a path with a NUL in it.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would wait for a writer
    with open(handle, "rb") as file:  # noqa: PTH123  # of a handle
        os.set_blocking(handle, True)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise IsADirectoryError
        return file.read(limit + 1)


def why_not_writable(folder: Path) -> str | None:
    """What the system says when a file is made in `folder`, None when it can be; nothing is left behind."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_target(path: Path, inputs: Iterable[Path] = ()) -> None:
    """UserError unless a file can be put at `path`: in a folder, over nothing but a file that is not read itself."""
    name = str(path)
    parent = stat_of(path.parent)
    if parent is None:
        raise UserError(Problem(name, "there is no such folder", str(path.parent), "create it first"))
    if not stat.S_ISDIR(parent.st_mode):
        raise UserError(Problem(name, f"{path.parent} is not a folder", mend="name another file"))
    if (reason := why_not_writable(path.parent)) is not None:
        raise UserError(Problem(name, f"{path.parent} cannot be written to: {reason}", mend="name another folder"))
    there = stat_of(path)
    if there is None:
        return
    if stat.S_ISDIR(there.st_mode):
        raise UserError(Problem(name, "is a folder, not a file", mend="name a file in it"))
    if not stat.S_ISREG(there.st_mode):
        rule = "is a device or a pipe, which a file would take the place of"
        raise UserError(Problem(name, rule, mend="name a file"))
    for other in map(stat_of, inputs):
        if other is not None and os.path.samestat(there, other):
            raise UserError(Problem(name, "would be written over what is read", mend="name another file"))
