"""A profile by name, from a file, or from what a scenario says; the one beside it with another KV cache; and written.

JSON is the only form, so nothing that executes is ever loaded; the same profile gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simbatch.sim.cost import provenance, sections, step_time
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
from simbatch.sim.cost.sections import HostFile
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import read_at_most, shorten_path, stat_of, user_path, write_text
from simbatch.sim.json_values import checked, json_object

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


_ALIASES = {"fp8": "fp8_e4m3"}  # vLLM takes both for one type on CUDA (vllm/config/cache.py)
_KEY = "engine.kv_cache_dtype"
WHAT = "a profile"
_INFIX = "-kvfp8"  # of the names of shipped profiles


def load_profile(reference: str | Mapping[str, Any], *, folder: Path) -> Profile:
    """A shipped profile by name, a JSON file by path (relative to `folder`), or what a scenario wrote inline.

    Raises UserError with the place and what to mend.
    """
    if isinstance(reference, Mapping):
        return _validated(dict(reference), "profile", joint=".")
    return _validated(*_content(reference, folder))


def load_host(reference: str, *, folder: Path) -> Profile | HostFile:
    """A profile of which `host` and `front_end` are wanted: a file may have these two alone, and its name."""
    content, place = _content(reference, folder)
    if content.keys() <= HostFile.model_fields.keys():
        return checked(HostFile, content, place, keys=_all_keys(HostFile))
    return _validated(content, place)


def _content(reference: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What a profile's file says, and its place."""
    if reference in shipped_names():
        return json_object(shipped_text(reference), reference, what=WHAT), reference
    path = user_path(folder, reference)
    if stat_of(path) is None and not re.search(r"[/\\]|\.json$", reference):
        raise unknown_profile(reference)
    return {"name": path.stem, **json_object(read_text(path, str(path)), path, what=WHAT)}, str(path)


def _validated(content: dict[str, Any], place: str, joint: str = " ") -> Profile:
    if {"model", "gpu", "memory"} & content.keys():
        kind: type[Profile] = MeasuredProfile
    else:
        kind = InlineProfile
    return checked(kind, content, place, keys=_all_keys(kind), joint=joint)


def _all_keys(kind: type[BaseModel]) -> set[str]:
    parts: list[type[BaseModel]] = [
        part
        for module in (sections, provenance, step_time)
        for part in vars(module).values()
        if isinstance(part, type) and issubclass(part, BaseModel)
    ]
    return {key for part in (kind, *parts) for key in part.model_fields}


def with_kv_cache(profile: Profile, reference: str | Mapping[str, Any], kv_cache_dtype: str) -> Profile:
    """`profile`, which `reference` names, or the one that ships beside it and was measured with this KV cache.

    Raises UserError where there is none: a file of the user's and an inline profile have no others beside them.
    """
    if kv_cache_dtype == "auto":
        return profile
    if not isinstance(profile, MeasuredProfile):
        rule = "an inline profile does not say how its KV cache is held: its blocks and step times are as written"
        raise UserError(
            Problem(_KEY, rule, kv_cache_dtype, "remove it, and write the profile as it is with that cache")
        )
    if _is_same(kv_cache_dtype, profile.kv_cache_dtype):
        return profile
    if reference == profile.name and profile.name in shipped_names():
        own = profile.name.replace(_INFIX, "")
        names = [name for name in shipped_names() if name.replace(_INFIX, "") == own]
        siblings = [load_profile(name, folder=Path()) for name in names]
        for sibling in siblings:
            if isinstance(sibling, MeasuredProfile) and _is_same(kv_cache_dtype, sibling.kv_cache_dtype):
                return sibling
    name = reference if isinstance(reference, str) else profile.name
    rule = f"{name} was measured with a {profile.kv_cache_dtype} cache, and another one has other step times"
    raise UserError(Problem(_KEY, rule, kv_cache_dtype, _mend(profile, kv_cache_dtype)))


def _mend(profile: MeasuredProfile, kv_cache_dtype: str) -> str:
    """Measure it, or what ships of this model with such a cache."""
    loaded = (load_profile(name, folder=Path()) for name in shipped_names())
    others = [
        other.name
        for other in loaded
        if isinstance(other, MeasuredProfile)
        and other.model == profile.model
        and _is_same(kv_cache_dtype, other.kv_cache_dtype)
    ]
    others.sort(key=lambda name: not name.startswith(f"{profile.gpu}-"))
    ships = f", or take one that ships: {', '.join(others)}" if others else ""
    return f"measure it so: `simbatch profile MODEL --kv-cache-dtype {kv_cache_dtype} -o FILE`{ships}"


def _is_same(first: str, second: str) -> bool:
    return _ALIASES.get(first, first) == _ALIASES.get(second, second)


# not written where there are none
OPTIONAL = ("host", "front_end", "noise", "real_runs", "streams", "recorder", "link", "power")
LAST = ("host", "front_end", "step_time", "noise")  # the long tables, below what a person reads


def profile_json(profile: Profile) -> str:
    """Render the file's text: one key a line, a list on one."""
    content = profile.model_dump(mode="json")
    content = {key: value for key, value in content.items() if value is not None or key not in OPTIONAL}
    content |= profile.model_dump(mode="json", include={"host", "front_end"}, exclude_defaults=True)
    fits = {key for key in ("streams", "recorder") if getattr(profile, key) is not None}
    content |= profile.model_dump(mode="json", include=fits, exclude_none=True)
    if "memory" in content and content["memory"]["peak"] is None:
        del content["memory"]["peak"]
    if not content["step_time"]["padded"]:
        del content["step_time"]["padded"]
    if content["step_time"].get("window", 0) is None:
        del content["step_time"]["window"]
    first = {key: value for key, value in content.items() if key not in LAST}
    ordered = first | {key: content[key] for key in LAST if key in content}
    return _indented(ordered, 0) + "\n"


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's file; an interrupted run leaves the old one."""
    write_text(path, profile_json(profile))


def _indented(value: Any, depth: int) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = "  " * (depth + 1)
    lines = [f"{inner}{json.dumps(key)}: {_indented(part, depth + 1)}" for key, part in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
