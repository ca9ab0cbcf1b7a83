"""Code of the user's own that runs inside ours (a policy, a predictor): where in it something went wrong."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType

import simbatch
import simbatch.policies
import simbatch.sim

_OURS = tuple(
    f"{Path(folder).resolve()}/" for kit in (simbatch, simbatch.sim, simbatch.policies) for folder in kit.__path__
)
_OTHERS = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))

_CONTRACTS = {"simbatch.policies.base", "simbatch.routers.base", "simbatch.sim.plugins.contract"}


def place_of(error: BaseException, own: object = None) -> tuple[str, str]:
    """`my/policy.py:17`, and to mend that line: the last one of the user's that `error` came through.

    That is a line of the files in which `own` (a class, a function) and its bases are written, or of a file that
    belongs neither to simbatch nor to Python nor to an installed package; else the very last line.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_shown(error.filename)}:{error.lineno}", _mend(error.text)
    files = _files_of(own)
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if frame.filename in files or not _is_foreign(frame.filename)]
    if not users and isinstance(own, type) and files:  # from what is made of the class, as its __init__
        return f"{_shown(inspect.getfile(own))}:{inspect.getsourcelines(own)[1]}", "mend the class"
    frame = (users or list(frames))[-1]
    return f"{_shown(frame.filename)}:{frame.lineno}", _mend(frame.line)


def defined_at(method: Callable[..., object]) -> str:
    """`my/policy.py:12`: where a method begins."""
    code: CodeType | None = getattr(inspect.unwrap(method), "__code__", None)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}" if code else getattr(method, "__name__", "?")


def _mend(line: str | None) -> str:
    return f"mend the line: {line.strip()}" if line and line.strip() else "mend the code"


def _files_of(own: object) -> set[str]:
    kinds = [kind for kind in own.__mro__ if kind.__module__ not in _CONTRACTS] if isinstance(own, type) else [own]
    found = set()
    for kind in kinds:
        try:
            found.add(inspect.getfile(kind))  # type: ignore[arg-type]  # whatever has none is no harm
        except (TypeError, OSError):
            continue
    return found


def _is_foreign(file: str) -> bool:
    return file.startswith((*_OURS, *_OTHERS, "<frozen", "<string>"))  # the latter: what dataclasses make


def _shown(file: str) -> str:
    """From here on, where that is shorter."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
