"""Files as this project writes them, beside their target and then renamed, never half there; and paths of users.

`run.json` in every folder of results says how it came to be: which command, when, with which versions and code.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.interpreter import beside

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` when all went well; else `path` stays as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A whole file of text, in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_all(
    folder: Path, writers: Mapping[str, Callable[[Path], None]], own: tuple[str, ...] = (), aside: Collection[str] = ()
) -> list[Path]:
    """Let each writer write its file under a temporary name, rename them all, remove what else is in `own`.

    Those of `aside` write in threads of their own, beside the others. Returns the files in the order of `writers`.
    Raises UserError when the folder cannot be written to; an earlier result is then as it was.
    """
    targets = {folder / name: writer for name, writer in writers.items()}
    blocked = next((target for target in targets if target.is_dir()), None)
    if blocked is not None:
        mend = "move it away, or choose another folder with -o"
        raise UserError(Problem(str(blocked), "is a folder, and a file of the results has its name", mend=mend))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # it is left in the other direction: the last file is renamed last
            temporary = {target: stack.enter_context(replacing(target)) for target in reversed(targets)}
            for name in aside:
                stack.enter_context(beside(partial(writers[name], temporary[folder / name])))
            for target, writer in targets.items():
                if target.name not in aside:
                    writer(temporary[target])
        for name in set(own) - writers.keys():
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        rule = f"the results cannot be written: {error.strerror or error}"
        raise UserError(Problem(str(folder), rule, mend="choose another folder with -o")) from error
    return list(targets)


def json_text(content: Any) -> str:
    """Indented, in the order given; NaN and infinities are errors."""
    return json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, content: Any) -> None:
    """The text of `json_text`, for a writer of `write_all`."""
    path.write_text(json_text(content), encoding="utf-8")


def yaml_text(content: Mapping[str, Any]) -> str:
    """Block style, in the order given."""
    import yaml

    text: str = yaml.safe_dump(plain(content), sort_keys=False, allow_unicode=True, width=120)
    return text


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """The text of `yaml_text`, for a writer of `write_all`."""
    path.write_text(yaml_text(content), encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Numbers to their last digit, nothing where there is none, mappings and lists as JSON."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_cell_text(value) for value in row] for row in rows])


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Parquet file, each column of the narrowest type that holds all its values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: _typed([row[i] for row in rows]) for i, name in enumerate(columns)}), path)


def _typed(values: list[Any]) -> pa.Array[Any]:
    import pyarrow as pa

    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {bool}:
        return pa.array(values, pa.bool_() if kinds else pa.float64())
    if kinds <= {int, float}:
        return pa.array(values, pa.int64() if kinds == {int} else pa.float64())
    return pa.array([None if value is None else _cell_text(value) for value in values], pa.string())


def _cell_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def data_frame(table: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pd.DataFrame:
    """Rows, or columns by name, as a DataFrame; ImportError that says what to do where pandas is missing."""
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("to_pandas() needs pandas, which is not installed: pip install pandas") from None
    return pd.DataFrame(table)


def plain(value: Any) -> Any:
    """Mappings, sequences, numpy's scalars and paths as JSON and YAML know them."""
    import numpy as np

    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


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


def shorten_path(text: str) -> str:
    """A path as it is shown: its end, when it is very long."""
    return text if len(text) <= MAX_PATH else f"...{text[-MAX_PATH:]}"


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


PACKAGES = ("simbatch", "simpy", "numpy", "pyarrow", "matplotlib", "pydantic")

MAX_PATH = 200  # characters of a path that is shown
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
