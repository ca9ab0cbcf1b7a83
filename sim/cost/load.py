"""Profiles as text: JSON with places, the names that ship, and pydantic's errors in plain words.

Nothing that executes is ever loaded: JSON is the only form.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.paths import read_at_most, shorten_path

MAX_BYTES = 16 * 2**20


def shipped_names() -> list[str]:
    """The profiles that ship, in alphabetical order."""
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))


def shipped_text(name: str) -> str:
    """The JSON of a shipped profile."""
    return (_folder() / f"{name}.json").read_text(encoding="utf-8")


def read_text(path: Path, place: str) -> str:
    """The text of a profile file, or a UserError that says why it cannot be read."""
    try:
        content = read_at_most(path, MAX_BYTES)
        if len(content) > MAX_BYTES:
            raise UserError(
                Problem(place, f"a profile is at most {MAX_BYTES} bytes", mend="name a profile's JSON file")
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            Problem(place, "no such file", mend="check the path; it starts at the scenario's folder")
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            Problem(place, f"not UTF-8 text at byte {error.start}", mend="a profile is a JSON file")
        ) from None
    except (OSError, ValueError) as error:
        reason = "is a folder" if isinstance(error, IsADirectoryError) else getattr(error, "strerror", None) or error
        raise UserError(Problem(shorten_path(place), f"cannot be read: {reason}", mend="check the path")) from None


def unknown_profile(reference: str) -> UserError:
    """What to say when nothing has this name."""
    near = get_close_matches(reference, shipped_names(), n=3, cutoff=0.5)
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    all_of_them = (
        "`simbatch profiles list` shows what ships, `simbatch estimate CONFIG --gpu G -o FILE` makes one of any model"
    )
    rule = "neither a shipped profile nor a file"
    return UserError(Problem("profile", rule, reference, f"{guess}{all_of_them}, or give a path to a .json file"))


def _folder() -> Traversable:
    return files("simbatch.profiles")
