"""Scenarios by name: those that ship in the package, from a checkout and from a wheel alike."""

from __future__ import annotations

import re
import stat
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.paths import is_dangling, stat_of
from simbatch.sim.scenario.reading.document import YamlDocument, parse_document, read_document

_ENDING = ".yaml"


def shipped_scenarios() -> list[str]:
    """The names, in alphabetical order."""
    return sorted(entry.name.removesuffix(_ENDING) for entry in _folder().iterdir() if entry.name.endswith(_ENDING))


def shipped_scenario_text(name: str) -> str:
    """The YAML of a shipped scenario; UserError where there is none of this name."""
    if name not in shipped_scenarios():
        raise _unknown(name, "no scenario of this name ships", [], "")
    return (_folder() / f"{name}{_ENDING}").read_text(encoding="utf-8")


def about(name: str) -> str:
    """What a shipped scenario shows: the first sentence of the comment at its top."""
    lines = [line.removeprefix("#").strip() for line in shipped_scenario_text(name).splitlines()]
    text = " ".join(line for line in lines[1 : lines.index("", 2)] if line)
    return re.split(r"(?<=[.?]) ", text)[0].rstrip(".")


def open_scenario(reference: str | Path) -> tuple[YamlDocument, Path]:
    """What a scenario says, and the folder at which relative paths in it start; a file of that path wins over a name.

    Relative paths in a shipped one start in the current folder. Raises UserError.
    """
    path = Path(reference)
    found = stat_of(path)
    if (found is None or stat.S_ISDIR(found.st_mode)) and _is_name(path):
        if str(path) in shipped_scenarios():
            return parse_document(shipped_scenario_text(str(path)), name=str(path)), Path()
        if found is None and not is_dangling(path):
            rule, mend = "neither a shipped scenario nor a file", ", or give a path to a .yaml file"
            raise _unknown(str(path), rule, [there.name for there in _files_beside(path)], mend)
    if found is None and path.suffix == _ENDING and path.stem in shipped_scenarios() and not _files_beside(path):
        mend = f"write `{path.stem}` for the one that ships, or check the path"
        raise UserError(Problem(str(path), "cannot be read: No such file", mend=mend))
    return read_document(path), path.parent


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def _files_beside(path: Path) -> list[Path]:
    return [] if stat_of(path.parent) is None else sorted(path.parent.glob("*.y*ml"))


def _unknown(name: str, rule: str, others: list[str], otherwise: str) -> UserError:
    near = get_close_matches(name, [*shipped_scenarios(), *others], n=2, cutoff=0.6)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return UserError(Problem("scenario", rule, name, f"{guess}`simbatch scenarios list` shows what ships{otherwise}"))


def _folder() -> Traversable:
    return files("simbatch.scenarios")
